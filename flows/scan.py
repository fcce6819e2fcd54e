"""Look at one file, without images and without Prefect: it takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.artifact import Store
from pipeline.inputs import check_model_path
from pipeline.results import IntakeResult, ScanResult
from pipeline.sandbox import Limits, run

LIMITS = Limits(seconds=120, memory=16 * 2**30)


def scan(path: Path) -> dict[str, Any]:
    """Take the file in and run every check; returns `ScanResult` as JSON.  Raises BadInput, StageFailed."""
    store = Store()
    source = check_model_path(path, most_bytes=2 * 2**30)
    taken = IntakeResult.model_validate(run("intake", {"source": str(source)}, store=store, limits=LIMITS))
    answer = run("scan", {"model": taken.model.model_dump()}, store=store, limits=LIMITS)
    return ScanResult.model_validate(answer).model_dump(mode="json")
