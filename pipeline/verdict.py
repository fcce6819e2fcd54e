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

    def exit_code(self, *, accept_repaired: bool = False) -> int:
        """What `onnx-audit run` ends with; 0 lets the file, or the repaired one, pass."""
        passing = {Verdict.ACCEPT, Verdict.REPAIRED} if accept_repaired else {Verdict.ACCEPT}
        return 0 if self in passing else 3 if self is Verdict.INCONCLUSIVE else 1


class Reason(Value):
    """One reason of a verdict.

    code: a stable name for machines.  text: a sentence for people.  about: the node, trigger, stage, check or class that it is about, and nothing that differs
    from run to run; of a waiver, the rule.
    """

    code: str
    text: Printable
    about: Printable = ""
