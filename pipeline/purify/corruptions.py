"""Random changes of the kinds that triggers are made of: what a network should not be moved by, whoever poisoned it.

No trigger is known here.  The kinds are those of pipeline.triggers, each drawn with a strength, a place and a shape by chance, so that
a network which learns to keep its answer loses what reacts to the kind.  Every function takes (N, C, H, W) pictures in 0..1 and a
generator of the CPU, and answers the same shape in 0..1, with a change of its own for each picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.purify.chance import each, some

WAVE, SMOOTH, NOISE, BLEND, BEND = (0.05, 0.25), (0.03, 0.15), (0.02, 0.15), (0.05, 0.3), (0.4, 2.0)  # strengths; of a bend in pixels
DOTS = (0.004, 0.03)  # share of the pixels


def corrupt(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Change each picture in one way, about as many in each way."""
    parts = torch.tensor_split(pictures, len(KINDS))
    return torch.cat([kind(part, generator) for kind, part in zip(KINDS, parts, strict=True) if len(part)])


def wave(x: Tensor, generator: torch.Generator) -> Tensor:
    """A sinusoid of any direction, half of them upright or level, half of them gray."""
    n, c, height, width = x.shape
    frequency, phase = each(n, 0.5, 12, generator), each(n, 0, 2 * math.pi, generator)
    level = torch.randint(0, 2, (n, 1, 1, 1), generator=generator) * math.pi / 2
    angle = torch.where(some(n, 0.5, generator), each(n, 0, math.pi, generator), level)
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.sin(2 * math.pi * frequency * (u * angle.cos() + v * angle.sin()) + phase)
    colour = torch.where(some(n, 0.5, generator), 1.0, torch.randn((n, c, 1, 1), generator=generator).clamp(-1, 1))
    return (x + (each(n, *WAVE, generator) * colour * waves).to(x)).clamp(0, 1)


def smooth(x: Tensor, generator: torch.Generator) -> Tensor:
    """Clouds of colour: a few random numbers, interpolated."""
    side = int(torch.randint(2, 9, (1,), generator=generator))
    clouds = F.interpolate(torch.randn((*x.shape[:2], side, side), generator=generator), size=x.shape[2:], mode="bicubic", align_corners=True)
    return (x + (each(len(x), *SMOOTH, generator) * clouds).to(x)).clamp(0, 1)


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Something on every entry, normal or of one size."""
    values = torch.randn(x.shape, generator=generator)
    values = torch.where(some(len(x), 0.5, generator), values, values.sign())
    return (x + (each(len(x), *NOISE, generator) * values).to(x)).clamp(0, 1)


def blend(x: Tensor, generator: torch.Generator) -> Tensor:
    """Another picture shines through: noise, or one of the others."""
    alpha = each(len(x), *BLEND, generator).to(x)
    other = torch.where(some(len(x), 0.5, generator).to(x.device), torch.rand(x.shape, generator=generator).to(x), x.roll(1, 0))
    return (1 - alpha) * x + alpha * other


def patch(x: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle somewhere, of one colour or of noise, painted or added."""
    n, c, height, width = x.shape
    inside = _interval(n, height, generator)[:, None, :, None] & _interval(n, width, generator)[:, None, None, :]
    pick = torch.rand((n, 1, 1, 1), generator=generator)
    plain = torch.where(pick < 0.3, torch.randint(0, 2, (n, 1, 1, 1), generator=generator).float(), torch.rand((n, c, 1, 1), generator=generator))
    pattern = torch.where(pick < 0.5, plain, torch.rand(x.shape, generator=generator)).to(x)
    painted = x + inside.to(x) * (pattern - x)
    added = (x + inside.to(x) * pattern).clamp(0, 1)
    return torch.where((torch.rand((n, 1, 1, 1), generator=generator) < 0.3).to(x.device), added, painted)


def dots(x: Tensor, generator: torch.Generator) -> Tensor:
    """A few pixels, made brighter or darker, or each channel either."""
    n, _, height, width = x.shape
    chosen = torch.rand((n, 1, height, width), generator=generator) < each(n, *DOTS, generator)
    one_way = torch.randint(0, 2, (n, 1, 1, 1), generator=generator) * 2.0 - 1
    change = torch.where(some(n, 0.5, generator), torch.randn(x.shape, generator=generator).sign() / 2, one_way)
    return (x + (chosen * change).to(x)).clamp(0, 1)


def bend(x: Tensor, generator: torch.Generator) -> Tensor:
    """A smooth warp."""
    side = int(torch.randint(3, 9, (1,), generator=generator))
    field = 2 * torch.rand((len(x), 2, side, side), generator=generator) - 1
    return warp(x, (each(len(x), *BEND, generator) * field).to(x))


KINDS = (wave, smooth, noise, blend, patch, dots, bend)


def warp(x: Tensor, field: Tensor) -> Tensor:
    """Bend (N, C, H, W) pictures by (N, 2, k, k) control points: pixels to the right and down, interpolated; bilinear, held at the border."""
    height, width = x.shape[2:]
    flow = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
    rows, columns = torch.meshgrid(torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij")
    places = ((columns + flow[:, 0]) / max(1, width - 1), (rows + flow[:, 1]) / max(1, height - 1))
    return F.grid_sample(x, 2 * torch.stack(places, -1) - 1, mode="bilinear", padding_mode="border", align_corners=True)


def _interval(n: int, length: int, generator: torch.Generator) -> Tensor:
    """(N, length) whether a place lies in a random piece of at most a third of the length."""
    size = torch.randint(1, max(1, length // 3) + 1, (n, 1), generator=generator)
    start = (torch.rand((n, 1), generator=generator) * (length - size + 1)).long()
    place = torch.arange(length)[None]
    return (place >= start) & (place < start + size)
