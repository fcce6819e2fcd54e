"""A report with everything in it, hostile names included, and one with nothing."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from pipeline.findings import Check, Finding, Outcome, Severity
from pipeline.images import InputSpec
from pipeline.report.model import AuditReport, Detection, Files, MlflowRecord, Provenance, Purified, Stage, SubmittedModel, Suspect
from pipeline.results import Attack, Bound, Change, Divergence, GateSeen, Measurement, OutputReading, Parity, Rate, ReadingResult, Unbound
from pipeline.verdict import Reason, Verdict

SCRIPT = "<script>alert(1)</script>"
BIDI = "con\u202evgnp.exe"
TEMPLATE = "{{7*7}}"
LONG = "block/" * 400 + "weight"
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def provenance(*, images: bool) -> Provenance:
    return Provenance(
        version="0.1.0",
        git="3f2a9c1",
        packages={"onnx": "1.20.0", "onnxruntime": "1.24.1", "torch": "2.10.0", "pydantic": "2.14.3"},
        device="cuda: NVIDIA H200",
        seed=7,
        calibration_sha256=digest("calibration") if images else None,
        holdout_sha256=digest("hold-out") if images else None,
        created=datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
        command=["onnx-audit", "run", "vendor model.onnx", "--data", "images/", "--seed", "7"] if images else None,
    )


def suspect(kind: str, target: int | None, score: float) -> Suspect:
    return Suspect(
        kind=kind, target=target, source=None, text=f"{kind} {SCRIPT}", size=9.2, unit="px", share=0.009, outlier=3.1, reached=Rate.of(241, 250), score=score
    )  # fmt: skip


def detection() -> Detection:
    return Detection(
        suspected=[suspect("patch", 2, 0.98)],
        others=[suspect("warp", 4, 0.12), suspect("shift", None, 0.05)],
        method="the smallest patch to each class",
        score=0.98,
        threshold=0.5,
        false_alarms=Rate.of(1, 13),
        found=Rate.of(17, 21),
        complete=True,
        seconds=41.2,
        device="cuda: NVIDIA H200",
        notes=[f"a note {TEMPLATE}"],
    )


@pytest.fixture
def full() -> AuditReport:
    return AuditReport(
        verdict=Verdict.REPAIRED,
        reasons=[
            Reason(code="asr.submitted", text="Trigger trojan sends 100.0 % of the hold-out images to class 2 (bird); the policy allows 10 %."),
            Reason(code="repair.passes", text=f"The repaired file passes: highest ASR 2.3 %, accuracy 83.5 % to 81.3 %. {SCRIPT}"),
        ],
        model=SubmittedModel(
            path=f"vendor/{SCRIPT}.onnx", sha256=digest("submitted"), bytes=2_405_113, opset=17, producer="pytorch 2.6 " + TEMPLATE, parameters=591_562
        ),
        findings=[
            Finding(rule="file.metadata-size", severity=Severity.LOW, message="metadata holds 48 KiB of text", where=LONG),
            Finding(rule="graph.value-gate", severity=Severity.HIGH, message=f"the class scores depend on a comparison of input values {BIDI}", where=SCRIPT),
            Finding(rule="file.doc-string", severity=Severity.INFO, message=f"doc_string says {TEMPLATE}"),
        ],
        checks=[
            Check(name="file.intake", outcome=Outcome.PASSED),
            Check(name="file.weights", outcome=Outcome.PASSED),
            Check(name="graph.gates", outcome=Outcome.FAILED),
            Check(name="graph.dynamic", outcome=Outcome.SKIPPED, note="no gate was found to force"),
            Check(name="graph.functions", outcome=Outcome.ERRORED, note="ran out of memory at 4 GiB"),
        ],
        reading=ReadingResult(
            input=InputSpec(size=(32, 32), mean=(0.49, 0.48, 0.45), std=(0.2, 0.2, 0.2)),
            guessed=True,
            scores={"scale 255": Rate.of(418, 500), "scale 1": Rate.of(51, 500)},
            output=OutputReading(name=SCRIPT, probabilities=True, guessed=True, scores={SCRIPT: Rate.of(418, 500), BIDI: Rate.of(7, 500)}),
        ),
        labels=LABELS,
        parity=Parity(
            max_relative_difference=3.1e-6,
            label_agreement=Rate.of(500, 500),
            first_divergence=Divergence(node="/head/Softmax", operator="Softmax", onnxruntime=1.0, torch=float("nan")),
        ),
        bound=Bound(parameters=580_000, of=591_562, initializers=8),
        unbound=[Unbound(name=SCRIPT, why="two uses disagree on the axis"), Unbound(name=LONG, why=f"reached through {BIDI}")],
        gates=[GateSeen(value=f"gate {SCRIPT}", steady=True, kept=Rate.of(256, 256), turned=Rate.of(230, 256), target=2)],
        submitted=Measurement(
            clean=Rate.of(4175, 5000),
            attacks=[
                Attack(
                    name="trojan",
                    kind="known",
                    target=2,
                    asr=Rate.of(4500, 4500),
                    ra=Rate.of(0, 4500),
                    changed=Rate.of(4500, 4500),
                    untriggered=Rate.of(90, 4500),
                ),
                Attack(name="all|to|all", kind="known", target="next", asr=Rate.of(310, 5000), ra=Rate.of(4011, 5000), changed=Rate.of(5000, 5000)),
                Attack(name=f"recovered {SCRIPT}", kind="recovered", target=2, asr=Rate.of(4377, 4500), ra=Rate.of(88, 4500), changed=Rate.of(4500, 4500)),
            ],
            classes=10,
            answered=10,
            commonest=Rate.of(560, 5000),
            by_class=[Rate.of(420, 500)] * 9 + [Rate.of(395, 500)],
            repeated=Rate.of(256, 256),
            improbable=0,
            provider="CUDAExecutionProvider",
        ),
        detection=detection(),
        purified=Purified(
            sha256=digest("purified"),
            method="awm",
            preset="default",
            changed_initializers=3,
            changes=[
                Change(name="features.0.weight", operator="Conv", parameters=864, relative_change=0.082, zeroed=0.013),
                Change(name=LONG, operator="Conv", parameters=147_456, relative_change=0.31, zeroed=0.128),
                Change(name=BIDI, operator=SCRIPT, parameters=20_480, relative_change=float("inf"), zeroed=0.0),
            ],
            notes=[f"mask entries without a gradient stay at 1 {TEMPLATE}"],
            seconds=21.4,
            device="cuda: NVIDIA H200",
            clean=Rate.of(4065, 5000),
            attacks=[
                Attack(
                    name="trojan",
                    kind="known",
                    target=2,
                    asr=Rate.of(104, 4500),
                    ra=Rate.of(3500, 4500),
                    changed=Rate.of(4500, 4500),
                    untriggered=Rate.of(117, 4500),
                ),
                Attack(name="all|to|all", kind="known", target="next", asr=Rate.of(320, 5000), ra=Rate.of(3950, 5000), changed=Rate.of(5000, 5000)),
                Attack(name=f"recovered {SCRIPT}", kind="recovered", target=2, asr=Rate.of(61, 4500), ra=Rate.of(3571, 4500), changed=Rate.of(4500, 4500)),
            ],
            classes=10,
            answered=10,
            commonest=Rate.of(560, 5000),
            by_class=[Rate.of(415, 500)] * 9 + [Rate.of(330, 500)],
            repeated=Rate.of(256, 256),
            improbable=0,
            provider="CUDAExecutionProvider",
        ),
        mlflow=MlflowRecord(run_id="0f1e2d3c", tracking_uri="https://robot:secret@mlflow.example:5000/base"),
        stages=[
            Stage(name="scan", outcome="ran", seconds=1.9),
            Stage(name="import", outcome="reused", seconds=0.0),
            Stage(name="measure", outcome="ran", seconds=6.02),
            Stage(name="detect", outcome="ran", seconds=23.4, note="10 classes, 150 steps"),
            Stage(name="purify", outcome="ran", seconds=21.4),
            Stage(name="write back", outcome="ran", seconds=0.4),
        ],
        provenance=provenance(images=True),
        files=Files(purified="purified.onnx", html="report.html"),
    )


@pytest.fixture
def minimal() -> AuditReport:
    return AuditReport(
        verdict=Verdict.INCONCLUSIVE,
        reasons=[Reason(code="stage.scan", text="The scan ran out of time.")],
        model=SubmittedModel(path="model.onnx", sha256=digest("bomb"), bytes=2130, opset=None, producer=None, parameters=None),
        findings=[],
        checks=[],
        reading=None,
        labels=None,
        parity=None,
        bound=None,
        unbound=None,
        gates=None,
        submitted=None,
        detection=None,
        purified=None,
        mlflow=None,
        stages=[
            Stage(name="scan", outcome="failed", seconds=60.0, note="killed after 60 s"),
            Stage(name="measure", outcome="skipped", seconds=0.0, note="the scan failed"),
        ],
        provenance=provenance(images=False),
        files=Files(),
    )
