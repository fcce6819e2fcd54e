"""Patterns that are added, as large as the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.search.targeted import Targeted


class Additions(Targeted):
    """clip(x + d, 0, 1): d (K, C, H, W) of either sign; the size is its L2 norm, pixels being 0..1."""

    kind = "addition"
    name, unit, price, rate = "addition", "in L2", 0.1, 0.02

    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Hardly anything."""
        return [0.01 * torch.randn((k, *picture.shape[1:]), generator=generator)]

    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Add the patterns."""
        return (pictures + self.parameters[0][which]).clamp(0, 1)

    def sizes(self) -> Tensor:
        """‖d‖₂."""
        return self.parameters[0].flatten(1).square().sum(1).sqrt()

    @property
    def whole(self) -> float:
        """From black to white everywhere."""
        return float((self.channels * self.shape[0] * self.shape[1]) ** 0.5)
