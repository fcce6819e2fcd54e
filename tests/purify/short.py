"""Each method with fewer steps, for tests of what does not depend on how far it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from pipeline.purify import anp, auto, awm, bti_dbf, distillation, dose, fine_pruning, ibau, minimax, rnp, sau, tsbd, tuning
from pipeline.search import kinds

SHORT = dose.Config(steps=5, search=kinds.Config(steps=8), batch=8, corrupted=7)
SHORT_PAPER = awm.PaperConfig(epochs=2, passes=1)
SHORT_TUNING = tuning.TuningConfig(epochs=2, batch=16)
SHORT_PRUNING = fine_pruning.FinePruningConfig(points=4, tuning=SHORT_TUNING)
SHORT_DISTILLATION = distillation.DistillationConfig(teacher=SHORT_TUNING, student=SHORT_TUNING)


def short_awm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimax, "CONFIG", SHORT)
    monkeypatch.setattr(awm, "PaperConfig", lambda: SHORT_PAPER)
    monkeypatch.setattr(awm, "ONE_SHOT", replace(awm.ONE_SHOT, epochs=2, passes=1))


def short(module: ModuleType, **fewer: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Both presets of a method with fewer of something."""

    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PAPER", "DEFAULT"):
            monkeypatch.setattr(module, name, replace(getattr(module, name), **fewer))

    return change


def short_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in auto.CANDIDATES:
        CONFIGS[method](monkeypatch)
    monkeypatch.setattr(auto, "CONFIG", SHORT)
    monkeypatch.setattr(auto, "CONFIG_AUTO", auto.Config(few=2))


CONFIGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "awm": short_awm,
    "fine-pruning": lambda monkeypatch: monkeypatch.setattr(fine_pruning, "FinePruningConfig", lambda: SHORT_PRUNING),
    "ft": lambda monkeypatch: monkeypatch.setattr(tuning, "FT", SHORT_TUNING),
    "ft-sam": lambda monkeypatch: monkeypatch.setattr(tuning, "FT_SAM", replace(SHORT_TUNING, rho=2.0)),
    "nad": lambda monkeypatch: monkeypatch.setattr(distillation, "DistillationConfig", lambda: SHORT_DISTILLATION),
    "anp": short(anp, steps=10, batch=16),
    "clp": lambda monkeypatch: None,  # it takes no steps
    "i-bau": short(ibau, rounds=1, batch=16),
    "sau": short(sau, epochs=1, batch=16),
    "rnp": short(rnp, epochs=2, batch=16),
    "tsbd": short(tsbd, tuning=SHORT_TUNING),
    "bti-dbf": short(bti_dbf, rounds=1, mask_steps=4, generator_steps=4, unlearning_steps=4, batch=16),
    "auto": short_auto,
}
