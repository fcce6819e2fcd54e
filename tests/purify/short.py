"""Each method with fewer steps, for tests of what does not depend on how far it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.purify import awm

SHORT = awm.DefaultConfig(epochs=2, steps=5, search_steps=8, batch=8)
SHORT_PAPER = awm.PaperConfig(epochs=2, passes=1)


def short_awm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awm, "DefaultConfig", lambda: SHORT)
    monkeypatch.setattr(awm, "PaperConfig", lambda: SHORT_PAPER)
    monkeypatch.setattr(awm, "ONE_SHOT", replace(awm.ONE_SHOT, epochs=2, passes=1))


CONFIGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {"awm": short_awm}
