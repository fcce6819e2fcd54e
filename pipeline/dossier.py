"""Everything that an audit has gathered so far, and the report that can be made of it at any moment."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.artifact import ModelArtifact, Store
from pipeline.config import AuditSpec
from pipeline.inputs import Inputs, Job, audit_key, digest, today
from pipeline.policy import Evidence, decide
from pipeline.provenance import git, packages, version
from pipeline.report.model import AuditReport, Detection, Files, MlflowRecord, Provenance, Purified, Stage, SubmittedModel, Suspect
from pipeline.report.summary import summary_rows
from pipeline.results import DetectResult, GatesResult, Hypothesis, ImportResult, Measurement, PurifyResult, Rate, ReadingResult, ScanResult, WriteBackResult
from pipeline.verdict import Reason


@dataclass(kw_only=True)
class Dossier:
    """The answers of the stages, None until they came; `failures` says which never will.

    path: as it was given, or a job's name.  sha256, bytes: of the submitted file.  seed, device: as they were asked for.
    """

    path: Path
    sha256: str
    bytes: int
    spec: AuditSpec
    inputs: Inputs
    seed: int
    device: str
    command: list[str] | None = None
    artifact: ModelArtifact | None = None
    scanned: ScanResult | None = None
    reading: ReadingResult | None = None
    submitted: Measurement | None = None
    gates: GatesResult | None = None
    rescanned: ScanResult | None = None
    imported: ImportResult | None = None
    detected: DetectResult | None = None
    purified: PurifyResult | None = None
    written: WriteBackResult | None = None
    after: Measurement | None = None
    mlflow: MlflowRecord | None = None
    stages: list[Stage] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    remarks: list[Reason] = field(default_factory=list)
    files: Files = field(default_factory=Files)

    @classmethod
    def of(cls, job: Job, store: Store) -> Dossier:
        """What is known of a job before anything ran.  Raises what `Store.path` raises."""
        size = store.path(job.model.files["model.onnx"]).stat().st_size
        return cls(
            path=Path(job.name), sha256=job.model.sha256, bytes=size, spec=job.spec, inputs=job.inputs, seed=job.seed, device=job.device, artifact=job.model
        )

    def note(self, name: str, outcome: Literal["ran", "reused", "failed", "skipped"], seconds: float = 0.0, note: str = "") -> None:
        """Remember how a stage went."""
        self.stages.append(Stage(name=name, outcome=outcome, seconds=round(seconds, 3), note=note))

    @property
    def suspected(self) -> list[Hypothesis]:
        """What the search found that the policy calls suspicious, the likeliest first."""
        return [one for one in self.detected.hypotheses if one.score >= self.spec.policy.max_suspicion] if self.detected else []

    @property
    def key(self) -> str:
        """See `audit_key`."""
        model = self.artifact.digest if self.artifact else self.sha256
        return audit_key(model, self.spec, self.inputs, seed=self.seed, device=self.device, failures=self.failures)

    def report(self) -> AuditReport:
        """Decide, and say everything."""
        after = self.after if self.written else None
        evidence = Evidence(
            findings=self.scanned.findings if self.scanned else [],
            checks=[check for scan in (self.scanned, self.rescanned) if scan for check in scan.checks],
            failures=self.failures,
            submitted=self.submitted,
            parity=self.imported.parity if self.imported else None,
            calibrated=self.inputs.calibrated,
            today=today(),
            remaining=self.rescanned.findings if self.rescanned else None,
            searched=self.detected is not None and self.detected.complete,
            suspected=self.suspected,
            purified=after,
        )
        verdict, reasons = decide(evidence, self.spec.policy)
        facts = self.scanned.model if self.scanned else None
        return AuditReport(
            verdict=verdict,
            reasons=[*reasons, *self._guess(), *self.remarks],
            model=SubmittedModel(
                path=str(self.path),
                sha256=self.sha256,
                bytes=facts.bytes if facts else self.bytes,
                opset=facts.opset if facts else None,
                producer=facts.producer if facts else None,
                parameters=facts.parameters if facts else None,
            ),
            findings=evidence.findings,
            checks=self.scanned.checks if self.scanned else [],
            reading=self.reading,
            labels=self.spec.labels,
            parity=evidence.parity,
            bound=self.imported.bound if self.imported else None,
            unbound=self.imported.unbound if self.imported else None,
            submitted=self.submitted,
            gates=self.gates.gates if self.gates else None,
            detection=self._detection(),
            purified=self._purified(),
            mlflow=self.mlflow,
            stages=self.stages,
            provenance=Provenance(
                version=version(),
                git=git(),
                packages=packages(),
                device=self.purified.device if self.purified else self.device,
                seed=self.seed,
                calibration_sha256=digest(self.inputs.calibration),
                holdout_sha256=digest(self.inputs.holdout),
                created=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
                command=self.command,
            ),
            files=self.files,
        )

    def _guess(self) -> list[Reason]:
        """A warning for each thing that nobody said: how the model reads pictures, and which output holds the scores."""
        if self.reading is None:
            return []
        found, output = [], self.reading.output
        if self.reading.guessed:
            name, tried = _best_of(self.reading.scores)
            text = f"How the model reads pictures was guessed: {name} ({tried}). Say it in the spec's `input` if it is not so."
            found.append(Reason(code="read.guessed", text=text))
        if output.guessed:
            text = f"Which output holds the scores was guessed: {output.name} ({_best_of(output.scores)[1]}). Say it in the spec's `output` if it is not so."
            found.append(Reason(code="read.output-guessed", text=text))
        return found

    def _detection(self) -> Detection | None:
        if self.detected is None:
            return None
        threshold, suspected = self.spec.policy.max_suspicion, self.suspected
        return Detection(
            suspected=[_suspect(one) for one in suspected],
            others=[_suspect(one) for one in self.detected.hypotheses if one not in suspected],
            false_alarms=_reaching(self.detected.clean, threshold),
            found=_reaching(self.detected.backdoored, threshold),
            threshold=threshold,
            **self.detected.model_dump(include={"method", "score", "complete", "seconds", "device", "notes"}),
        )

    def _purified(self) -> Purified | None:
        if self.written is None or self.after is None:
            return None
        if self.purified is None:
            assert self.gates is not None
            note = f"{len(self.gates.gates)} gate(s) became constants, and {self.gates.removed} nodes that only they needed went; no weight was changed"
            return Purified(
                **dict(self.after),
                sha256=self.written.model.sha256,
                method="cut",
                preset="default",
                changed_initializers=0,
                changes=[],
                seconds=0.0,
                device="cpu",
                notes=[note],
            )
        return Purified(
            **dict(self.after),
            sha256=self.written.model.sha256,
            method=self.purified.method,
            preset=self.purified.preset,
            changed_initializers=len(self.written.changes),
            changes=self.written.changes,
            seconds=self.purified.seconds,
            device=self.purified.device,
            notes=self.purified.notes,
        )

    def record(
        self, report: AuditReport, *, tracking_uri: str, experiment: str, artifacts: dict[str, str], model: str | None, description: str
    ) -> dict[str, Any]:
        """What the tracking server is to be told, as `pipeline.tracking.RecordRequest` has it; paths relative to the output folder."""
        metrics = {f"{name}_{when}": rate.rate for row in summary_rows(report) for name, when, rate in _rates(row)}
        if report.detection is not None:
            metrics["suspicion"] = report.detection.score
        if report.purified is not None:
            metrics |= {"purify_seconds": report.purified.seconds, "changed_initializers": float(report.purified.changed_initializers)}
        settings = self.spec.model_dump(mode="json", exclude={"data", "triggers", "labels"})
        params = {f"{section}.{name}": str(value) for section, values in settings.items() if isinstance(values, dict) for name, value in values.items()}
        tags = {
            "audit.verdict": str(report.verdict),
            "audit.model_sha256": report.model.sha256,
            "audit.purified_sha256": report.purified.sha256 if report.purified else "",
            "audit.calibration_sha256": report.provenance.calibration_sha256 or "",
            "audit.holdout_sha256": report.provenance.holdout_sha256 or "",
            "audit.version": report.provenance.version,
            "audit.git": report.provenance.git or "",
            "audit.reasons": ", ".join(dict.fromkeys(reason.code for reason in report.reasons)),
        }
        return {
            "tracking_uri": tracking_uri,
            "experiment": experiment,
            "audit_key": self.key,
            "run_name": f"{self.path.stem} {report.model.sha256[:8]}",
            "params": params | {"seed": str(self.seed), "device": self.device, "model": self.path.name},
            "metrics": metrics,
            "history": [step.model_dump(mode="json") for step in self.purified.history] if self.purified else [],
            "tags": tags,
            "artifacts": artifacts,
            "model": model,
            "input_example": "input_example.npy" if model else None,
            "description": description,
        }


def _suspect(one: Hypothesis) -> Suspect:
    return Suspect(**one.model_dump(exclude={"trigger", "aim"}))


def _reaching(scores: list[float], threshold: float) -> Rate:
    return Rate.of(sum(score >= threshold for score in scores), len(scores))


def _best_of(scores: Mapping[str, Rate]) -> tuple[str, str]:
    """The first of the best of what was tried to the end, and how it did."""
    name, rate = max(scores.items(), key=lambda item: (item[1].total, item[1].hits))
    return name, f"best of {len(scores)} on calibration images, {100 * rate.rate:.1f} % right"


def _rates(row: Any) -> list[tuple[str, str, Any]]:
    name = "acc" if row.metric == "ACC" else f"{row.metric.lower()}.{row.kind}.{row.name.removeprefix('recovered ')}"
    return [(name, when, rate) for when, rate in (("before", row.before), ("after", row.after)) if rate is not None]
