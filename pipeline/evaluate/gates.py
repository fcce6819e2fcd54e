"""Gates of a graph, watched while the model runs: do they ever move on clean images, and what do they decide?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.session import Classifier
from pipeline.results import GateSeen, Rate

BATCH = 32
STEADY = 1e-3  # of 1, or of the value where that is more: a gate that moves by less does not move

Constant = NDArray[np.generic]
Held = Callable[[str, Constant], Classifier]
"""The model with a value held at a constant for every picture."""


@dataclass(frozen=True)
class Watched:
    """What was seen of a gate, and the constant, with as many axes as the gate, at which most labels stay what they are."""

    seen: GateSeen
    constant: Constant


def watch(classifier: Classifier, name: str, held: Held, pictures: NDArray[np.float32]) -> Watched | None:
    """Watch the gate `name`, an output of the classifier, on (N, H, W, C) pictures in 0..1, and hold it to every side; None when it is no number."""
    values = [classifier.values(part, [name])[0] for part in _batches(pictures)]
    if not all(value.size and value.dtype.kind in "bfiu" for value in values):
        return None
    low, high = float(min(value.min() for value in values)), float(max(value.max() for value in values))
    steady = high - low <= STEADY * max(1.0, abs(high))
    labels = classify(classifier, pictures)
    tried = []
    for side in sorted({0.0, 1.0, *([(low + high) / 2] if steady else [])}):
        constant = np.full((1,) * values[0].ndim, side).astype(values[0].dtype)
        tried.append((classify(held(name, constant), pictures), constant))
    tried.sort(key=lambda side: int((side[0] == labels).sum()))
    turned, kept = tried[0][0], tried[-1][0]
    moved = turned[turned != labels]
    seen = GateSeen(
        value=name,
        steady=steady,
        kept=Rate.of(int((kept == labels).sum()), len(labels)),
        turned=Rate.of(len(moved), len(labels)),
        target=int(np.bincount(moved).argmax()) if len(moved) else None,
    )
    return Watched(seen, tried[-1][1])


def classify(classifier: Classifier, pictures: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N) labels of (N, H, W, C) pictures in 0..1."""
    return np.concatenate([classifier(part).argmax(1) for part in _batches(pictures)])


def _batches(pictures: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
    return [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
