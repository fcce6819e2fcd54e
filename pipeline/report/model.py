"""AuditReport: everything an audit found, as report.json has it (schema `onnx-audit/report/1`).

A stage that did not run is null, and `reasons` and `stages` say why.  Digests are 64 hex digits, without a prefix.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, ConfigDict, Field

from pipeline.findings import Check, Finding, Printable, printable
from pipeline.results import Bound, Change, GateSeen, Measurement, Parity, Rate, ReadingResult, Target, Unbound, Value
from pipeline.verdict import Reason, Verdict

SCHEMA: Final = "onnx-audit/report/1"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PathText = Annotated[str, BeforeValidator(lambda path: printable(path, limit=4096))]
Seconds = Annotated[float, Field(ge=0)]


def without_credentials(uri: str) -> str:
    """An address without the user and password in it."""
    return re.sub(r"(?<=://)[^/?#]*@", "", uri)


class SubmittedModel(Value):
    """The file that was audited.  opset, producer and parameters: null when the scan gave no answer."""

    path: PathText
    sha256: Sha256
    bytes: int = Field(ge=0)
    opset: int | None
    producer: Printable | None
    parameters: int | None


class Stage(Value):
    """How a stage of the audit went; `reused` when an earlier audit had already answered it."""

    name: str
    outcome: Literal["ran", "reused", "failed", "skipped"]
    seconds: Seconds
    note: Printable = ""


class Suspect(Value):
    """The smallest change of its kind, as `pipeline.results.Hypothesis` has it.  target: a class, or `next`, `+2`, … for so many classes on."""

    kind: str
    target: Target
    source: int | None
    text: Printable
    size: float
    unit: str
    share: float
    outlier: float
    reached: Rate
    score: float


class Detection(Value):
    """The search for triggers nobody told us about.

    suspected: what scores as much as the policy's threshold, the likeliest first; others: the smallest change of every other kind.  score: P(backdoored), in
    0..1, on the scale of the reference models.  false_alarms, found: of these, the clean ones that the threshold suspects, and the backdoored ones.  complete:
    every search came to an end, and means something.
    """

    suspected: list[Suspect]
    others: list[Suspect]
    method: str
    score: float
    threshold: float
    false_alarms: Rate
    found: Rate
    complete: bool
    seconds: Seconds
    device: str
    notes: list[Printable]


class Purified(Measurement):
    """The file that was written back, and what it measures.

    method: a purifier, or `cut` where gates were cut out of the graph.  device: where the purifier ran, such as `cpu` or `cuda: NVIDIA H200`.
    """

    sha256: Sha256
    method: str
    preset: str
    changed_initializers: int = Field(ge=0)
    changes: list[Change]
    seconds: Seconds
    device: str
    notes: list[Printable]


class MlflowRecord(Value):
    """Where the audit was recorded; credentials in the address are left out."""

    run_id: str
    tracking_uri: Annotated[str, AfterValidator(without_credentials)]


class Provenance(Value):
    """What the audit was made with.  git: null outside a checkout.  command: the arguments that make it again, when they are known."""

    version: str
    git: str | None
    packages: dict[str, str]
    device: str
    seed: int
    calibration_sha256: Sha256 | None
    holdout_sha256: Sha256 | None
    created: AwareDatetime
    command: list[Annotated[PathText, AfterValidator(without_credentials)]] | None = None


class Files(Value):
    """What was written, relative to the report."""

    purified: str | None = None
    html: str | None = None
    sarif: str | None = None
    junit: str | None = None


class AuditReport(Value):
    """One audit.

    labels: the classes' names, by index.  bound, unbound: which weights write-back reaches.  gates: those that the scan found in the graph, watched on
    clean images; null where it found none.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    schema_id: Literal["onnx-audit/report/1"] = Field(default=SCHEMA, alias="schema")
    verdict: Verdict
    reasons: list[Reason]
    model: SubmittedModel
    findings: list[Finding]
    checks: list[Check]
    reading: ReadingResult | None
    labels: list[Printable] | None
    parity: Parity | None
    bound: Bound | None
    unbound: list[Unbound] | None
    gates: list[GateSeen] | None
    submitted: Measurement | None
    detection: Detection | None
    purified: Purified | None
    mlflow: MlflowRecord | None
    stages: list[Stage]
    provenance: Provenance
    files: Files
