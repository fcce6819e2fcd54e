"""Purifiers: one method a file, one paper a file, one protocol.

A purifier is given the torch twin, calibration images and a seed (contract 3).  It cannot be given hold-out images or a known
trigger: `CalibrationSet` is not `HoldoutSet`, and no trigger is a parameter.  It answers new values for named initializers; the
graph is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import StageFailed
from pipeline.images import CalibrationSet
from pipeline.results import Step
from pipeline.twin import TorchTwin

Report = Callable[[int, int, dict[str, float]], None]
"""Told a step's number, 0 before the first, how many there are at most, and its figures."""


@dataclass(frozen=True)
class Purified:
    """What a purifier answers.

    weights: initializer -> new values, in the initializer's shape.  masks: initializer -> mask in 0..1, the same shape.
    perturbation: (K, H, W, C) float32, what was added to pictures in 0..1 at the end of the search, one for
    each of the K `hypotheses`.
    """

    weights: Mapping[str, NDArray[np.float32]]
    masks: Mapping[str, NDArray[np.float32]]
    perturbation: NDArray[np.float32] | None
    hypotheses: list[str]
    history: list[Step]
    notes: list[str]


@dataclass
class History:
    """What a method did, step by step, told to `report` as it goes.  most: how many steps there are at most."""

    report: Report
    most: int
    steps: list[Step] = field(default_factory=list)

    def add(self, **figures: float) -> None:
        """Another step, with those of its figures that are finite."""
        figures = {name: value for name, value in figures.items() if isfinite(value)}
        self.steps.append(Step(step=len(self.steps) + 1, metrics=figures))
        self.report(len(self.steps), self.most, figures)


class Purifier(Protocol):
    """The one shape of every method."""

    def __call__(self, twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
        """Purify.  Deterministic under a seed; the twin is left as it was."""
        ...


def methods() -> dict[str, Purifier]:
    """Every method by the name that `purify.method` and `--method` take, each on a twin that multiplies as quickly as it bears."""
    from pipeline.purify.anp import anp
    from pipeline.purify.auto import auto
    from pipeline.purify.awm import awm
    from pipeline.purify.bti_dbf import bti_dbf
    from pipeline.purify.clp import clp
    from pipeline.purify.distillation import nad
    from pipeline.purify.fine_pruning import fine_pruning
    from pipeline.purify.ibau import ibau
    from pipeline.purify.rnp import rnp
    from pipeline.purify.sau import sau
    from pipeline.purify.tsbd import tsbd
    from pipeline.purify.tuning import ft, ft_sam

    every: dict[str, Purifier] = {
        "awm": awm,
        "fine-pruning": fine_pruning,
        "ft": ft,
        "ft-sam": ft_sam,
        "nad": nad,
        "anp": anp,
        "clp": clp,
        "i-bau": ibau,
        "sau": sau,
        "rnp": rnp,
        "tsbd": tsbd,
        "bti-dbf": bti_dbf,
        "auto": auto,
    }
    return {name: _quickly(method) for name, method in every.items()}


def _quickly(method: Purifier) -> Purifier:
    """The same method in bfloat16 where the device is made for that, so that none is slow for want of it; the paper's preset in float32, as published."""

    def purify(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
        if preset == "paper":
            return method(twin, calibration, preset=preset, seed=seed, report=report)
        few = torch.from_numpy(calibration.at(np.arange(min(8, len(calibration)))).pictures().transpose(0, 3, 1, 2)).to(twin.device)
        return method(twin.quick(few), calibration, preset=preset, seed=seed, report=report)

    return purify


def arrays(tensors: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Weights or masks by name as NumPy arrays on the CPU.  Raises StageFailed when they are not finite: a file can be made so that gradients are not."""
    found = {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
    if not all(np.isfinite(values).all() for values in found.values()):
        raise StageFailed("the repair came to weights that are not finite")
    return found
