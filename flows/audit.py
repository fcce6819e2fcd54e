"""Audit one model: `examine` reads like the list of stages; the rest runs each stage once, and writes down what came of it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.tasks import Task
from pydantic import BaseModel

from flows.progress import watcher
from pipeline.artifact import Store, sha256
from pipeline.config import AuditSpec, Method, read_spec
from pipeline.dossier import Dossier
from pipeline.errors import BadInput, Defect, ModelRefused, RecordFailed, SpecRefused, StageFailed, StageKilled
from pipeline.inputs import Job, check_model_path, limits, prepare
from pipeline.outputs import PENDING, Outputs, absolute
from pipeline.policy import needs_repair
from pipeline.provenance import made_with
from pipeline.report.html import render_html
from pipeline.report.json import render_json
from pipeline.report.junit import render_junit
from pipeline.report.model import AuditReport, Files, MlflowRecord, without_credentials
from pipeline.report.sarif import render_sarif
from pipeline.report.summary import markdown, rate_text, summary_rows, target_text
from pipeline.results import (
    DetectResult,
    GatesResult,
    Hypothesis,
    ImportResult,
    IntakeResult,
    Measurement,
    PlotsResult,
    PurifyResult,
    ReadingResult,
    ScanResult,
    WriteBackResult,
)
from pipeline.sandbox import Limits, run
from pipeline.verdict import Reason

Json = dict[str, Any]
Answer = TypeVar("Answer", bound=BaseModel)
Device = Literal["auto", "cpu", "cuda"]
EXPERIMENT = "onnx-audit"
GPU = "onnx-audit-gpu"  # `prefect gcl create onnx-audit-gpu --limit 1`: as many audits at once as there are GPUs
LEASE = 60.0  # seconds that a slot stays taken when its holder has died; the least that Prefect takes
ON_DEVICE = ("read", "measure", "gates", "detect", "purify")
SARIF, JUNIT = "report.sarif", "junit.xml"  # for CI systems
EXTENSIONS = {"patch": ".png", "additive": ".npy", "warp": ".npy"}  # of the files of recovered triggers


def _was_killed(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """A stage that was killed from outside is worth one more try; one that ran into its own limit is not."""
    error = state.data if isinstance(state.data, BaseException) else getattr(state.data, "exception", None)
    return isinstance(error, StageKilled) or "StageKilled" in (state.message or "")


def _work(name: str, request: Json, limits: Limits) -> Json:
    return run(name, request, store=Store(), limits=limits, listener=watcher().moved)


@task(
    name="stage",
    task_run_name="{name}",
    cache_policy=INPUTS - "limits",
    persist_result=True,
    result_serializer="json",
    retries=1,
    retry_condition_fn=_was_killed,
)
def stage(name: str, request: Json, made_with: str, limits: Limits) -> Json:
    """Run one stage in a child process.  What its answer follows from is its input, so that an equal request is answered once."""
    with _a_gpu(name, limits):
        return _work(name, request, limits)


def _a_gpu(name: str, limits: Limits) -> AbstractContextManager[None]:
    """One of the slots of the concurrency limit GPU, where somebody has made that limit and the stage may run on CUDA.

    The slot is held by a lease, which runs out when its holder dies; Prefect renews it while the stage runs.
    """
    if limits.memory is not None or name not in ON_DEVICE:
        return nullcontext()
    return concurrency(GPU, lease_duration=LEASE, strict=False)


@task(name="intake", task_run_name="intake", cache_policy=NO_CACHE, persist_result=False)
def intake(source: str, limits: Limits) -> Json:
    """Take the submitted file in: never from the cache, since only a look tells whether it changed."""
    return _work("intake", {"source": source}, limits)


@task(name="record", task_run_name="record", cache_policy=NO_CACHE, persist_result=False, retries=1, retry_delay_seconds=2)
def record(request: Json, limits: Limits) -> Json:
    """Tell the tracking server: never from the cache, since only the server knows what it holds."""
    return _work("record", {"request": request}, limits)


class Stages:
    """Runs the stages of one audit, and writes into its dossier how each went."""

    def __init__(self, dossier: Dossier, store: Store, limits: Limits) -> None:
        self.dossier, self.store, self.limits = dossier, store, limits

    def __call__(self, name: str, kind: type[Answer], request: Json, *, step: str | None = None) -> Answer:
        """Run a stage, or find it done.  `step` is what this run of it is called in the report.  Raises what the stage raised."""
        step = step or name
        started = time.monotonic()
        watcher().started(step)
        try:
            if name == "intake":
                answer, reused = intake(request["source"], self.limits), False
            else:
                answer, reused = self._kept(name, request, step)
        except (StageFailed, ModelRefused, SpecRefused) as error:
            if isinstance(error, BadInput) and self.dossier.submitted is None:
                raise  # nothing is known yet: the audit could not run
            self.dossier.failures[step] = str(error)
            self._ended(step, "failed", started, str(error))
            raise error if isinstance(error, StageFailed) else StageFailed(str(error)) from error
        self._ended(step, "reused" if reused else "ran", started)
        return kind.model_validate(answer)

    def skip(self, step: str, why: str) -> None:
        """Remember that a stage was not run."""
        self.dossier.note(step, "skipped", note=why)
        watcher().ended(step, "skipped", 0.0)

    def _kept(self, name: str, request: Json, step: str) -> tuple[Json, bool]:
        limits = replace(self.limits, seconds=self.dossier.spec.purify.seconds) if name == "purify" else self.limits
        named = stage.with_options(task_run_name=step)
        state = named(name, request, made_with(), limits, return_state=True)
        answer = state.result()
        if not self.store.holds(answer):  # somebody emptied the store
            return named.with_options(refresh_cache=True)(name, request, made_with(), limits), False
        return answer, state.name == "Cached"

    def _ended(self, step: str, outcome: Literal["ran", "reused", "failed"], started: float, note: str = "") -> None:
        seconds = time.monotonic() - started
        self.dossier.note(step, outcome, seconds, note)
        watcher().ended(step, outcome, seconds)


def examine(found: Dossier, stages: Stages) -> None:
    """The stages, in order.  Each answer is in the dossier as soon as it is there; raises StageFailed where one gives none."""
    spec, inputs, device = found.spec, found.inputs, found.device
    if found.artifact is None:
        found.artifact = stages("intake", IntakeResult, {"source": str(found.path)}).model
    if found.artifact.sha256 != found.sha256:
        raise ModelRefused(f"{found.path} changed while the audit began: run it again on a file that stays as it is")
    model = {"model": found.artifact.model_dump()}

    found.scanned = stages("scan", ScanResult, model)
    facts = {"facts": found.scanned.model.model_dump(mode="json")}

    calibration = {"calibration": inputs.calibration, "device": device}
    wanted = {"wanted": spec.input.model_dump(mode="json") if spec.input else None, "output": spec.output.model_dump(mode="json")}
    found.reading = stages("read", ReadingResult, {**model, **facts, **calibration, **wanted})
    answer = found.reading.output
    reading = {"reading": found.reading.input.model_dump(mode="json"), "output": answer.name, "probabilities": answer.probabilities}

    judged = {**reading, "holdout": inputs.holdout, "triggers": inputs.triggers, "recovered": [], "device": device}
    found.submitted = stages("measure", Measurement, {**model, **judged})
    if spec.labels is not None and len(spec.labels) != found.submitted.classes:
        raise SpecRefused(f"the spec names {len(spec.labels)} labels, and the model has {found.submitted.classes} classes")

    if found.scanned.gated and _cut_out(found, stages, {**model, **reading, **calibration}, judged):
        return

    twin = {**model, **facts, **reading}
    found.imported = stages("import", ImportResult, {**twin, "reference": found.reading.reference})

    if why_not := _nothing_to_search(found):
        stages.skip("detect", why_not)
    else:
        found.detected = stages("detect", DetectResult, {**twin, **calibration, "seed": found.seed, "seconds": spec.detect.seconds})
        if found.suspected:
            judged["recovered"] = [one.trigger for one in found.suspected]
            found.submitted = stages("measure", Measurement, {**model, **judged}, step="measure recovered")

    if why_not := _nothing_to_purify(found):
        for step in ("purify", "write-back", "measure again"):
            stages.skip(step, why_not)
        return
    how = {"method": spec.purify.method, "preset": spec.purify.preset, "seed": found.seed}
    found.purified = stages("purify", PurifyResult, {**twin, **calibration, **how})
    found.written = stages("write-back", WriteBackResult, {**model, "weights": found.purified.weights})
    found.after = stages("measure", Measurement, {**judged, "model": found.written.model.model_dump()}, step="measure again")


def _cut_out(found: Dossier, stages: Stages, request: Json, judged: Json) -> bool:
    """Watch the gates in the graph; where they can be cut out, the graph without them is the repaired file, looked at and measured like any other."""
    found.gates = stages("gates", GatesResult, request)
    if found.gates.cut is None:
        found.remarks.append(Reason(code="gates.not-cut", text=f"The gates in the graph were not cut out of it: {found.gates.why}."))
        return False
    repaired = {"model": found.gates.cut.model_dump()}
    found.written = WriteBackResult(model=found.gates.cut, changes=[])
    found.rescanned = stages("scan", ScanResult, repaired, step="scan again")
    found.after = stages("measure", Measurement, {**judged, **repaired}, step="measure again")
    for step in ("import", "detect", "purify", "write-back"):
        stages.skip(step, "the backdoor is in the graph and was cut out of it; to go on with the weights, audit the file that was written")
    return True


def _nothing_to_search(found: Dossier) -> str | None:
    """Why nothing is searched; None when something is."""
    assert found.imported is not None
    if found.spec.detect.when == "never":
        return "the spec says never to search"
    if not found.imported.parity.holds:
        return "the torch twin does not agree with onnxruntime, so its gradients mean nothing"
    return None


def _nothing_to_purify(found: Dossier) -> str | None:
    """Why nothing is purified; None when something is."""
    when = found.spec.purify.when
    assert found.submitted is not None and found.imported is not None
    if when == "never":
        return "the spec says never to purify"
    if not found.imported.parity.holds:
        return "the torch twin does not agree with onnxruntime, so its gradients mean nothing"
    if when == "auto" and not needs_repair(found.submitted, found.spec.policy):
        return "no trigger, known or recovered, works better than the policy allows, so there is nothing to repair"
    return None


@flow(name="audit", flow_run_name="audit {model}", persist_result=False)
def audit(
    model: str,
    *,
    data: str | None = None,
    spec: str | None = None,
    out: str | None = None,
    method: Method | None = None,
    preset: Literal["default", "paper"] | None = None,
    purify: Literal["auto", "always", "never"] | None = None,
    device: Device = "auto",
    seed: int = 0,
    accept_repaired: bool = False,
    tracking_uri: str | None = None,
    experiment: str = EXPERIMENT,
    command: list[str] | None = None,
) -> Json:
    """Audit an ONNX image classifier, and return its report as JSON.  Raises BadInput when the audit cannot run.

    Args:
        model: Path of the file, as the worker sees it.
        data: Clean images, a folder with one sub-folder a class or an .npz; not needed when the spec names them.
        spec: Path of an audit.yaml: how the model reads images, known triggers, policy.
        out: Folder for what is written; default audits/NAME-DIGEST in the working folder.
        method: How to repair, in place of the spec's `purify.method`.
        preset: Our settings of the method, or the paper's, in place of the spec's `purify.preset`.
        purify: Whether to repair, in place of the spec's `purify.when`.
        device: Where to search, repair and measure; cuda is an error where there is none.
        seed: Of the split of the images, the search and the repair.
        accept_repaired: REPAIRED lets the gate open; changes nothing but junit.xml, which is how a gate reads the verdict.
        tracking_uri: Of MLflow; default $MLFLOW_TRACKING_URI, else mlflow.db in the working folder.
        experiment: In MLflow.
        command: What was typed, for the report; leave it empty.
    """
    settings = _settings(spec, method=method, preset=preset, when=purify)
    path = check_model_path(Path(model), most_bytes=settings.limits.file_gib * 2**30)
    submitted = sha256(path)
    outputs = Outputs(Path(out)) if out else Outputs.beside(path, submitted)
    outputs.check()
    outputs.discard(JUNIT)  # an audit that cannot run must not leave an earlier one's answer to the gate
    store = Store()
    inputs = prepare(settings, Path(data) if data else None, seed=seed, store=store)
    size = path.stat().st_size
    found = Dossier(path=path, sha256=submitted, bytes=size, spec=settings, inputs=inputs, seed=seed, device=device, command=command)
    report = _carry_out(found, store, outputs, accept_repaired=accept_repaired, tracking_uri=tracking_uri, experiment=experiment)
    return report.model_dump(mode="json", by_alias=True)


@flow(name="audit-job", flow_run_name="audit {job[name]}", persist_result=True, result_serializer="json")
def audit_job(job: Json, *, out: str | None = None, tracking_uri: str | None = None, experiment: str = EXPERIMENT, parent: str | None = None) -> Json:
    """Audit what is in the store, on whatever machine this is; return `verdict`, `reasons` (their codes), `run_id`, `sha256`.

    job: as `pipeline.inputs.Job` has it.  out: folder for what is written; without it the record is all that stays.  parent: MLflow run that this one hangs
    under.  Raises BadInput when the audit cannot run, RecordFailed when nothing would stay of it.
    """
    todo, store = Job.model_validate(job), Store()
    with store.scratch() as scratch:
        found = Dossier.of(todo, store)
        report = _carry_out(found, store, Outputs(Path(out) if out else scratch), tracking_uri=tracking_uri, experiment=experiment, parent=parent)
    if report.mlflow is None and out is None:
        raise RecordFailed(next(reason.text for reason in report.reasons if reason.code == "record.failed"))
    codes = list(dict.fromkeys(reason.code for reason in report.reasons))
    run_id = report.mlflow.run_id if report.mlflow else None
    return {"verdict": str(report.verdict), "reasons": codes, "run_id": run_id, "sha256": report.model.sha256}


def _carry_out(
    found: Dossier, store: Store, outputs: Outputs, *, tracking_uri: str | None, experiment: str, accept_repaired: bool = False, parent: str | None = None
) -> AuditReport:
    """Examine, write, record, announce."""
    stages = Stages(found, store, limits(found.spec, found.device))
    with suppress(StageFailed):  # it is in the dossier, and the verdict says so
        examine(found, stages)
    report, request = write(found, stages, outputs, accept_repaired=accept_repaired, tracking_uri=tracking_uri, experiment=experiment)
    report, link = send(found, outputs, report, request | {"parent": parent}, stages.limits)
    announce(report, link)
    return report


def _settings(spec: str | None, **purify: str | None) -> AuditSpec:
    settings = read_spec(Path(spec)) if spec else AuditSpec()
    given = {name: value for name, value in purify.items() if value is not None}
    return settings.model_copy(update={"purify": settings.purify.model_copy(update=given)})


def write(found: Dossier, stages: Stages, outputs: Outputs, *, accept_repaired: bool, tracking_uri: str | None, experiment: str) -> tuple[AuditReport, Json]:
    """Write the output folder, the report in it; return the report, and what the tracking server is to be told."""
    from pipeline.tracking import absolute_tracking_uri

    store = stages.store
    drawn = _draw(found, stages)
    plots = {name: store.path(digest).read_bytes() for name, digest in drawn.items()}
    outputs.discard("plots", "recovered", "purified", "purified.onnx", "masks.npz", "input_example.npy", PENDING)
    model = outputs.keep_model(found.written.model, store) if found.written and found.after else None
    for name, png in plots.items():
        outputs.write(f"plots/{name}.png", png)
    if found.purified is not None:
        outputs.keep("masks.npz", found.purified.masks, store)
    for place, one in enumerate(found.suspected):
        _keep_trigger(one, f"recovered/{place}", outputs, store)
    if model is not None:
        outputs.write("input_example.npy", _example(found, store))
    found.files = Files(purified=model, html="report.html", sarif=SARIF, junit=JUNIT)
    report = found.report()
    outputs.write("report.html", render_html(report, plots=plots).encode())
    outputs.write(SARIF, render_sarif(report))
    outputs.write(JUNIT, render_junit(report, accept_repaired=accept_repaired))  # not recorded: it follows from an option too, and a run is one an audit key
    outputs.write("report.json", render_json(report))
    names = ["report.json", "report.html", SARIF, *(f"plots/{name}.png" for name in plots), *(["masks.npz"] if found.purified else [])]
    uri = absolute_tracking_uri(tracking_uri, Path.cwd())
    artifacts = {name: name for name in names}
    return report, found.record(report, tracking_uri=uri, experiment=experiment, artifacts=artifacts, model=model, description=markdown(report))


def _keep_trigger(one: Hypothesis, folder: str, outputs: Outputs, store: Store) -> None:
    """A recovered trigger as the next audit.yaml can name it: trigger.yaml, and its files beside it."""
    import yaml

    from pipeline.triggers import trigger_spec

    spec = trigger_spec(one.trigger)
    names = {field: f"{field}{EXTENSIONS[spec.kind]}" for field in spec.files()}
    for field, digest in spec.files().items():
        outputs.keep(f"{folder}/{names[field]}", digest, store)
    fields = spec.model_dump(mode="json", exclude_defaults=True) | {"kind": spec.kind} | names
    outputs.write(f"{folder}/trigger.yaml", yaml.safe_dump(fields, sort_keys=False).encode())


def _draw(found: Dossier, stages: Stages) -> dict[str, str]:
    """The pictures of the report, as digests; an audit is not lost for want of a picture."""
    if found.submitted is None:
        return {}
    drawn = {
        "gates": [gate.model_dump(mode="json") for gate in found.gates.gates] if found.gates else [],
        "detected": found.detected.model_dump(mode="json") if found.detected and found.detected.hypotheses else None,
        "suspected": found.spec.policy.max_suspicion,
        "purified": found.purified.model_dump(mode="json") if found.purified and found.after else None,
        "submitted": found.submitted.model_dump(mode="json"),
        "after": found.after.model_dump(mode="json") if found.after else None,
        "max_asr": found.spec.policy.max_asr,
    }
    try:
        return stages("plots", PlotsResult, drawn).plots
    except (StageFailed, Defect) as error:
        found.failures.pop("plots", None)
        found.remarks.append(Reason(code="plots.failed", text=f"The report has no pictures: {error}."))
        return {}


def _example(found: Dossier, store: Store) -> bytes:
    """Four calibration images as the model takes them, for whoever opens the recorded model: .npy, float32."""
    import io

    import numpy as np

    from pipeline.images import CalibrationSet

    assert found.scanned is not None and found.reading is not None
    shape = found.scanned.model.input_shape
    images = CalibrationSet.load({name: store.path(digest) for name, digest in found.inputs.calibration.items()})
    x = found.reading.input.tensor(images.pictures()[: shape[0] or 4])
    if found.reading.input.layout == "flat":
        x = x.reshape([len(x), *(axis or x.shape[1] for axis in shape[1:])])
    file = io.BytesIO()
    np.save(file, x, allow_pickle=False)
    return file.getvalue()


def send(found: Dossier, outputs: Outputs, report: AuditReport, request: Json, limits: Limits) -> tuple[AuditReport, str]:
    """Record the audit; when the tracking server does not take it, the request stays in the output folder to be sent later.

    Returns the report, and where a person finds it: the run in MLflow's UI, else the page.
    """
    link = (outputs.folder / "report.html").as_uri()
    started = time.monotonic()
    watcher().started("record")
    try:
        answer = record(absolute(request, outputs.folder), limits)
    except StageFailed as error:
        outputs.write_json(PENDING, {**request, "tracking_uri": without_credentials(request["tracking_uri"])})
        found.remarks.append(Reason(code="record.failed", text=f"{error}."))
        found.note("record", "failed", time.monotonic() - started, str(error))
        watcher().ended("record", "failed", time.monotonic() - started)
    else:
        found.mlflow = MlflowRecord(run_id=answer["run_id"], tracking_uri=answer["tracking_uri"])
        link = answer["ui"] or link
        found.note("record", "reused" if answer["reused"] else "ran", time.monotonic() - started)
        watcher().ended("record", "reused" if answer["reused"] else "ran", time.monotonic() - started)
    report = report.model_copy(update={"mlflow": found.mlflow, "stages": found.stages, "reasons": found.report().reasons})
    outputs.write("report.json", render_json(report))
    return report, link


def announce(report: AuditReport, link: str) -> None:
    """The result as Prefect artifacts: a table, and a link to the page."""
    key = f"audit-{report.model.sha256[:12]}"
    rows = [
        {
            "rate": f"{row.metric} {row.name}",
            "target": "" if row.kind == "clean" else target_text(row.target, report.labels, row.source),
            "submitted": rate_text(row.before),
            "repaired": rate_text(row.after),
        }
        for row in summary_rows(report)
    ]
    create_table_artifact(key=key, table=rows, description=markdown(report, table=False))
    create_link_artifact(key=f"{key}-report", link=link, link_text="the report", description=str(report.verdict))
