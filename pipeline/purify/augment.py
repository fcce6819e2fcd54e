"""Random changes: small ones that leave a picture what it is, and larger ones for what needs no label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(pictures: Tensor, *, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each of (N, C, H, W) pictures by up to `crop` pixels over a reflected border, and mirror half of them.

    `generator` is of the CPU, so that every device sees the same changes.
    """
    n, _, height, width = pictures.shape
    device = pictures.device
    crop = min(crop, height - 1, width - 1)
    if crop > 0:
        padded = F.pad(pictures, (crop,) * 4, mode="reflect")
        top = torch.randint(0, 2 * crop + 1, (n,), generator=generator).to(device)
        left = torch.randint(0, 2 * crop + 1, (n,), generator=generator).to(device)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + torch.arange(width, device=device)
        index = torch.arange(n, device=device)[:, None, None]
        pictures = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = (torch.rand(n, generator=generator) < 0.5).to(device)
        pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
    return pictures


def varied(pictures: Tensor, generator: torch.Generator, *, zoom: float = 0.5, mix: float = 0.5) -> Tensor:
    """Pictures that may be of nothing: half of (N, C, H, W) enlarged up to 1 / (1 - `zoom`) times, then each mixed with the one before.

    For what needs no label, as distillation.  mix: the most of the other picture, in 0..1.
    """
    n = len(pictures)
    scale = 1 - zoom * torch.rand(n, generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = (1 - scale)[:, None] * (2 * torch.rand((n, 2), generator=generator) - 1)
    grid = F.affine_grid(theta.to(pictures), list(pictures.shape), align_corners=False)
    enlarged = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    pictures = torch.where((torch.rand((n, 1, 1, 1), generator=generator) < 0.5).to(pictures.device), enlarged, pictures)
    share = mix * torch.rand((n, 1, 1, 1), generator=generator).to(pictures)
    return (1 - share) * pictures + share * pictures.roll(1, 0)
