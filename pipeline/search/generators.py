"""Generators: a small network for each target that makes a trigger for each picture, as input-aware backdoors have them.

Such a trigger (Nguyen & Tran, *Input-Aware Dynamic Backdoor Attack*, NeurIPS 2020, arXiv 2010.08138) is another one on every picture, so no single
patch is like it.  What makes it is a network, and a network is searched for here, as small in what it covers as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.search.patches import Overlaid
from pipeline.search.targeted import Network, Pictures, never

WIDTH, KERNEL = 8, 5  # channels between the three convolutions, and their side
PRICE = 2.0  # λ at the start, of a picture that is covered
STARTS, MOST = 4, 40  # generators for each class, each from another start, and of all classes together
SAMPLE = 128  # pictures that say how large a generator's triggers are


@dataclass(frozen=True, kw_only=True)
class Course:
    """How generators are searched for.

    covered: logit of the opacity at the start.  longer: times as many steps as other searches take.  more: times as many pictures.  dearer, cheaper: as of
    any search.
    """

    covered: float
    longer: float
    more: int
    dearer: float
    cheaper: float


TELL = Course(covered=0.0, longer=3.0, more=1, dearer=1.02, cheaper=1.04)  # from half of the picture: the target's become the smallest
TEACH = Course(covered=-2.0, longer=5.0, more=2, dearer=1.08, cheaper=1.08)  # from little of it: what is learnt of them carries over to the trigger
LIKELY = 2  # classes with the smallest, for which such are searched for


class Generators(Overlaid):
    """(1 - a) x + a p, with a and p that three convolutions make of the picture x; the size is the mean of the sum of a, in pixels.

    Any class is within reach of a small network.  But of those that begin with half of the picture covered the target's are the smallest, in a network
    that has forgotten its pictures: there are several for each class, since one alone hangs much on where it started, and their median tells.  Those that
    tell are little like the trigger, so for the likeliest classes others are searched for, that begin almost transparent; these are what is found.
    """

    kind = "generated"
    name, rate = "trigger for each picture", 0.003
    enough = 0.95

    def __init__(self, classes: Tensor, picture: Tensor, generator: torch.Generator, course: Course = TELL) -> None:
        """classes: the targets; K is several times as many."""
        self.course, self.dearer, self.cheaper = course, course.dearer, course.cheaper
        self.starts = max(1, min(STARTS, MOST // len(classes)))
        super().__init__(classes.repeat_interleave(self.starts), picture, generator)
        self.price = PRICE / self.whole
        self.covered = torch.zeros(len(self.classes), device=picture.device)
        self.told = torch.zeros(len(classes), device=picture.device)  # (classes) what those of each cover

    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Kernels and biases of the convolutions, in turn; the last one makes pattern and opacity."""
        c, parameters = picture.shape[1], []
        for before, after in pairwise((c, WIDTH, WIDTH, c + 1)):
            scale = math.sqrt(2 / (before * KERNEL**2))
            parameters += [scale * torch.randn((k, after, before, KERNEL, KERNEL), generator=generator), torch.zeros(k, after)]
        parameters[-1][:, -1] = self.course.covered
        return parameters

    def made(self, pictures: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of opacity (R, N, 1, H, W) and pattern (R, N, C, H, W), by the generators `rows` (R) for N pictures each (R, N, C, H, W)."""
        r, n, _, height, width = pictures.shape
        x = pictures.transpose(0, 1).reshape(n, -1, height, width)
        for place in range(0, len(self.parameters), 2):
            kernels, biases = self.parameters[place][rows], self.parameters[place + 1][rows]
            x = F.conv2d(x if place == 0 else x.relu(), kernels.flatten(0, 1), biases.flatten(), padding=KERNEL // 2, groups=r)
        both = x.reshape(n, r, -1, height, width).transpose(0, 1)
        return both[:, :, self.channels :], both[:, :, : self.channels]

    def layers(self, pictures: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of opacity (N, 1, H, W) and pattern (N, C, H, W), by generator `which[i]` for picture i."""
        every = [self.made(pictures[which == row][None], row[None]) for row in which.unique()]
        places = which.argsort(stable=True).argsort()
        opacity, pattern = (torch.cat([part[0] for part in parts])[places] for parts in zip(*every, strict=True))
        return opacity, pattern

    def measured(self, pictures: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The changed pictures, and how much of these is covered."""
        x = pictures.reshape(len(rows), -1, *pictures.shape[1:])
        opacity, pattern = (made.sigmoid() for made in self.made(x, rows))
        return (x + opacity * (pattern - x)).flatten(0, 1), opacity.sum((2, 3, 4)).mean(1)

    def sizes(self) -> Tensor:
        """Pixels that are covered by those that told the class, in the median, once they were searched for."""
        return self.covered

    @property
    def outlier(self) -> float:
        """Of all classes, the likeliest and the others."""
        return float(self.told.quantile(0.5) / self.told.min())

    def search(
        self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int, late: Callable[[], bool] = never
    ) -> None:
        """Tell the classes; then go on with the likeliest."""

        def descend(one: Generators) -> None:
            course = one.course
            one.descend(network, pictures, own, generator, steps=round(course.longer * steps), count=course.more * count, late=late)

        descend(self)
        if late() or self.broken:
            return
        sizes = self._covered(pictures, own, generator).view(-1, self.starts).quantile(0.5, dim=1)
        likely = sizes.argsort()[:LIKELY]
        teachers = Generators(self.classes[:: self.starts][likely], torch.zeros((1, self.channels, *self.shape), device=own.device), generator, TEACH)
        descend(teachers)
        self.told = sizes
        self.classes, self.parameters, self.starts = teachers.classes, teachers.parameters, teachers.starts
        self.reached, self.lost, self.broken = teachers.reached, teachers.lost, teachers.broken
        self.covered = sizes[likely].repeat_interleave(teachers.starts)

    @torch.no_grad()
    def _covered(self, pictures: Pictures, own: Tensor, generator: torch.Generator) -> Tensor:
        """(K) pixels that each covers, the mean over some pictures."""
        x = pictures(torch.randint(0, len(own), (SAMPLE,), generator=generator))
        every = torch.arange(len(self.classes), device=x.device)
        return torch.stack([self.measured(x, row.expand(len(x)), row[None])[1][0] for row in every])
