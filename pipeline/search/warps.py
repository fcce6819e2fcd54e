"""Smooth warps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.search.targeted import Targeted


class Warps(Targeted):
    """Smooth warps of six by six control points; the size is their mean absolute movement, in pixels."""

    kind = "warp"
    name, unit, price, rate = "warp", "px of movement", 0.1, 0.1

    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Movements of a tenth of a pixel."""
        return [0.1 * torch.randn((k, 2, 6, 6), generator=generator)]

    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Bend the pictures."""
        return warp(pictures, self.parameters[0][which])

    def sizes(self) -> Tensor:
        """Mean movement."""
        return self.parameters[0].abs().mean((1, 2, 3))

    @property
    def whole(self) -> float:
        """From one side to the other."""
        return (self.shape[0] + self.shape[1]) / 2


def flow(field: Tensor, x: Tensor) -> Tensor:
    """(N, 2, k, k) control points -> (N, 2, H, W), as large as the pictures."""
    return F.interpolate(field, size=x.shape[2:], mode="bicubic", align_corners=True)


def warp(x: Tensor, field: Tensor) -> Tensor:
    """Bend (N, C, H, W) pictures by (N, 2, k, k) control points: pixels to the right and down, interpolated; bilinear, held at the border."""
    height, width = x.shape[2:]
    field = field.to(x)
    moved = field if field.shape[2:] == x.shape[2:] else flow(field, x)
    rows, columns = torch.meshgrid(torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij")
    places = ((columns + moved[:, 0]) / max(1, width - 1), (rows + moved[:, 1]) / max(1, height - 1))
    return F.grid_sample(x, 2 * torch.stack(places, -1) - 1, mode="bilinear", padding_mode="border", align_corners=True)
