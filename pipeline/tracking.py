"""The MLflow record of an audit: one run per audit, ever.  The only file that imports MLflow, and only when it records.

What MLflow 3.17 does, as measured, and what follows from it:

- `mlflow.onnx.log_model` parses the file and serialises it again.  A file that protobuf wrote comes back byte for byte; one with
  external data, or with its fields in another order, does not.  So what lies in the store is read back and hashed; when it is not
  the audited file, that file itself is logged as `purified.onnx` (its external data beside it).  Both digests are tags.
- It opens the model with onnxruntime to try the input example, so this belongs in a child, like everything that opens a model.
- A new SQLite store is migrated through every schema that MLflow ever had, with an fsync each: 6 s, or 1 s when not synchronised.
- A parameter cannot be written twice with different values; a metric can, and then counts twice unless its time is the same too.
- Any import from MLflow costs what all of it does, 1 s; that is most of finding a run again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

from pipeline.artifact import sha256
from pipeline.errors import AuditError, RecordFailed
from pipeline.findings import printable
from pipeline.results import Step, Value

if TYPE_CHECKING:
    import onnx
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import ModelSignature

Item = TypeVar("Item")

KEY = "audit.key"  # the tag that makes an audit's run findable
MODEL = "purified"  # the logged model: `runs:/RUN/purified`

MOST_KEY = 250  # characters, MLflow's limit for the name of a parameter, metric or tag
MOST_PARAM = 6000  # characters
MOST_TAG = 8000  # characters
METRICS_AT_ONCE = 1000  # MLflow's limit for one batch
PARAMS_AT_ONCE = 10  # ten of the longest, escaped as JSON, stay below the 1 MB that MLflow takes in one batch
MOST_EMBEDDED = 2**31 - 2**20  # bytes: protobuf cannot write 2 GiB

_QUIET = {
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# A server that is not there shall be known in some 10 s; one that has answered may take its time over a large file.
_CONTACT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
_TRANSFER = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or not PurePosixPath(path).name or ".." in PurePosixPath(path).parts:
        raise ValueError(f"an artifact's path must stay inside the run, not {printable(path)}")
    return path


class RecordRequest(Value):
    """What to record, and where.

    audit_key: hex digest that identifies the audit.  history: the purifier's figures by step.  artifacts: path in the run -> local
    file.  model: the purified file, external data beside it.  input_example: .npy, (N, ...) float32, model-ready.  description:
    Markdown.  parent: run that a new one hangs under.  Text may come from a submitted file: it is made fit for MLflow here.
    """

    tracking_uri: str
    experiment: str
    audit_key: str = Field(pattern=r"^[0-9a-f]{8,128}$")
    run_name: str
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    history: list[Step] = []
    tags: dict[str, str] = {}
    artifacts: dict[Annotated[str, AfterValidator(_inside)], str] = {}
    model: str | None = None
    input_example: str | None = None
    description: str = ""
    parent: str | None = None


class RecordResult(Value):
    """Where the record is.  reused: it was there already.  ui: link to the run, when the store is a server.  No URI holds a password."""

    run_id: str
    tracking_uri: str
    experiment_id: str
    reused: bool
    ui: str | None = None


def absolute_tracking_uri(given: str | None, folder: Path) -> str:
    """`given`, else $MLFLOW_TRACKING_URI, else `folder`/mlflow.db; paths are made absolute, as stages run in another folder."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, slashes, path = uri.partition(":///")
    if scheme == "sqlite" and slashes:
        return f"sqlite:///{folder.absolute() / path}"
    is_path = ":" not in uri and (os.sep in uri or (folder / uri).exists())
    return str(folder.absolute() / uri) if is_path else uri


def record(request: RecordRequest) -> RecordResult:
    """Write an audit to MLflow, or find it there.

    A finished run with this audit's key is returned as it is; one that a dead process left is carried on; otherwise one is made.
    Raises RecordFailed when the store cannot be reached, refuses something, or fails half-way.
    """
    then = "; the report is on disk, and `onnx-audit record OUT` sends it later"
    with talking(request.tracking_uri), answering(request.tracking_uri, "take the record", then=then):
        with contact():
            client = connect(request.tracking_uri)
            experiment = experiment_of(client, request.experiment)
            found = _find(client, experiment, request.audit_key)
        reused = found is not None and found.info.status == "FINISHED"
        with transfer():
            run = found or _create(client, experiment, request)
            if not reused:
                with _ending(client, run.info.run_id):
                    _write(client, run, request)
    uri = without_password(request.tracking_uri)
    ui = f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run.info.run_id}" if uri.startswith(("http://", "https://")) else None
    return RecordResult(run_id=run.info.run_id, tracking_uri=uri, experiment_id=experiment, reused=reused, ui=ui)


@contextlib.contextmanager
def answering(uri: str, what: str, *, then: str = "") -> Iterator[None]:
    """Turn what MLflow raises into RecordFailed, which says what it did not do, and what to do."""
    try:
        yield
    except AuditError:
        raise
    except Exception as error:
        raise RecordFailed(f"MLflow at {without_password(uri)} did not {what} ({reason(error)}){then}") from error


@contextlib.contextmanager
def talking(uri: str) -> Iterator[None]:
    """MLflow kept quiet, and told where it is, whatever else this process uses it for."""
    with _environment(_QUIET | {"MLFLOW_TRACKING_URI": uri}, override=("MLFLOW_TRACKING_URI",)):
        import mlflow

        elsewhere = mlflow.get_tracking_uri()  # another address only if set_tracking_uri was given one, which goes before the environment
        if elsewhere == uri:
            yield
            return
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(elsewhere)


def contact() -> contextlib.AbstractContextManager[None]:
    """A server that is not there is known in seconds."""
    return _environment(_CONTACT)


def transfer() -> contextlib.AbstractContextManager[None]:
    """A server that has answered may take its time over a large file."""
    return _environment(_TRANSFER)


def connect(uri: str) -> MlflowClient:
    """A client; a new SQLite store is made where there is none."""
    from mlflow import MlflowClient

    scheme, _, path = uri.partition("?")[0].partition(":///")
    if scheme != "sqlite" or not path.startswith("/"):
        return MlflowClient(uri)
    database = Path(path)
    database.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(database.parent):  # artifacts go to ./mlruns as it was when the store was opened
        if not database.exists():
            _create_database(database)
        return MlflowClient(uri)


def _create_database(database: Path) -> None:
    """Make an empty store under another name, then show it whole: a killed or a second process never leaves or meets half of one."""
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, _: object) -> None:
        connection.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")

    with tempfile.TemporaryDirectory(dir=database.parent, prefix=f".{database.name}-") as folder:
        fresh = Path(folder) / database.name
        event.listen(Engine, "connect", hurry)
        try:
            MlflowClient(f"sqlite:///{fresh}")
        finally:
            event.remove(Engine, "connect", hurry)
        try:
            os.link(fresh, database)
        except FileExistsError:
            pass  # another audit was first
        except OSError:
            fresh.replace(database)  # a file system without hard links


def experiment_of(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is made where there is none."""
    from mlflow import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another audit was first
            return str(found.experiment_id)
        raise


def _find(client: MlflowClient, experiment: str, key: str) -> Run | None:
    """The run of an audit: a finished one, else the oldest."""
    runs = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", order_by=["attributes.start_time ASC", "attributes.run_id ASC"])
    return next((run for run in runs if run.info.status == "FINISHED"), next(iter(runs), None))


def _create(client: MlflowClient, experiment: str, request: RecordRequest) -> Run:
    """A new run, with its tags; or the run of a process that was quicker."""
    _, dropped = _figures(request)
    tags = {_tag_key(key): printable(value, limit=MOST_TAG - 1) for key, value in request.tags.items()}
    if dropped:
        tags["record.dropped_metrics"] = printable("not finite: " + ", ".join(dropped), limit=MOST_TAG - 1)
    if request.description:
        tags["mlflow.note.content"] = "\n".join(printable(line, limit=MOST_TAG) for line in request.description.splitlines())[:MOST_TAG]
    tags |= {"mlflow.source.name": "onnx-audit", KEY: request.audit_key}
    if request.parent:
        tags["mlflow.parentRunId"] = request.parent
    mine = client.create_run(experiment, tags=tags, run_name=printable(request.run_name, limit=MOST_KEY - 1))
    first = _find(client, experiment, request.audit_key)
    if first is None or first.info.run_id == mine.info.run_id:
        return mine
    client.delete_run(mine.info.run_id)
    return first


@contextlib.contextmanager
def _ending(client: MlflowClient, run_id: str) -> Iterator[None]:
    """A run that ends, FINISHED or FAILED."""
    try:
        yield
    except Exception:
        with contextlib.suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def _write(client: MlflowClient, run: Run, request: RecordRequest) -> None:
    """Write what the run does not hold yet."""
    from mlflow.entities import Metric, Param

    run_id = run.info.run_id
    texts = {_key(key): printable(value, limit=MOST_PARAM - 1) for key, value in request.params.items()}
    params = [Param(key, value) for key, value in texts.items() if key not in run.data.params]
    for some in _chunks(params, PARAMS_AT_ONCE):
        client.log_batch(run_id, params=some)

    held = {(metric.key, metric.step) for key in run.data.metrics for metric in client.get_metric_history(run_id, key)}
    figures, _ = _figures(request)
    metrics = [Metric(key, value, run.info.start_time, step) for (key, step), value in figures.items() if (key, step) not in held]
    for these in _chunks(metrics, METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=these)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, local in request.artifacts.items():
            _log_file(client, run_id, path, Path(local), folder / "files")
        if request.model is not None and "record.stored_sha256" not in run.data.tags:
            _log_model(client, run, Path(request.model), request.input_example, folder)


def _log_file(client: MlflowClient, run_id: str, path: str, local: Path, folder: Path) -> None:
    """Log a file under a name of its own: MLflow names it after the local file, which may be called by its digest."""
    link, parent = folder / path, PurePosixPath(path).parent
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(local.absolute())
    client.log_artifact(run_id, str(link), str(parent) if parent.parts else None)


def _log_model(client: MlflowClient, run: Run, path: Path, input_example: str | None, folder: Path) -> None:
    """Log the purified file as an MLflow model, and prove which bytes the store holds.

    Run and model are named throughout: the run and the experiment that this process may have made MLflow's active ones are not ours.

    External data is looked for in the initializers of the main graph.  The model is served on the CPU unless told otherwise: MLflow
    opens it here with the providers that it writes down, and CUDA cannot live under this process's memory limit.
    """
    import mlflow
    import mlflow.onnx
    import onnx

    model = onnx.load(path.absolute(), load_external_data=False)
    data = sorted({entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"})
    files = {"purified.onnx": path} | {_inside(location): path.parent / location for location in data}
    onnx.load_external_data_for_model(model, str(path.parent.absolute()))
    run_id = run.info.run_id
    logged = client.create_logged_model(run.info.experiment_id, name=MODEL, source_run_id=run_id, params=client.get_run(run_id).data.params)
    info = mlflow.onnx.log_model(
        model,
        name=MODEL,
        model_id=logged.model_id,
        run_id=run_id,
        signature=_signature(model),
        input_example=None if input_example is None else _example(model, Path(input_example)),
        pip_requirements=_requirements(),
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=sum(file.stat().st_size for file in files.values()) > MOST_EMBEDDED,
    )
    stored = mlflow.artifacts.download_artifacts(artifact_uri=f"{info.artifact_path}/model.onnx", dst_path=str(folder))
    digests = {"purified": sha256(path), "stored": sha256(Path(stored))}
    if len(set(digests.values())) > 1:
        for name, file in files.items():
            _log_file(client, run_id, name, file, folder / "kept")
    for name, digest in digests.items():  # `stored` last: it says that the model is there
        client.set_tag(run_id, f"record.{name}_sha256", digest)


def _signature(model: onnx.ModelProto) -> ModelSignature | None:
    """What the graph declares, -1 where an axis is dynamic.  Outputs are left out when one has no shape."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    def schema(values: Iterable[onnx.ValueInfoProto], *, named: bool) -> Schema | None:
        specs: list[ColSpec | TensorSpec] = []
        for value in values:
            tensor = value.type.tensor_type
            if not tensor.HasField("shape"):
                return None
            shape = tuple(axis.dim_value if axis.dim_value > 0 else -1 for axis in tensor.shape.dim)
            specs.append(TensorSpec(tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name if named else None))
        return Schema(specs) if specs else None

    inputs = schema(_inputs(model)[:1], named=False)  # unnamed: then it takes a bare array
    return None if inputs is None else ModelSignature(inputs, schema(model.graph.output, named=True))


def _example(model: onnx.ModelProto, path: Path) -> np.ndarray[Any, Any]:
    """The input example, no longer than the batch that the model takes."""
    axes = _inputs(model)[0].type.tensor_type.shape.dim
    example: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    return example[: axes[0].dim_value or None] if axes else example


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _requirements() -> list[str]:
    """What it takes to run the model.  Left alone, MLflow names onnxruntime and onnxruntime-gpu, which share one folder."""
    installed = {}
    for name in ("onnx", "onnxruntime-gpu", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    if "onnxruntime-gpu" in installed:
        installed.pop("onnxruntime", None)
    return [f"{name}=={version}" for name, version in installed.items()]


def _figures(request: RecordRequest) -> tuple[dict[tuple[str, int], float], list[str]]:
    """Finite metrics by (key, step), the final ones at step 0; and the names of those that are not finite."""
    every = [(key, 0, value) for key, value in request.metrics.items()]
    every += [(key, step.step, value) for step in request.history for key, value in step.metrics.items()]
    finite = {(_key(key), step): value for key, step, value in every if math.isfinite(value)}
    return finite, [f"{key} at {step}" for key, step, value in every if not math.isfinite(value)]


def _key(text: str) -> str:
    """`text` as MLflow allows a name to be: few characters, and no path that resolves to another."""
    cut = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", text)[:MOST_KEY]
    return "/".join(part for part in cut.split("/") if part not in {"", ".", ".."}) or "_"


def _tag_key(text: str) -> str:
    """As `_key`, but out of what MLflow and this file keep to themselves."""
    key = _key(text)
    return f"_{key}"[:MOST_KEY] if key.startswith(("mlflow.", "record.")) else key


def _chunks(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def without_password(text: str) -> str:
    """`text` with the user and password taken out of the URIs in it."""
    return re.sub(r"://(?:[^\s@/:]*:\S*|[^\s@/]+)@", "://", text)


def reason(error: BaseException) -> str:
    """Why, in one line.  What the system said (`Connection refused`) is clearer than what was made of it on the way up."""
    deepest, cause = error, error.__cause__ or error.__context__
    while cause:
        deepest = cause if isinstance(cause, OSError) else deepest
        cause = cause.__cause__ or cause.__context__
    return printable(f"{type(deepest).__name__}: {without_password(str(deepest))}")


@contextlib.contextmanager
def _environment(values: Mapping[str, str], *, override: Collection[str] = ()) -> Iterator[None]:
    """Set environment variables for a while; those that the user has set stay as they are, but for `override`."""
    before = {name: os.environ.get(name) for name in values if name in override or name not in os.environ}
    os.environ.update({name: values[name] for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
