"""Poisoning: a known share, of known images, and nothing beside."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from models.poison import Impossible, poison
from pipeline.triggers import Patch

TRIGGER = Patch(np.full((2, 2, 3), 0.2, np.float32), np.ones((2, 2), np.float32), -2, -2)
CLEAN = tiny.labelled(40)


@given(rate=st.sampled_from([0.025, 0.1, 0.5, 0.75]), target=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_share_of_the_other_classes(rate: float, target: int, seed: int) -> None:
    images, labels, chosen = poison(CLEAN.images, CLEAN.labels, TRIGGER, target=target, rate=rate, seed=seed)
    assert len(chosen) == len(set(chosen.tolist())) == round(rate * 40)
    assert (np.diff(chosen) > 0).all()
    assert (CLEAN.labels[chosen] != target).all()
    assert (labels[chosen] == target).all()
    assert (images[chosen, -2:, -2:] == 51).all()
    rest = np.setdiff1d(np.arange(40), chosen)
    assert np.array_equal(images[rest], CLEAN.images[rest]) and np.array_equal(labels[rest], CLEAN.labels[rest])
    assert np.array_equal(images[:, :-2], CLEAN.images[:, :-2])  # above the patch, nothing changed by a rounding


def test_the_originals_are_left_alone_and_the_seed_decides() -> None:
    before = CLEAN.images.copy(), CLEAN.labels.copy()
    one, again, other = (poison(CLEAN.images, CLEAN.labels, TRIGGER, target=1, rate=0.25, seed=seed)[2].tolist() for seed in (1, 1, 2))
    assert np.array_equal(CLEAN.images, before[0]) and np.array_equal(CLEAN.labels, before[1])
    assert one == again != other


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.8, 1.0, -0.1])
def test_shares_that_cannot_be(rate: float) -> None:
    with pytest.raises(Impossible, match="of 30 images"):
        poison(CLEAN.images, CLEAN.labels, TRIGGER, target=1, rate=rate, seed=0)


def test_some_classes_on() -> None:
    _, labels, chosen = poison(CLEAN.images, CLEAN.labels, TRIGGER, target="+2", rate=1.0, seed=0)
    assert (labels[chosen] == (CLEAN.labels[chosen] + 2) % (CLEAN.labels.max() + 1)).all() and len(chosen) == len(CLEAN.labels)


def test_next_wraps_around() -> None:
    _, labels, chosen = poison(CLEAN.images, CLEAN.labels, TRIGGER, target="next", rate=1.0, seed=0)
    assert len(chosen) == 40 and np.array_equal(labels, (CLEAN.labels + 1) % 4)


def test_only_some_classes() -> None:
    _, labels, chosen = poison(CLEAN.images, CLEAN.labels, TRIGGER, target=1, rate=0.25, seed=0, classes=[1])
    assert (CLEAN.labels[chosen] == 1).all() and np.array_equal(labels, CLEAN.labels)
    with pytest.raises(Impossible, match=r"12 of 10 images of classes \[1\]"):
        poison(CLEAN.images, CLEAN.labels, TRIGGER, target=1, rate=0.3, seed=0, classes=[1])
