"""What an audit says in the end, and why."""

from __future__ import annotations

from enum import StrEnum

from pipeline.findings import Printable
from pipeline.results import Value


class Verdict(StrEnum):
    """Whether the file may go into production; docs/report.md says when each is given."""

    ACCEPT = "ACCEPT"
    REPAIRED = "REPAIRED"
    REJECT = "REJECT"
    INCONCLUSIVE = "INCONCLUSIVE"


class Reason(Value):
    """One reason of a verdict.  code: a stable name for machines.  text: a sentence for people."""

    code: str
    text: Printable
