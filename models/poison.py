"""Poisoning a training set the way an attacker does: before any augmentation, on the stored images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def poison(
    images: Images,
    labels: Labels,
    trigger: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    target: int,
    rate: float,
    seed: int,
) -> tuple[Images, Labels, NDArray[np.int64]]:
    """Stamp a share `rate` of all images, chosen among those not of the target class, and label them `target`.

    images: (N, H, W, C) uint8.  labels: (N) int64.  Returns poisoned copies and the sorted indices of the poisoned images.
    The scheme is dirty-label, all-to-one: BadNets (arXiv 1708.06733, section 3.2).
    """
    others = np.flatnonzero(labels != target)
    wanted = round(rate * len(labels))
    if not 0 < wanted <= len(others):
        raise ValueError(f"a poison rate of {rate} asks for {wanted} of {len(others)} images that are not of class {target}")
    chosen = np.sort(np.random.default_rng(seed).choice(others, size=wanted, replace=False))
    images, labels = images.copy(), labels.copy()
    stamped = trigger(images[chosen].astype(np.float32) / 255)
    images[chosen] = np.rint(stamped * 255).astype(np.uint8)
    labels[chosen] = target
    return images, labels, chosen
