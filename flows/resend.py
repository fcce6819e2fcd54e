"""Send the record of an audit that the tracking server did not take when it ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.artifact import Store
from pipeline.errors import BadInput
from pipeline.outputs import PENDING, Outputs, absolute
from pipeline.report.json import render_json
from pipeline.report.model import AuditReport, MlflowRecord
from pipeline.sandbox import Limits, run


def resend(folder: Path, *, tracking_uri: str | None) -> dict[str, Any]:
    """Record the audit in `folder`, and write the run into its report.  Raises BadInput, RecordFailed."""
    outputs = Outputs(folder)
    pending = outputs.folder / PENDING
    if not pending.is_file():
        raise BadInput(f"there is nothing to send in {folder}: {PENDING} is written there when a record was not taken")
    request = json.loads(pending.read_text())
    from pipeline.tracking import absolute_tracking_uri

    request["tracking_uri"] = absolute_tracking_uri(tracking_uri, Path.cwd()) if tracking_uri else request["tracking_uri"]
    answer = run("record", {"request": absolute(request, outputs.folder)}, store=Store(), limits=Limits())
    report = AuditReport.model_validate_json((outputs.folder / "report.json").read_bytes())
    sent = MlflowRecord(run_id=answer["run_id"], tracking_uri=answer["tracking_uri"])
    reasons = [reason for reason in report.reasons if reason.code != "record.failed"]
    outputs.write("report.json", render_json(report.model_copy(update={"mlflow": sent, "reasons": reasons})))
    pending.unlink()
    return answer
