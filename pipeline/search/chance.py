"""Draws by chance, from a generator of the CPU, so that every device sees the same."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Numbers in low..high."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def each(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(N, 1, 1, 1) numbers in low..high, one for each picture."""
    return uniform((n, 1, 1, 1), low, high, generator)


def some(n: int, share: float, generator: torch.Generator) -> Tensor:
    """(N, 1, 1, 1) bool: whether a picture is one of a share of them."""
    return torch.rand((n, 1, 1, 1), generator=generator) < share
