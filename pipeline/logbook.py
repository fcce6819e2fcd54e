"""The MLflow run of a fleet: its models' audits hang under it, and what was found is in it for the next time.

A fleet has no memory of its own.  Whichever machine runs it reads `fleet.json` in the last finished run of that name, and writes the next one.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.findings import printable
from pipeline.results import Value
from pipeline.tracking import MOST_TAG, answering, connect, contact, experiment_of, talking, transfer

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLEET = "fleet.name"  # tag: the fleet that a run is of
BOOK = "fleet.json"


class Line(Value):
    """What was found of a model.

    key: of the audit, `pipeline.inputs.audit_key`; empty where it never came to one.  verdict: REFUSED where the file is no model that can be audited, FAILED
    where it was not audited.  reasons: codes, or why.
    """

    key: str
    verdict: str
    reasons: list[str] = []
    run_id: str | None = None


class OpenRequest(Value):
    """Which fleet, and where it is recorded."""

    tracking_uri: str
    experiment: str
    fleet: str


class OpenResult(Value):
    """run_id: the new run.  before: the run of the last time; empty where there is none.  last: what was found then, by model."""

    run_id: str
    before: str
    last: dict[str, Line]


class CloseRequest(Value):
    """What was found this time.  metrics: counts by verdict.  description: Markdown."""

    tracking_uri: str
    run_id: str
    lines: dict[str, Line]
    metrics: dict[str, float]
    description: str


class CloseResult(Value):
    """The run that holds it."""

    run_id: str


def open_log(request: OpenRequest) -> OpenResult:
    """Begin a run of a fleet, and read the one before it.  Raises RecordFailed."""
    with talking(request.tracking_uri), answering(request.tracking_uri, "keep the fleet's log"):
        with contact():
            client = connect(request.tracking_uri)
            experiment = experiment_of(client, request.experiment)
        with transfer():
            before, last = _last(client, experiment, request.fleet)
            name = printable(request.fleet)
            run = client.create_run(experiment, run_name=f"fleet {name}", tags={FLEET: name, "mlflow.source.name": "onnx-audit"})
    return OpenResult(run_id=run.info.run_id, before=before, last=last)


def close_log(request: CloseRequest) -> CloseResult:
    """Write what was found, and finish the run.  Raises RecordFailed."""
    with talking(request.tracking_uri), answering(request.tracking_uri, "keep the fleet's log"), transfer():
        client = connect(request.tracking_uri)
        for name, value in request.metrics.items():
            client.log_metric(request.run_id, name, value)
        with tempfile.TemporaryDirectory() as folder:
            book = Path(folder) / BOOK
            book.write_text(json.dumps({name: line.model_dump(mode="json") for name, line in request.lines.items()}, indent=2) + "\n")
            client.log_artifact(request.run_id, str(book))
        client.set_tag(request.run_id, "mlflow.note.content", request.description[:MOST_TAG])
        client.set_terminated(request.run_id)
    return CloseResult(run_id=request.run_id)


def _last(client: MlflowClient, experiment: str, fleet: str) -> tuple[str, dict[str, Line]]:
    """The last finished run of a fleet, and what it found; nothing where there is none."""
    import mlflow

    quoted = printable(fleet).replace("'", "\\'")
    wanted = f"tags.`{FLEET}` = '{quoted}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"], max_results=1)
    if not runs:
        return "", {}
    with tempfile.TemporaryDirectory() as folder:
        book = mlflow.artifacts.download_artifacts(run_id=runs[0].info.run_id, artifact_path=BOOK, dst_path=folder)
        return runs[0].info.run_id, {name: Line.model_validate(line) for name, line in json.loads(Path(book).read_bytes()).items()}
