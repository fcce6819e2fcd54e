"""A few small squares on each picture, where and as the submitted network is moved most: the worst stickers for it.

A trigger is most often a small thing that outweighs all else in the picture, and it may do so on pictures of one class alone, or be
another one on each picture.  So the squares are sought for each picture by itself, and no target is assumed.  (What is localised and
bounded by its area in place of its amplitude: Brown et al., *Adversarial Patch*, 2017, arXiv 1712.09665; there for all pictures at once.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.twin import TorchTwin


@dataclass(frozen=True)
class Squares:
    """count: squares a picture.  side: of a square, as a share of the picture's smaller side.  ascents, step: signed, on paint in 0..1."""

    count: int = 2
    side: float = 0.19
    ascents: int = 2
    step: float = 0.5


def painted(twin: TorchTwin, x: Tensor, own: Tensor, squares: Squares, generator: torch.Generator) -> Tensor:
    """(N, C, H, W) pictures in 0..1 with squares on them, such that the submitted network doubts `own` (N), its answer to them, the most."""
    mask = places(gain(twin, x, own), x, squares, generator)
    paint = torch.rand(x.shape, generator=generator).to(x)
    for _ in range(squares.ascents):
        paint.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(twin.logits(x + mask * (paint - x)), own), paint)
        paint = (paint + squares.step * gradient.sign()).clamp(0, 1).detach()
    return x + mask * (paint - x)


def gain(twin: TorchTwin, x: Tensor, own: Tensor) -> Tensor:
    """(N, 1, H, W) how much log p(own) could fall, to first order, by painting each pixel anew."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(twin.logits(x).log_softmax(1).gather(1, own[:, None]).sum(), x)
    room = torch.where(slope > 0, x, 1 - x)  # a number falls to 0 at most, or grows to 1
    return (slope.abs() * room).detach().sum(1, keepdim=True)


def places(gains: Tensor, x: Tensor, squares: Squares, generator: torch.Generator) -> Tensor:
    """(N, 1, H, W) 1 where squares lie, else 0.  A place is drawn with a probability proportional to the gain there."""
    n, _, height, width = x.shape
    side = max(1, round(squares.side * min(height, width)))
    rows, columns = height - side + 1, width - side + 1
    likely = F.avg_pool2d(gains, side, stride=1).flatten(1).cpu().nan_to_num(0.0, 0.0, 0.0)
    drawn = torch.multinomial(likely + 1e-12, min(squares.count, rows * columns), generator=generator)
    corners = torch.zeros(n, rows * columns).scatter_(1, drawn, 1.0).view(n, 1, rows, columns)
    return F.max_pool2d(F.pad(corners, [side - 1] * 4), side, stride=1).to(x)
