"""Audit many models: those that changed since the last time, one sub-run each, here or on whatever workers a deployment has."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_client, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.exceptions import MissingResult
from prefect.futures import as_completed
from prefect.states import Cancelling, Crashed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.audit import EXPERIMENT, Device, Json, audit_job
from flows.progress import Silent, watched_by, watcher
from pipeline.artifact import Store
from pipeline.config import AuditSpec, read_spec
from pipeline.errors import AuditError, BadInput, ModelRefused
from pipeline.findings import printable
from pipeline.fleet import Fleet, Member, bring, files_of, only_once, read_fleet, versions_of
from pipeline.inputs import Inputs, Job, limits, prepare
from pipeline.logbook import Line, OpenResult
from pipeline.outputs import plain_name
from pipeline.registry import FetchResult, ListResult, Named
from pipeline.results import IntakeResult, Value
from pipeline.sandbox import Limits, Progress, run
from pipeline.tracking import absolute_tracking_uri, without_password

CHANGED = "onnx-audit.verdict.changed"  # the Prefect event
SETTLED = ("ACCEPT", "REPAIRED", "REJECT", "REFUSED")  # what is not looked at again while nothing changes; the rest is tried again
ATTEMPTS = 3  # runs that a worker may take down with it
LOOK = 2.0  # seconds between two looks at the runs of a deployment
LOST = 120.0  # seconds after which a run that a worker took and did not begin is given up


class Options(Value):
    """What all audits of a fleet have in common."""

    tracking_uri: str
    experiment: str
    parent: str
    out: str | None


@flow(name="fleet", flow_run_name="fleet {fleet}", persist_result=True, result_serializer="json")
def fleet(
    fleet: str,
    *,
    deployment: str | None = None,
    workers: int = 1,
    again: bool = False,
    out: str | None = None,
    device: Device = "auto",
    seed: int = 0,
    tracking_uri: str | None = None,
    experiment: str = EXPERIMENT,
) -> Json:
    """Audit a fleet, and return what was found: `fleet`, `run_id`, and for each of `models` its verdict, and the one before.

    A model that cannot be read or audited stops no other.  Raises BadInput when fleet.yaml is wrong, RecordFailed when MLflow does not answer.

    Args:
        fleet: Path of the fleet.yaml, as the worker sees it.
        deployment: Deployment whose workers audit one model each, such as audit-job/audit-job; without it, all is done here.
        workers: How many audits run at once, where all is done here.
        again: Also what has not changed since the last time.
        out: Folder for the reports, where all is done here; without it MLflow alone has them.
        device: Where to search, repair and measure.
        seed: Of the split of the images, the search and the repair.
        tracking_uri: Of MLflow; default $MLFLOW_TRACKING_URI, else mlflow.db in the working folder.
        experiment: In MLflow.
    """
    plan, store = read_fleet(Path(fleet)), Store()
    uri = absolute_tracking_uri(tracking_uri, Path.cwd())
    if deployment and without_password(uri) != uri:  # parameters of runs are kept, and shown to all who may look at Prefect
        raise BadInput("MLflow's address holds a password; give that to fleet and workers as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    recorded = {"tracking_uri": uri, "experiment": experiment}
    assert plan.name is not None
    book = OpenResult.model_validate(connected("open-log", recorded | {"fleet": plan.name}))
    found: dict[str, Line] = {}
    members = _members(plan, Path(fleet).parent.absolute(), uri, found)
    jobs = _jobs(plan, members, uri, store, found, seed=seed, device=device)
    unchanged = {name for name, job in jobs.items() if not again and _settled(book.last.get(name), job.key)}
    found |= {name: book.last[name] for name in unchanged}
    todo = {name: job for name, job in jobs.items() if name not in unchanged}
    options = Options(**recorded, parent=book.run_id, out=str(Path(out).absolute()) if out else None)
    audits = _elsewhere(todo, options, deployment, since=book.before) if deployment else _here(todo, options, workers)
    for done, (name, line) in enumerate(audits, 1):
        found[name] = line
        watcher().moved(Progress(stage="fleet", text=f"{name}: {line.verdict}", done=done, total=len(todo)))
    order = [*(member.name for member in members), *(name for name in found if name not in {member.name for member in members})]
    found = {name: found[name] for name in order if name in found}
    changed = _changed(plan.name, found, book.last)
    _close(plan.name, book, found, changed, unchanged, recorded)
    models = {
        name: line.model_dump(mode="json") | {"before": book.last[name].verdict if name in book.last else None, "unchanged": name in unchanged}
        for name, line in found.items()
    }
    return {"fleet": plan.name, "run_id": book.run_id, "models": models}


@task(name="connected", task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retries=1, retry_delay_seconds=2)
def connected(stage: str, request: Json) -> Json:
    """A stage that talks to MLflow: never from the cache, since only the server knows what it holds."""
    return run(stage, {"request": request}, store=Store(), limits=Limits(), listener=watcher().moved)


def _members(plan: Fleet, home: Path, uri: str, found: dict[str, Line]) -> list[Member]:
    """Every model that the fleet's patterns match; a pattern that matches nothing is a line of its own."""
    members = []
    for place, entry in enumerate(plan.models):
        try:
            if entry.registered:
                pattern, which = versions_of(entry.models)
                listed = ListResult.model_validate(connected("list-versions", {"tracking_uri": uri, "pattern": pattern, "which": which}))
                if not listed.versions:
                    raise BadInput(f"no version matches {entry.models}")
                for version in listed.versions:
                    name = f"{version.name}-v{version.version}" if which == "all" else version.name
                    members.append(Member(name=printable(name), where=f"{version.name}/{version.version}", entry=place))
            else:
                members += [Member(name=name, where=where, entry=place) for name, where in files_of(entry.models, home).items()]
        except (AuditError, OSError) as error:
            found[printable(entry.models)] = Line(key="", verdict="FAILED", reasons=[printable(error)])
    return only_once(members)


def _jobs(plan: Fleet, members: list[Member], uri: str, store: Store, found: dict[str, Line], *, seed: int, device: Device) -> dict[str, Job]:
    """What there is to do for each model; what cannot be done is told to `found`."""
    jobs, prepared = {}, {}
    for done, member in enumerate(members, 1):
        watcher().moved(Progress(stage="fleet", text=f"taking in {member.name}", done=done, total=len(members)))
        try:
            if member.entry not in prepared:
                prepared[member.entry] = _prepared(plan, member.entry, seed, store)
            spec, inputs = prepared[member.entry]
            taken = _taken_in(member, registered=plan.models[member.entry].registered, uri=uri, spec=spec, store=store)
            jobs[member.name] = Job.of(member.name, taken.model, spec, inputs, seed=seed, device=device)
        except (AuditError, OSError) as error:
            verdict = "REFUSED" if isinstance(error, ModelRefused) else "FAILED"  # what else is wrong, the spec or the images, may be right tomorrow
            found[member.name] = Line(key="", verdict=verdict, reasons=[printable(error)])
    return jobs


def _prepared(plan: Fleet, entry: int, seed: int, store: Store) -> tuple[AuditSpec, Inputs]:
    given = plan.models[entry]
    spec = read_spec(given.spec) if given.spec else AuditSpec()
    return spec, prepare(spec, given.data, seed=seed, store=store)


def _taken_in(member: Member, *, registered: bool, uri: str, spec: AuditSpec, store: Store) -> IntakeResult:
    """The model in the store, wherever it was."""
    with store.scratch() as folder:
        source = Path(member.where)
        if registered:
            fetched = FetchResult.model_validate(
                connected("fetch", {"tracking_uri": uri, "named": Named.of(member.where).model_dump(), "experiment": EXPERIMENT})
            )
            for name, digest in fetched.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(store.path(digest), folder / name)
            source = folder / fetched.main
        elif "://" in member.where:
            source = bring(member.where, folder)
        return IntakeResult.model_validate(run("intake", {"source": str(source.resolve())}, store=store, limits=limits(spec, "cpu")))


def _settled(last: Line | None, key: str) -> bool:
    return last is not None and last.key == key and last.verdict in SETTLED


def _line(job: Job, answer: Json) -> Line:
    return Line(key=job.key, verdict=answer["verdict"], reasons=answer["reasons"], run_id=answer["run_id"])


def _failed(job: Job, error: BaseException | str, *, refused: bool = False) -> Line:
    return Line(key=job.key, verdict="REFUSED" if refused else "FAILED", reasons=[printable(error)])


@task(name="member", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def member_audit(name: str, job: Job, options: Options) -> Line:
    """Audit one model here; what goes wrong with it is its line."""
    out = str(Path(options.out) / plain_name(name)) if options.out else None
    given = {"tracking_uri": options.tracking_uri, "experiment": options.experiment, "parent": options.parent}
    with watched_by(Silent()):
        try:
            return _line(job, audit_job(job.model_dump(mode="json"), out=out, **given))
        except AuditError as error:
            return _failed(job, error, refused=isinstance(error, ModelRefused))


def _here(jobs: dict[str, Job], options: Options, workers: int) -> Iterator[tuple[str, Line]]:
    """The audits, some at a time, in this process; each stage is a child of it anyway."""
    runner: ThreadPoolTaskRunner[Any]
    with ThreadPoolTaskRunner(max_workers=workers) as runner:
        names: dict[Any, str] = {
            runner.submit(member_audit, {"name": name, "job": job, "options": options}): name  # type: ignore[arg-type]
            for name, job in jobs.items()
        }
        for future in as_completed(list(names)):
            answer = future.result(raise_on_failure=False)
            yield names[future], answer if isinstance(answer, Line) else _failed(jobs[names[future]], answer)


def _elsewhere(jobs: dict[str, Job], options: Options, deployment: str, *, since: str) -> Iterator[tuple[str, Line]]:
    """The audits, as runs of a deployment, which its workers take.  since: the last finished fleet; the runs of one that died since are taken over.

    A run whose worker died is CRASHED sooner or later (by Prefect's automation for runs without a heartbeat, automations.yaml), and is made again; its
    finished stages are in the store.
    """
    runs: dict[str, FlowRun] = {}
    attempts = dict.fromkeys(jobs, 1)
    with _cancelled_with_us(runs):
        for name, job in jobs.items():
            runs[name] = _start(name, job, options, deployment, f"{since}-1")
        while runs:
            time.sleep(LOOK)
            for name, now in _states(runs).items():
                lost = _lost(now)
                if not (now.state and now.state.is_final()) and not lost:
                    continue
                if lost:  # should that worker be slow and not dead, Prefect lets no run begin that is over
                    _set_state(now, Crashed(message="a worker took it and did not begin"))
                if (lost or now.state_type == StateType.CRASHED) and attempts[name] < ATTEMPTS:
                    attempts[name] += 1
                    runs[name] = _start(name, jobs[name], options, deployment, f"{since}-{attempts[name]}")
                    continue
                del runs[name]
                yield name, _failed(jobs[name], f"{ATTEMPTS} workers took it, and none began") if lost else _outcome(jobs[name], now)


def _start(name: str, job: Job, options: Options, deployment: str, which: str) -> FlowRun:
    """A run of the deployment; the same, where it was asked for before."""
    parameters = {"job": job.model_dump(mode="json"), **options.model_dump(exclude={"out"})}
    begun: FlowRun = run_deployment(  # type: ignore[assignment]
        deployment, parameters=parameters, timeout=0, flow_run_name=f"audit {name}", idempotency_key=f"{job.key}-{which}", as_subflow=True
    )
    return begun


def _states(runs: dict[str, FlowRun]) -> dict[str, FlowRun]:
    """How the runs are now, two hundred a request."""
    ids, found = [run.id for run in runs.values()], {}
    with get_client(sync_client=True) as client:
        for start in range(0, len(ids), 200):
            some = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + 200])), limit=200)
            found.update({run.id: run for run in some})
    return {name: found[run.id] for name, run in runs.items() if run.id in found}


def _lost(run: FlowRun) -> bool:
    """Whether a worker took a run and died before it began."""
    if run.state is None or not run.state.is_pending() or run.state.timestamp is None:
        return False
    return time.time() - run.state.timestamp.timestamp() > LOST


def _outcome(job: Job, ended: FlowRun) -> Line:
    """What a run that is over found."""
    state = ended.state
    assert state is not None
    if state.is_completed():
        try:
            return _line(job, state.result())
        except MissingResult as error:
            return _failed(job, f"it ran, and its result cannot be read here: give workers and fleet a result storage in common ({error})")
    message = state.message or state.name or "no word of why"
    return _failed(job, message, refused=f"{ModelRefused.__name__}:" in message)


@contextmanager
def _cancelled_with_us(runs: dict[str, FlowRun]) -> Iterator[None]:
    """When the fleet is interrupted or cancelled, what it has asked for is cancelled too."""
    try:
        yield
    except BaseException:
        for one in runs.values():
            _set_state(one, Cancelling(message="its fleet was cancelled"))
        raise


def _set_state(run: FlowRun, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state)


def _changed(name: str, found: dict[str, Line], last: dict[str, Line]) -> dict[str, str]:
    """Models whose verdict is another than the last time -> that verdict; each is an event that an automation can wait for."""
    changed = {
        model: last[model].verdict if model in last else "UNSEEN" for model, line in found.items() if model not in last or last[model].verdict != line.verdict
    }
    for model, before in changed.items():
        line = found[model]
        emit_event(
            CHANGED,
            resource={"prefect.resource.id": f"onnx-audit.model.{name}.{model}", "prefect.resource.name": model, "onnx-audit.fleet": name},
            payload={"model": model, "before": before, "verdict": line.verdict, "reasons": line.reasons, "mlflow_run_id": line.run_id},
        )
    return changed


def _close(name: str, book: OpenResult, found: dict[str, Line], changed: dict[str, str], unchanged: set[str], recorded: Json) -> None:
    """Into MLflow, and as a Prefect artifact: the counts, and a table of what there is to read."""
    counts = Counter(line.verdict for line in found.values())
    summary = (
        f"{len(found)} models: {', '.join(f'{number} {verdict}' for verdict, number in sorted(counts.items()))}; {len(unchanged)} unchanged, not audited again"
    )
    rows = [
        {"model": model, "verdict": line.verdict, "before": changed.get(model, "same"), "reasons": ", ".join(line.reasons), "MLflow run": line.run_id or ""}
        for model, line in found.items()
    ]
    metrics = {f"models.{verdict.lower()}": float(number) for verdict, number in counts.items()}
    metrics |= {"models": float(len(found)), "changed": float(len(changed)), "unchanged": float(len(unchanged))}
    lines = {model: line.model_dump(mode="json") for model, line in found.items()}
    close = {"tracking_uri": recorded["tracking_uri"], "run_id": book.run_id, "lines": lines, "metrics": metrics, "description": summary}
    connected("close-log", close)
    key = re.sub(r"[^a-z0-9]+", "-", f"fleet-{name.lower()}").strip("-")  # all that Prefect takes
    create_table_artifact(key=key, table=rows, description=summary)
