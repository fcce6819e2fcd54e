"""Large random changes of pictures, for what needs no label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.search.chance import each, some, uniform


def varied(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures that may be of nothing: (N, C, H, W) turned and enlarged, in other colours, cut into or mixed with the one before.

    For what needs no label, as distillation, where even one picture, changed so, teaches about others (Asano & Saeed, *Extrapolating from a
    Single Image to a Thousand Classes using Distillation*, ICLR 2023, arXiv 2112.00725).
    """
    return joined(_coloured(_placed(pictures, generator), generator), generator) if len(pictures) else pictures


def partly(pictures: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(N, C, H, W) pictures, each of them varied with probability `share`."""
    if not share:
        return pictures
    return torch.where(some(len(pictures), share, generator).to(pictures.device), varied(pictures, generator), pictures)


def joined(x: Tensor, generator: torch.Generator) -> Tensor:
    """(N, C, H, W) pictures, four in ten with a rectangle of the one before, four with up to half of it shining through, two alone.

    As CutMix (Yun et al., ICCV 2019, arXiv 1905.04899) and mixup (Zhang et al., ICLR 2018, arXiv 1710.09412), for what needs no label.
    """
    n, _, height, width = x.shape
    other = x.roll(1, 0)
    side = uniform(n, 0.3, 0.8, generator)
    inside = _interval(side, height, generator)[:, None, :, None] & _interval(side, width, generator)[:, None, None, :]
    share = each(n, 0.0, 0.5, generator).to(x)
    which = torch.rand((n, 1, 1, 1), generator=generator).to(x.device)
    return torch.where(which < 0.4, torch.where(inside.to(x.device), other, x), torch.where(which < 0.8, (1 - share) * x + share * other, x))


def _placed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by up to half a radian, scaled to between 0.9 and 3 times, mirrored half of the time; beyond the border it is reflected."""
    n = len(x)
    scale, angle = uniform(n, 0.35, 1.1, generator), uniform(n, -0.5, 0.5, generator)
    mirror = 1.0 - 2.0 * (torch.rand(n, generator=generator) < 0.5)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos() * mirror, -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * angle.sin() * mirror, scale * angle.cos()
    theta[:, :, 2] = (1 - scale).clamp(min=0)[:, None] * (2 * torch.rand((n, 2), generator=generator) - 1)
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _coloured(x: Tensor, generator: torch.Generator) -> Tensor:
    """Seven in ten with other contrast, tint and brightness; three in ten of those with their channels in another order."""
    n, channels = x.shape[:2]
    mean = x.mean((2, 3), keepdim=True)
    contrast = (uniform((n, channels, 1, 1), 0.5, 1.5, generator) * each(n, 0.5, 1.5, generator)).to(x)
    tint = uniform((n, channels, 1, 1), -0.2, 0.2, generator).to(x)
    changed = ((x - mean) * contrast + mean + tint).clamp(0, 1)
    order = torch.rand((n, channels), generator=generator).argsort(1).to(x.device)
    reordered = changed.gather(1, order[:, :, None, None].expand_as(changed))
    changed = torch.where(some(n, 0.3, generator).to(x.device), reordered, changed)
    return torch.where(some(n, 0.7, generator).to(x.device), changed, x)


def _interval(side: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """(N, length) whether a place lies in a random piece of `side` (N) of the length."""
    place = (torch.arange(length) + 0.5)[None] / length
    start = (torch.rand(len(side), generator=generator) * (1 - side))[:, None]
    return (place >= start) & (place < start + side[:, None])
