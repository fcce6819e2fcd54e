"""The audit as one value, and its renderers: one a file, each a function from the report to text or bytes."""

from __future__ import annotations

from pipeline.report.model import AuditReport
from pipeline.report.summary import markdown, summary_rows

__all__ = ["AuditReport", "markdown", "summary_rows"]
