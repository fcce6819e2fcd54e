"""What a check says about a model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Severity(StrEnum):
    """How bad a finding is, from a remark to a certain attack."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 (info) to 4 (critical)."""
        return list(Severity).index(self)


class Outcome(StrEnum):
    """How a check ended.  An error is not a pass: contract 8 makes it INCONCLUSIVE."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    ERRORED = "errored"


def printable(text: object, *, limit: int = 300) -> str:
    """`text` on one line of printable characters, cut at `limit`: names in a submitted file are hostile."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "…"


Printable = Annotated[str, BeforeValidator(printable)]


class Finding(BaseModel):
    """One thing that a check found.

    rule: a stable name such as `file.non-finite-weights`.  where: the initializer, node or file it is about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    severity: Severity
    message: Printable
    where: Printable = ""


class Check(BaseModel):
    """That a check was run, and how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    outcome: Outcome
    note: Printable = ""
