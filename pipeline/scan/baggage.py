"""What a file carries that no classifier needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto

from pipeline.findings import Finding, Severity
from pipeline.scan.walk import texts

MOST_TEXT = 2**20  # characters of metadata and doc strings that pass without a remark


def check_baggage(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Training graphs, and more text than any exporter writes."""
    if model.training_info:
        yield Finding(rule="file.training-info", severity=Severity.MEDIUM, message="the file carries training graphs, which an inference model does not need")
    length = sum(len(text) for field, text in texts(model) if field in ("doc_string", "key", "value"))
    if length > MOST_TEXT:
        yield Finding(rule="file.oversized-text", severity=Severity.LOW, message=f"the file carries {length} characters of metadata and doc strings")
