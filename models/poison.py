"""Poisoning a training set the way an attacker does: before any augmentation, on the stored images."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from pipeline.results import onward

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Trigger = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Impossible(ValueError):
    """This attack cannot be made on these data or this network."""


def poison(
    images: Images, labels: Labels, trigger: Trigger, *, target: int | str, rate: float, seed: int, classes: Collection[int] | None = None
) -> tuple[Images, Labels, NDArray[np.int64]]:
    """Stamp a share `rate` of all images, chosen among those of `classes`, and label them `target`, a class or so many classes on (`next`, `+2`).

    images: (N, H, W, C) uint8.  labels: (N) int64.  classes: whose images are stamped; without it, every class but the target
    (BadNets, arXiv 1708.06733, section 3.2), and so many classes on, every class.  The target alone makes a clean-label attack.  Returns
    poisoned copies and the sorted indices of the stamped images.  Raises Impossible when there are too few.
    """
    steps = onward(target)
    among = (
        np.flatnonzero(np.isin(labels, list(classes))) if classes is not None else np.flatnonzero(labels != target) if steps is None else np.arange(len(labels))
    )
    which = f"of classes {sorted(classes)}" if classes is not None else f"that are not of class {target}" if steps is None else "in all"
    wanted = round(rate * len(labels))
    if not 0 < wanted <= len(among):
        raise Impossible(f"a poison rate of {rate} asks for {wanted} of {len(among)} images {which}")
    chosen = np.sort(np.random.default_rng(seed).choice(among, size=wanted, replace=False))
    stamped, labels = stamp(images, trigger, chosen), labels.copy()
    labels[chosen] = int(target) if steps is None else (labels[chosen] + steps) % (labels.max() + 1)
    return stamped, labels, chosen


def stamp(images: Images, trigger: Trigger, index: NDArray[np.int64]) -> Images:
    """A copy of (N, H, W, C) uint8 images with those at `index` triggered."""
    images = images.copy()
    images[index] = np.rint(trigger(np.divide(images[index], 255, dtype=np.float32)) * 255).astype(np.uint8)
    return images
