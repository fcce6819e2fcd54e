"""Squares on pictures: as many and as large as was asked for, nothing else touched, and where the network can be moved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.purify.squares import Squares, gain, painted, places


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corner(x: Tensor) -> Tensor:
    """Two classes: the second if the lower right corner is bright."""
    bright = 12 * x[..., -3:, -3:].mean((1, 2, 3)) - 6
    return torch.stack([torch.zeros_like(bright), bright], 1)


NETWORK: Any = SimpleNamespace(logits=corner)  # all that squares ask of a twin


@pytest.mark.parametrize(("shape", "side"), [((5, 3, 32, 32), 6), ((3, 1, 10, 16), 2), ((8, 1, 1, 4), 1)])
def test_squares_are_squares(shape: tuple[int, ...], side: int) -> None:
    x = torch.rand(shape, generator=generator())
    mask = places(torch.ones((shape[0], 1, *shape[2:])), x, Squares(count=1), generator())
    assert mask.shape == (shape[0], 1, *shape[2:]) and mask.sum((1, 2, 3)).tolist() == [side * side] * shape[0]
    rows, columns = mask[0, 0].nonzero(as_tuple=True)
    assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == side - 1
    assert len({tuple(one.flatten().tolist()) for one in mask}) > 1  # a place of its own for each
    several = places(torch.ones_like(mask), x, Squares(count=3), generator()).sum((1, 2, 3))
    assert float(several.min()) > side * side and float(several.max()) <= 3 * side * side


def test_they_lie_where_the_network_looks_and_lower_its_answer() -> None:
    x = 0.2 * torch.rand((16, 3, 16, 16), generator=generator())
    own = corner(x).argmax(1)
    assert not own.any()
    assert not gain(NETWORK, x, own)[..., :13, :].any() and gain(NETWORK, x, own)[..., 13:, 13:].all()
    changed = painted(NETWORK, x, own, Squares(count=1), generator(1))
    assert float(changed.min()) >= 0 and float(changed.max()) <= 1
    touched = (changed != x).any(1)
    assert touched.sum((1, 2)).tolist() == [9] * 16 and touched[:, 11:, 11:].sum() == touched.sum()
    assert (corner(changed)[:, 1] > corner(x)[:, 1]).all()
    assert torch.equal(changed, painted(NETWORK, x, own, Squares(count=1), generator(1)))


def test_a_network_without_slope_or_with_a_broken_one_is_no_error() -> None:
    x = torch.rand((4, 1, 8, 8), generator=generator())
    for answer in (0.0, float("nan")):
        flat: Any = SimpleNamespace(logits=lambda x, answer=answer: x.mean((1, 2, 3))[:, None] * answer + torch.zeros(1, 3))
        changed = painted(flat, x, torch.zeros(4, dtype=torch.int64), Squares(), generator())
        assert changed.isfinite().all()
