"""Review a version in the MLflow registry: fetch it, audit it, and write onto it what came of that."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.audit import EXPERIMENT, audit
from flows.progress import watcher
from pipeline.artifact import Store
from pipeline.config import AuditSpec, read_spec
from pipeline.errors import AuditError, BadInput, ModelRefused, SpecRefused
from pipeline.inputs import digest, prepare
from pipeline.outputs import Outputs, plain_name
from pipeline.provenance import version
from pipeline.registry import AUDITED, PARENT, REVIEW, RUN, FetchResult, ListResult, Named, NoteResult
from pipeline.report.model import AuditReport
from pipeline.report.summary import markdown
from pipeline.sandbox import Limits, run
from pipeline.tracking import absolute_tracking_uri

Json = dict[str, Any]


@task(name="fetch", task_run_name="fetch", cache_policy=NO_CACHE, persist_result=False, retries=1, retry_delay_seconds=2)
def fetch(request: Json) -> Json:
    """Download the version: never from the cache, since only the registry knows what an alias points at."""
    return run("fetch", {"request": request}, store=Store(), limits=Limits(), listener=watcher().moved)


@task(name="annotate", task_run_name="annotate", cache_policy=NO_CACHE, persist_result=False, retries=1, retry_delay_seconds=2)
def annotate(request: Json) -> Json:
    """Write onto the version."""
    return run("annotate", {"request": request}, store=Store(), limits=Limits(), listener=watcher().moved)


@flow(name="review", flow_run_name="review {model}", persist_result=False)
def review(
    model: str,
    *,
    data: str | None = None,
    spec: str | None = None,
    catalogue: str | None = None,
    out: str | None = None,
    approve: str | None = None,
    accept_repaired: bool = False,
    again: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    tracking_uri: str | None = None,
    experiment: str = EXPERIMENT,
) -> Json:
    """Review a version, and return what was found and what was written: `name`, `version`, `verdict`, `reused`, `repaired`, `aliases`, `report`.

    Nothing is taken from what the registry says of the version.  Raises BadInput, RecordFailed.

    Args:
        model: NAME/VERSION or NAME@ALIAS.
        data: Clean images, as for an audit.
        spec: Path of an audit.yaml, as the worker sees it.
        catalogue: YAML file of lines `PATTERN: audit.yaml`, which says which spec belongs to which names.
        out: Folder for what is written; default audits/NAME-vVERSION in the working folder.
        approve: Alias that is moved to the version that may be used: this one when it is ACCEPTed, the repaired one when `accept_repaired` says so.
        accept_repaired: A repaired version may be used.
        again: Also when this very review was made before.
        device: Where to search, repair and measure.
        seed: Of the split of the images, the search and the repair.
        tracking_uri: Of MLflow; default $MLFLOW_TRACKING_URI, else mlflow.db in the working folder.
        experiment: In MLflow; vendors must not be able to write there.
    """
    uri = absolute_tracking_uri(tracking_uri, Path.cwd())
    named, store = Named.of(model), Store()
    if spec is None and catalogue is not None:
        spec = str(spec_of(Path(catalogue), named.name))
    settings = read_spec(Path(spec)) if spec else AuditSpec()
    inputs = prepare(settings, Path(data) if data else None, seed=seed, store=store)
    fetched = FetchResult.model_validate(fetch({"tracking_uri": uri, "named": named.model_dump(), "experiment": experiment}))
    follows = [fetched.files, settings.model_dump(mode="json", exclude={"data", "triggers", "limits"}), inputs.calibration, inputs.holdout, inputs.triggers]
    key = digest([*follows, seed, device, approve, accept_repaired, version()])
    found: Json = {"name": fetched.name, "version": fetched.version}
    if (verdict := _known(fetched, key)) and not again:
        return found | {"verdict": verdict, "repaired": fetched.tags.get("audit.repaired_version"), "reused": True, "aliases": {}, "report": None}
    outputs = Outputs(Path(out)) if out else Outputs(Path("audits") / f"{plain_name(fetched.name)}-v{fetched.version}")
    outputs.check()
    for name, kept in fetched.files.items():
        outputs.keep(f"submitted/{name}", kept, store)
    ours = {REVIEW: key, "audit.version": version()}
    note = {"tracking_uri": uri, "name": fetched.name, "version": fetched.version}
    try:
        answer = audit.with_options(flow_run_name=lambda: f"audit {fetched.name}/{fetched.version}")(  # a function, as Prefect fills braces in a text
            str(outputs.folder / "submitted" / fetched.main),
            data=data,
            spec=spec,
            out=str(outputs.folder),
            accept_repaired=accept_repaired,
            device=device,
            seed=seed,
            tracking_uri=uri,
            experiment=experiment,
        )
    except ModelRefused as error:
        why = {"audit.verdict": "REFUSED", "audit.reasons": str(error), **ours}
        annotate(note | {"tags": why, "description": f"**REFUSED**: this cannot be audited: {error}\n"})
        raise
    report = AuditReport.model_validate(answer)
    said = _said(report, ours, approve=approve, accept_repaired=accept_repaired, register=PARENT not in fetched.tags)
    written = NoteResult.model_validate(annotate(note | said))
    return found | {"verdict": str(report.verdict), "reused": False, "repaired": written.repaired, "aliases": written.aliases, "report": answer}


def _known(fetched: FetchResult, key: str) -> str | None:
    """The verdict of this very review, when it was made before.

    A vendor may be able to write the version's tags, and not our runs: ACCEPT is believed of a run, REFUSED of whoever says it.
    """
    verdict = fetched.tags.get("audit.verdict")
    if fetched.tags.get(REVIEW) != key:
        return None
    recorded = fetched.reviewed if verdict != "REFUSED" else fetched.tags
    return verdict if recorded.get(REVIEW) == key and recorded.get("audit.verdict") == verdict else None


def _said(report: AuditReport, ours: dict[str, str], *, approve: str | None, accept_repaired: bool, register: bool) -> Json:
    """The tags, the description and the aliases that follow from a report.  register: whether a repair becomes a version; one of a repair does not."""
    purified, run_id = report.purified, report.mlflow.run_id if report.mlflow else None
    repaired = register and report.verdict == "REPAIRED" and purified is not None and run_id is not None
    tags = {
        "audit.verdict": str(report.verdict),
        "audit.reasons": ", ".join(dict.fromkeys(reason.code for reason in report.reasons)),
        "audit.model_sha256": report.model.sha256,
        "audit.date": report.provenance.created.date().isoformat(),
        "audit.calibration_sha256": report.provenance.calibration_sha256 or "",
        "audit.holdout_sha256": report.provenance.holdout_sha256 or "",
        **({RUN: run_id} if run_id else {}),
        **({"audit.purified_sha256": purified.sha256} if repaired and purified else {}),
        **ours,
    }
    passed = {AUDITED: report.verdict == "ACCEPT" or repaired}
    if approve:
        passed[approve] = report.verdict == "ACCEPT" or (repaired and accept_repaired)
    made = {"audit.verdict_of_parent": "REPAIRED", "audit.purified_sha256": purified.sha256, RUN: str(run_id)} if repaired and purified else {}
    return {
        "tags": tags,
        "description": markdown(report),
        "run_id": run_id,
        "repaired": run_id if repaired else None,
        "repaired_tags": made,
        "aliases": [alias for alias, good in passed.items() if good],
        "withdrawn": [alias for alias, good in passed.items() if not good],
    }


@flow(name="poll", flow_run_name="poll {pattern}", persist_result=True, result_serializer="json")
def poll(
    pattern: str = "*",
    *,
    catalogue: str | None = None,
    which: str = "latest",
    approve: str | None = None,
    accept_repaired: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    tracking_uri: str | None = None,
    experiment: str = EXPERIMENT,
) -> Json:
    """Review every version in the registry that was not reviewed as it is asked for now; return verdict by NAME/VERSION.

    One that cannot be reviewed stops no other: REFUSED or FAILED stands in its place.

    Args:
        pattern: Of registered models' names, with `*`.
        catalogue: YAML file of lines `PATTERN: audit.yaml`, as the worker sees it; without it, every model is audited by the defaults.
        which: `latest`, `all`, or `@ALIAS`.
        approve: As for a review.
        accept_repaired: As for a review.
        device: As for a review.
        seed: As for a review.
        tracking_uri: As for a review.
        experiment: As for a review.
    """
    uri, verdicts = absolute_tracking_uri(tracking_uri, Path.cwd()), {}
    listed = run("list-versions", {"request": {"tracking_uri": uri, "pattern": pattern, "which": which}}, store=Store(), limits=Limits())
    how: Json = {"catalogue": catalogue, "approve": approve, "accept_repaired": accept_repaired, "device": device, "seed": seed}
    for one in ListResult.model_validate(listed).versions:
        name = f"{one.name}/{one.version}"
        try:
            with Store().scratch() as folder:
                answer: Json = review(name, out=str(folder), tracking_uri=uri, experiment=experiment, **how)  # type: ignore[assignment]
            verdicts[name] = str(answer["verdict"])
        except AuditError as error:
            verdicts[name] = f"{'REFUSED' if isinstance(error, ModelRefused) else 'FAILED'}: {error}"
    return verdicts


def spec_of(catalogue: Path, name: str) -> Path:
    """The audit.yaml that a catalogue gives a name: of the first line `PATTERN: PATH` whose pattern matches it.  Raises SpecRefused, BadInput."""
    try:
        entries = yaml.safe_load(catalogue.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SpecRefused(f"the catalogue {catalogue} cannot be read ({type(error).__name__})") from error
    if not isinstance(entries, dict) or not all(isinstance(path, str) for path in entries.values()):
        raise SpecRefused(f"the catalogue {catalogue} must hold lines `PATTERN: PATH of an audit.yaml`")
    for pattern, path in entries.items():
        if fnmatch.fnmatchcase(name, str(pattern)):
            return catalogue.parent / str(path)
    raise BadInput(f"the catalogue {catalogue} has no spec for {name}; add a line `{name}: audit.yaml`")
