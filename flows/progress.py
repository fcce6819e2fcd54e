"""Where the stages' progress goes: whoever runs the flow says so; under a worker nobody watches but Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from pipeline.sandbox import Progress


class Watcher(Protocol):
    """Told what happens while it happens."""

    def started(self, stage: str) -> None:
        """A stage is about to run, or to be found done."""

    def moved(self, progress: Progress) -> None:
        """A stage has come further."""

    def ended(self, stage: str, outcome: str, seconds: float) -> None:
        """A stage ended: `ran`, `reused`, `failed` or `skipped`."""


class Silent:
    """Watches nothing."""

    def started(self, stage: str) -> None:
        """Do nothing."""

    def moved(self, progress: Progress) -> None:
        """Do nothing."""

    def ended(self, stage: str, outcome: str, seconds: float) -> None:
        """Do nothing."""


_watcher: ContextVar[Watcher] = ContextVar("watcher", default=Silent())  # noqa: B039 - it has no state


def watcher() -> Watcher:
    """Whoever watches now."""
    return _watcher.get()


@contextmanager
def watched_by(one: Watcher) -> Iterator[None]:
    """Send progress to `one` within the block."""
    token = _watcher.set(one)
    try:
        yield
    finally:
        _watcher.reset(token)
