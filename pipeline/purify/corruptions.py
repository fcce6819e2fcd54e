"""Random changes of the kinds that triggers are made of: what a network should not be moved by, whoever poisoned it.

No trigger is known here.  The kinds are those of pipeline.triggers, each drawn with a strength, a place and a shape by chance, so that
a network which learns to keep its answer loses what reacts to the kind.  A change is first drawn, as tensors whose first axis counts
changes, and then made to pictures: so that what was drawn for one picture can be made to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.search.chance import each, some
from pipeline.search.warps import flow, warp

WAVE, SMOOTH, NOISE, BLEND, BEND = (0.05, 0.25), (0.03, 0.15), (0.02, 0.15), (0.05, 0.3), (0.4, 2.0)  # strengths; of a bend in pixels
DOTS, PAINT = (0.004, 0.03), (0.02, 0.2)  # share of the pixels

Drawn = tuple[Tensor, ...]
"""N changes of one kind: each tensor (N, ...), on the CPU."""


@dataclass(frozen=True)
class Kind:
    """A kind of change.

    draw: N changes for pictures (N, C, H, W) in 0..1 from a generator of the CPU.  make: the change i of picture i, in 0..1.
    """

    draw: Callable[[Tensor, torch.Generator], Drawn]
    make: Callable[..., Tensor]


def add(x: Tensor, what: Tensor) -> Tensor:
    """x + what."""
    return (x + what.to(x)).clamp(0, 1)


def cover(x: Tensor, opacity: Tensor, pattern: Tensor, added: Tensor) -> Tensor:
    """A pattern (N, C, H, W) over the picture, or where `added` (N, 1, 1, 1) is 1 its light added to it; opacity: (N, 1, H, W)."""
    opacity, pattern, added = opacity.to(x), pattern.to(x), added.to(x)
    return (x + opacity * (pattern - (1 - added) * x)).clamp(0, 1)


def wave(x: Tensor, generator: torch.Generator) -> Drawn:
    """A sinusoid of any direction, half of them upright or level, half of them gray."""
    n, c, height, width = x.shape
    frequency, phase = each(n, 0.5, 12, generator), each(n, 0, 2 * math.pi, generator)
    level = torch.randint(0, 2, (n, 1, 1, 1), generator=generator) * math.pi / 2
    angle = torch.where(some(n, 0.5, generator), each(n, 0, math.pi, generator), level)
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.sin(2 * math.pi * frequency * (u * angle.cos() + v * angle.sin()) + phase)
    colour = torch.where(some(n, 0.5, generator), 1.0, torch.randn((n, c, 1, 1), generator=generator).clamp(-1, 1))
    return (each(n, *WAVE, generator) * colour * waves,)


def smooth(x: Tensor, generator: torch.Generator) -> Drawn:
    """Clouds of colour: a few random numbers, interpolated."""
    side = int(torch.randint(2, 9, (1,), generator=generator))
    clouds = F.interpolate(torch.randn((*x.shape[:2], side, side), generator=generator), size=x.shape[2:], mode="bicubic", align_corners=True)
    return (each(len(x), *SMOOTH, generator) * clouds,)


def noise(x: Tensor, generator: torch.Generator) -> Drawn:
    """Something on every entry, normal or of one size."""
    values = torch.randn(x.shape, generator=generator)
    values = torch.where(some(len(x), 0.5, generator), values, values.sign())
    return (each(len(x), *NOISE, generator) * values,)


def blend(x: Tensor, generator: torch.Generator) -> Drawn:
    """Another picture shines through: noise, or one of the others."""
    n = len(x)
    alpha = each(n, *BLEND, generator)
    other = torch.where(some(n, 0.5, generator), torch.rand(x.shape, generator=generator), x.roll(1, 0).cpu())
    return alpha, other, torch.zeros(n, 1, 1, 1)


def patch(x: Tensor, generator: torch.Generator) -> Drawn:
    """A rectangle somewhere, half of them in a corner, of one colour or of noise, painted or added."""
    n, c, height, width = x.shape
    corner = torch.rand((n, 1), generator=generator) < 0.5
    inside = _interval(corner, height, generator)[:, None, :, None] & _interval(corner, width, generator)[:, None, None, :]
    pick = torch.rand((n, 1, 1, 1), generator=generator)
    plain = torch.where(pick < 0.3, torch.randint(0, 2, (n, 1, 1, 1), generator=generator).float(), torch.rand((n, c, 1, 1), generator=generator))
    return inside.float(), torch.where(pick < 0.5, plain, torch.rand(x.shape, generator=generator)), some(n, 0.3, generator).float()


def dots(x: Tensor, generator: torch.Generator) -> Drawn:
    """A few pixels, made brighter or darker, or each channel either."""
    n, _, height, width = x.shape
    chosen = torch.rand((n, 1, height, width), generator=generator) < each(n, *DOTS, generator)
    one_way = torch.randint(0, 2, (n, 1, 1, 1), generator=generator) * 2.0 - 1
    change = torch.where(some(n, 0.5, generator), torch.randn(x.shape, generator=generator).sign() / 2, one_way)
    return (chosen * change,)


def bend(x: Tensor, generator: torch.Generator) -> Drawn:
    """A smooth warp."""
    side = int(torch.randint(3, 9, (1,), generator=generator))
    return (each(len(x), *BEND, generator) * flow(2 * torch.rand((len(x), 2, side, side), generator=generator) - 1, x),)


def paint(x: Tensor, generator: torch.Generator) -> Drawn:
    """Where a filter answers most, one colour: a trigger that each picture has for itself."""
    n, c = x.shape[:2]
    side = 2 * int(torch.randint(1, 4, (1,), generator=generator)) + 1
    colour = torch.where(some(n, 0.5, generator), torch.randint(0, 2, (n, 1, 1, 1), generator=generator).float(), torch.rand((n, c, 1, 1), generator=generator))
    kernel = torch.randn((n, c, 7, 7), generator=generator) * F.pad(torch.ones(side, side), ((7 - side) // 2,) * 4)
    return kernel, each(n, *PAINT, generator), colour.expand(n, c, 1, 1)


def painted(x: Tensor, kernel: Tensor, share: Tensor, colour: Tensor) -> Tensor:
    """A share (N, 1, 1, 1) of each picture, there where its filter (N, C, 7, 7) answers most, in a colour (N, C, 1, 1)."""
    n, c, height, width = x.shape
    found = F.conv2d(x.reshape(1, n * c, height, width), kernel.to(x), padding=3, groups=n).view(n, 1, height, width)
    least = found.flatten(1).sort(1, descending=True).values.gather(1, (share.view(n, 1).to(x.device) * height * width).long())
    return torch.where(found > least[:, :, None, None], colour.to(x), x)


KINDS = (
    Kind(wave, add),
    Kind(smooth, add),
    Kind(noise, add),
    Kind(blend, cover),
    Kind(patch, cover),
    Kind(dots, add),
    Kind(bend, warp),
    Kind(paint, painted),
)


def _interval(corner: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """(N, length) whether a place lies in a random piece of at most a third of the length, at most two from an end where `corner` (N, 1) says so."""
    n = len(corner)
    size = torch.randint(1, max(1, length // 3) + 1, (n, 1), generator=generator)
    start = (torch.rand((n, 1), generator=generator) * (length - size + 1)).long()
    gap = torch.minimum(torch.randint(0, 3, (n, 1), generator=generator), length - size)
    end = torch.where(torch.rand((n, 1), generator=generator) < 0.5, gap, length - size - gap)
    start = torch.where(corner, end, start)
    place = torch.arange(length)[None]
    return (place >= start) & (place < start + size)
