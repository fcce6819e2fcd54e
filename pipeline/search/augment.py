"""Small random changes that leave a picture what it is."""

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
