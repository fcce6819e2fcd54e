"""What a file carries that no classifier needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto

from pipeline.findings import Finding, Severity
from pipeline.scan.walk import bodies

MOST_TEXT = 2**20  # bytes of metadata and doc strings that pass without a remark


def check_baggage(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Training graphs, and more text than any exporter writes."""
    if model.training_info:
        yield Finding(rule="file.training-info", severity=Severity.MEDIUM, message="the file carries training graphs, which an inference model does not need")
    text = sum(len(entry.key) + len(entry.value) for entry in model.metadata_props) + len(model.doc_string)
    for body in bodies(model):
        text += len(body.doc_string) + sum(len(node.doc_string) + sum(len(entry.value) for entry in node.metadata_props) for node in body.node)
    if text > MOST_TEXT:
        yield Finding(rule="file.oversized-text", severity=Severity.LOW, message=f"the file carries {text} bytes of metadata and doc strings")
