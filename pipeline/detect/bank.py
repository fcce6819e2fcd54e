"""How sure one can be: what stands out in a network, held against reference models, clean and backdoored ones.

For each kind of change the search answers how many times smaller the smallest one is than the median over classes (`outlier`).  Clean networks have their
usual outliers too: so its logarithm is counted in standard deviations of the clean reference models, and the kind that stands out most speaks for the
network.  A logistic curve over that one number, fitted to all reference models (Platt, 1999), is the score: P(backdoored) where clean and backdoored models are
as frequent, and as they are, as in the bank.

The bank is bank.csv, beside this file: a line for each model and number of calibration images, made by `onnx-audit bench detect --bank`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, inf, log
from pathlib import Path

import numpy as np

BANK = Path(__file__).with_name("bank.csv")
KINDS = ("patch", "warp", "shift", "departure", "addition")
LEAST_SPREAD = 0.05  # of the logarithms: a bank is small
RIDGE = 0.02  # on the slope: a bank that is told apart without error would make it infinite


@dataclass(frozen=True)
class Reference:
    """A model of the bank.  outliers: by kind, of those that were searched for.  images: calibration images that it was searched with."""

    name: str
    images: int
    backdoored: bool
    outliers: Mapping[str, float]


@dataclass(frozen=True)
class Scale:
    """centre, spread: of the logarithm of clean models' outliers, by kind.  P = 1 / (1 + exp(-(slope s + offset))) of the largest deviation s."""

    centre: Mapping[str, float]
    spread: Mapping[str, float]
    slope: float
    offset: float

    @classmethod
    def of(cls, references: Sequence[Reference]) -> Scale:
        """Fit it.  Raises ValueError without clean and backdoored models."""
        clean = [one for one in references if not one.backdoored]
        if not clean or len(clean) == len(references):
            raise ValueError("a bank needs clean and backdoored models")
        logs = {kind: np.array([log(one.outliers[kind]) for one in clean if kind in one.outliers]) for kind in KINDS}
        centre = {kind: float(values.mean()) for kind, values in logs.items() if len(values)}
        spread = {kind: max(LEAST_SPREAD, float(values.std(ddof=min(1, len(values) - 1)))) for kind, values in logs.items() if len(values)}
        bare = cls(centre, spread, 0.0, 0.0)
        x = np.array([bare.most(one.outliers) for one in references])
        y = np.array([one.backdoored for one in references], float)
        weight = np.where(y > 0, 0.5 / y.sum(), 0.5 / (len(y) - y.sum()))  # clean and backdoored count the same
        slope, offset = 0.0, 0.0
        for _ in range(50):  # Newton
            p = 1 / (1 + np.exp(-(slope * x + offset)))
            gradient = np.array([(weight * (p - y) * x).sum() + RIDGE * slope, (weight * (p - y)).sum()])
            curve = weight * p * (1 - p)
            hessian = np.array([[(curve * x * x).sum() + RIDGE, (curve * x).sum()], [(curve * x).sum(), curve.sum() + 1e-9]])
            step = np.linalg.solve(hessian, gradient)
            slope, offset = slope - float(step[0]), offset - float(step[1])
        return cls(centre, spread, slope, offset)

    def deviation(self, kind: str, outlier: float) -> float:
        """How far an outlier is above what clean models have, in their standard deviations; -inf for a kind that the bank does not know."""
        return (log(outlier) - self.centre[kind]) / self.spread[kind] if kind in self.centre else -inf

    def most(self, outliers: Mapping[str, float]) -> float:
        """The largest deviation."""
        return max((self.deviation(kind, outlier) for kind, outlier in outliers.items()), default=-inf)

    def probability(self, deviation: float) -> float:
        """P(backdoored), in 0..1, for a largest deviation."""
        at = self.slope * max(-1e3, deviation) + self.offset
        return 1 / (1 + exp(-at)) if at > -500 else 0.0


@cache
def references() -> tuple[Reference, ...]:
    """The bank."""
    return tuple(read(BANK))


def read(path: Path) -> list[Reference]:
    """The reference models of a file such as bank.csv."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Reference(row["model"], int(row["images"]), row["attack"] != "clean", {kind: float(row[kind]) for kind in KINDS if row[kind] not in ("", "nan")})
        for row in rows
    ]


def nearest(bank: Iterable[Reference], images: int) -> list[Reference]:
    """Those that were searched with a number of images as near to this as there is."""
    bank = list(bank)
    best = min({one.images for one in bank}, key=lambda number: abs(log(number) - log(max(1, images))))
    return [one for one in bank if one.images == best]


def alone(bank: Sequence[Reference]) -> list[float]:
    """The score of each model of a bank, by a scale that was fitted without it."""
    scales = [Scale.of([other for other in bank if other is not one]) for one in bank]
    return [scale.probability(scale.most(one.outliers)) for scale, one in zip(scales, bank, strict=True)]
