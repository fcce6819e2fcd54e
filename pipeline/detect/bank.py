"""How sure one can be: what stands out in a network, held against reference models, clean and backdoored ones.

For each kind of change the search answers how large it must be for each class.  Two things are said of the smallest: how many times smaller than the median
it is, and which share of the whole picture it is.  Clean networks have weak classes too, and some are easy to lead astray altogether; so the logarithms of both
are counted in standard deviations of the clean reference models, and their mean is how far the kind stands out.  The kind that stands out most speaks for
the network.  A logistic curve over that one number, fitted to all reference models (Platt, 1999), is the score: P(backdoored) where clean and backdoored models
are as frequent, and as they are, as in the bank.

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
from numpy.typing import NDArray

BANK = Path(__file__).with_name("bank.csv")
KINDS = ("patch", "warp", "shift", "departure", "addition", "faint")
LEAST_SPREAD = 0.15  # of the logarithms: a bank is small, and does not know how different networks can be
RIDGE = 0.02  # on the slope: a bank that is told apart without error would make it infinite


@dataclass(frozen=True)
class Standing:
    """How the smallest change of a kind stands out.  outlier: the median over the smallest, 1 or more.  share: the smallest, of the whole picture."""

    outlier: float
    share: float

    @classmethod
    def of(cls, shares: Sequence[float]) -> Standing:
        """From the size of each change, as shares of the whole picture."""
        return cls(float(np.median(shares) / min(shares)), float(min(shares)))

    @property
    def logs(self) -> NDArray[np.float64]:
        """Both as logarithms, larger where it stands out more."""
        return np.array([log(self.outlier), -log(max(self.share, 1e-9))])


@dataclass(frozen=True)
class Reference:
    """A model of the bank.  standings: by kind, of those that were searched for.  images: calibration images that it was searched with."""

    name: str
    images: int
    backdoored: bool
    standings: Mapping[str, Standing]


@dataclass(frozen=True)
class Scale:
    """centre, spread: of the logarithms of clean models, by kind.  P = 1 / (1 + exp(-(slope s + offset))) of the largest deviation s."""

    centre: Mapping[str, NDArray[np.float64]]
    spread: Mapping[str, NDArray[np.float64]]
    slope: float
    offset: float

    @classmethod
    def of(cls, references: Sequence[Reference]) -> Scale:
        """Fit it.  Raises ValueError without clean and backdoored models."""
        clean = [one for one in references if not one.backdoored]
        if not clean or len(clean) == len(references):
            raise ValueError("a bank needs clean and backdoored models")
        logs = {kind: np.array([one.standings[kind].logs for one in clean if kind in one.standings]) for kind in KINDS}
        logs = {kind: values for kind, values in logs.items() if len(values)}
        spread = {kind: np.maximum(LEAST_SPREAD, values.std(0, ddof=min(1, len(values) - 1))) for kind, values in logs.items()}
        bare = cls({kind: values.mean(0) for kind, values in logs.items()}, spread, 0.0, 0.0)
        slope, offset = _logistic(np.array([bare.most(one.standings) for one in references]), np.array([one.backdoored for one in references]))
        return cls(bare.centre, spread, slope, offset)

    def deviation(self, kind: str, standing: Standing) -> float:
        """How far a kind stands out beyond what clean models have, in their standard deviations; -inf for a kind that the bank does not know."""
        return float(((standing.logs - self.centre[kind]) / self.spread[kind]).mean()) if kind in self.centre else -inf

    def most(self, standings: Mapping[str, Standing]) -> float:
        """The largest deviation."""
        return max((self.deviation(kind, standing) for kind, standing in standings.items()), default=-inf)

    def probability(self, deviation: float) -> float:
        """P(backdoored), in 0..1, for a largest deviation."""
        at = self.slope * max(-1e3, deviation) + self.offset
        return 1 / (1 + exp(-at)) if at > -500 else 0.0

    def score(self, standings: Mapping[str, Standing]) -> float:
        """P(backdoored) of a network; 0 where nothing was searched for."""
        return self.probability(self.most(standings)) if standings else 0.0


def _logistic(x: NDArray[np.float64], backdoored: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset, by Newton's method; clean and backdoored models count the same."""
    y = backdoored.astype(np.float64)
    weight = np.where(y > 0, 0.5 / y.sum(), 0.5 / (len(y) - y.sum()))
    slope, offset = 0.0, 0.0
    for _ in range(50):
        p = 1 / (1 + np.exp(-(slope * x + offset)))
        gradient = np.array([(weight * (p - y) * x).sum() + RIDGE * slope, (weight * (p - y)).sum()])
        curve = weight * p * (1 - p)
        hessian = np.array([[(curve * x * x).sum() + RIDGE, (curve * x).sum()], [(curve * x).sum(), curve.sum() + 1e-9]])
        step = np.linalg.solve(hessian, gradient)
        slope, offset = slope - float(step[0]), offset - float(step[1])
    return slope, offset


@cache
def references() -> tuple[Reference, ...]:
    """The bank."""
    return tuple(read(BANK))


def read(path: Path) -> list[Reference]:
    """The reference models of a file such as bank.csv."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Reference(row["model"], _images(row), row["attack"] != "clean", standings({kind: row.get(kind, "") for kind in KINDS})) for row in rows]


def _images(row: Mapping[str, str]) -> int:
    """How many a model was searched with; 1 in the file is one a class."""
    return int(row["images"]) if int(row["images"]) > 1 else len(row["patch"].split())


def standings(cells: Mapping[str, str]) -> dict[str, Standing]:
    """How each kind stands out, from the shares of its changes, parted by spaces; kinds without any are left out."""
    return {kind: Standing.of(list(map(float, cell.split()))) for kind, cell in cells.items() if cell}


def nearest(bank: Iterable[Reference], images: int) -> list[Reference]:
    """Those that were searched with a number of images as near to this as there is."""
    bank = list(bank)
    best = min({one.images for one in bank}, key=lambda number: abs(log(number) - log(max(1, images))))
    return [one for one in bank if one.images == best]


def alone(bank: Sequence[Reference]) -> list[float]:
    """The score of each model of a bank, by a scale that was fitted without it."""
    return [Scale.of([other for other in bank if other is not one]).score(one.standings) for one in bank]
