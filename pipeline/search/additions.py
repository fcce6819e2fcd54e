"""Patterns that are added, as large as the picture: the smallest in all, and the faintest anywhere."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.search.targeted import Kind, Targeted


class Additions(Targeted):
    """clip(x + d, 0, 1): d (K, C, H, W) of either sign; the size is its L2 norm, pixels being 0..1."""

    kind: ClassVar[Kind] = "addition"
    name, unit, price, rate = "addition", "in L2", 0.1, 0.02

    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Hardly anything."""
        return [0.01 * torch.randn((k, *picture.shape[1:]), generator=generator)]

    def patterns(self) -> Tensor:
        """(K, C, H, W) d."""
        return self.parameters[0]

    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Add the patterns."""
        return (pictures + self.patterns()[which]).clamp(0, 1)

    def sizes(self) -> Tensor:
        """‖d‖₂."""
        return self.parameters[0].flatten(1).square().sum(1).sqrt()

    @property
    def whole(self) -> float:
        """From black to white everywhere."""
        return float((self.channels * self.shape[0] * self.shape[1]) ** 0.5)


class Faint(Additions):
    """d = s tanh(z): no entry is more than s, and this is the size, ‖d‖∞, in steps of 8-bit pixels."""

    kind = "faint"
    name, unit, price, rate = "faint addition", "of 255 at most", 0.05, 0.05

    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """log s, of a twentieth; and z, of either sign."""
        return [torch.full((k,), math.log(0.05)), 0.5 * torch.randn((k, *picture.shape[1:]), generator=generator)]

    def patterns(self) -> Tensor:
        """(K, C, H, W) d."""
        log_s, z = self.parameters
        return log_s.exp()[:, None, None, None] * z.tanh()

    def sizes(self) -> Tensor:
        """255 s."""
        return 255 * self.parameters[0].exp()

    @property
    def whole(self) -> float:
        """From black to white."""
        return 255.0
