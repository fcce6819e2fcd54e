"""Patches: one for each target; for each step to another class (all-to-all), whole and in parts; for each class that is left (source-specific)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from pipeline.search.chance import each
from pipeline.search.examples import Examples
from pipeline.search.targeted import Aim, Network, Pictures, Posing, Said, Stamped, Targeted, never
from pipeline.search.windows import best_windows

ARRIVED = 0.75  # share of pictures from which on a change does what it should; the price keeps it near 0.9
SHIFT = 1  # pixels, of pictures that are lent, at most
HALF = 0.5  # share of the places that a part of a patch may paint in
EDGE, STEEPNESS, CONTRAST = (-2.0, 0.5), (1.0, 4.0), (1.0, 3.0)  # of a patch that is varied: of the logits of its opacity, and of its pattern


class Overlaid(Targeted):
    """(1 - a) x + a p, with an opacity a and a pattern p in 0..1; the size is the sum of a, in pixels."""

    unit = "px"

    @abstractmethod
    def layers(self, pictures: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of opacity (N, 1, H, W) and pattern (N, C, H, W), of change `which[i]` for picture i."""

    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Paint over the pictures."""
        opacity, pattern = (made.sigmoid() for made in self.layers(pictures, which))
        return pictures + opacity * (pattern - pictures)

    def vary(self, pictures: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
        """Paint with other edges and another contrast."""
        return bolder(pictures, *self.layers(pictures, which), generator)

    @property
    def whole(self) -> float:
        """All pixels."""
        return float(self.shape[0] * self.shape[1])


class Painted(Overlaid):
    """The same a (K, 1, H, W) and p (K, C, H, W) on all pictures.

    places: (K, 1, H, W) 1 where each may paint, and 0 elsewhere; or 1, everywhere.
    """

    name, price, rate = "patch", 0.02, 0.15
    places: Tensor | float = 1.0

    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Logits of opacity and pattern: almost transparent."""
        _, c, height, width = picture.shape
        return [0.1 * torch.randn((k, 1, height, width), generator=generator) - 3.0, 0.5 * torch.randn((k, c, height, width), generator=generator)]

    def layers(self, pictures: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the patches."""
        opacity, pattern = (parameter[which] for parameter in self.parameters)
        return opacity, pattern

    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Paint the patches, each of which is made once, and not for each picture."""
        opacity, pattern = self._opacity()[which], self.parameters[1].sigmoid()[which]
        return pictures + opacity * (pattern - pictures)

    def sizes(self) -> Tensor:
        """Pixels that are covered."""
        return self._opacity().sum((1, 2, 3))

    def _opacity(self) -> Tensor:
        return self.parameters[0].sigmoid() * self.places


def bolder(pictures: Tensor, opacity: Tensor, pattern: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures, painted bolder than the logits (N, 1, H, W) and (N, C, H, W) say, with other edges and another contrast: as a trigger may be."""
    edge, steepness, contrast = (each(len(pictures), low, high, generator).to(pictures) for low, high in (EDGE, STEEPNESS, CONTRAST))
    opacity, pattern = (steepness * (opacity - edge)).sigmoid(), (contrast * pattern).sigmoid()
    return pictures + opacity * (pattern - pictures)


class Patches(Painted):
    """The smaller of two for each class: one that began almost transparent, and one that began as an opaque square where that does best."""

    kind = "patch"

    def search(
        self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int, late: Callable[[], bool] = never
    ) -> None:
        """From both starts."""
        placed = copy(self)
        placed.reached, placed.lost = self.reached.clone(), self.lost.clone()
        self.descend(network, pictures, own, generator, steps=steps, count=count, late=late)
        if late() or self.broken:
            return
        placed.parameters = [start.requires_grad_() for start in best_windows(network, pictures, len(own), self.classes, generator)]
        placed.descend(network, pictures, own, generator, steps=steps, count=count, late=late)
        with torch.no_grad():
            better = (placed.reached >= ARRIVED) & ((placed.sizes() < self.sizes()) | (self.reached < ARRIVED))
            for mine, other in zip(self.parameters, placed.parameters, strict=True):
                mine.copy_(torch.where(better[:, None, None, None], other, mine))
            self.reached = torch.where(better, placed.reached, self.reached)


class ByClass(Painted):
    """Patches that do different things to pictures of different classes, and are searched for on pictures that are `lent` where any others are too few.

    lent: pictures, whose labels are the classes that they are taken for.
    """

    lent: Examples | None = None

    def search(
        self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int, late: Callable[[], bool] = never
    ) -> None:
        """As all."""
        pictures, own = self._shown(pictures, own, generator)
        super().search(network, pictures, own, generator, steps=steps, count=count, late=late)

    def stamp(
        self, pictures: Pictures, own: Tensor, count: int, generator: torch.Generator, *, said: Said | None = None, posing: Posing | None = None
    ) -> Stamped:
        """As all; where pictures are lent, made to any, which are posing as those."""
        lent = self.lent
        if lent is None:
            return super().stamp(pictures, own, count, generator, said=said)

        def posed(index: Tensor) -> Tensor:
            if posing is None:
                return lent.drawn(index, SHIFT, generator)
            return posing(pictures(torch.randint(0, len(own), (len(index),), generator=generator)), lent.labels[index])

        return super().stamp(posed, lent.labels, count, generator)

    def _shown(self, pictures: Pictures, own: Tensor, generator: torch.Generator) -> tuple[Pictures, Tensor]:
        """Pictures, and their classes: those that are lent, if any are."""
        lent = self.lent
        return (pictures, own) if lent is None else ((lambda index: lent.drawn(index, SHIFT, generator)), lent.labels)


class Shifts(ByClass):
    """Patches that send every picture some classes on: from k to k + s, after the last to the first; all-to-all backdoors have s = 1.

    In place of `classes` stand the steps s, and one of them stands out where there is a short cut.  A network that no longer follows it takes such a
    picture for anything, unless it is taught what that was.
    """

    kind, usual, restores = "shift", 1.25, True
    enough = 0.5  # a network learns to send every class on for two pictures in three, or so; none is sent so far without

    def __init__(self, classes: Tensor, picture: Tensor, generator: torch.Generator, *, count: int, lent: Examples | None = None) -> None:
        """classes: (K) the steps s, from 1.  count: of all classes."""
        super().__init__(classes, picture, generator)
        self.count, self.lent = count, lent

    def aims(self, which: Tensor, own: Tensor) -> Tensor:
        """(N) the class that lies so many steps behind a picture's own."""
        return (own + self.classes[which]) % self.count

    def vary(self, pictures: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
        """As they were found: a bolder one sends pictures to some class of its own, and no longer on."""
        return self.change(pictures, which)

    def aim(self, row: int) -> Aim:
        """How many steps."""
        return Aim(onward=int(self.classes[row]))


class Parts(Shifts):
    """Several patches that send every picture the same number of classes on, each of which may paint in half of the places alone, drawn by chance.

    The smallest patch is a part of what a network has learnt: what that leaves out sends pictures on when it is unlearnt.
    """

    sharpness = 0.0  # each of them shows another part

    def __init__(self, whole: Shifts, picture: Tensor, generator: torch.Generator, *, patches: int) -> None:
        """whole: the smallest of these patches is sought in parts."""
        step = whole.classes[whole.sizes().argmin()]
        super().__init__(step.repeat(patches), picture, generator, count=whole.count, lent=whole.lent)
        self.places = (torch.rand((patches, 1, *self.shape), generator=generator) < HALF).to(picture)


class Departures(ByClass):
    """Patches that take the pictures of one class away from it, wherever they go: source-specific backdoors.

    `classes` are the sources, and there is a change for each that has pictures.  Some classes are never far from another, cats from dogs.
    """

    kind, usual = "departure", 1.75

    def __init__(self, classes: Tensor, picture: Tensor, generator: torch.Generator, *, lent: Examples | None = None) -> None:
        """classes: (K) the sources."""
        super().__init__(classes, picture, generator)
        self.goals = classes.clone()  # where most pictures go
        self.lent = lent

    def aims(self, which: Tensor, own: Tensor) -> Tensor:
        """(N) the class that most pictures of a source go to."""
        return self.goals[which]

    def aim(self, row: int) -> Aim:
        """From where to where."""
        return Aim(target=int(self.goals[row]), source=int(self.classes[row]))

    def pick(self, which: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
        """(N) pictures of the sources."""
        there = (own[None] == self.classes[which][:, None]).float().cpu()
        return torch.multinomial(there, 1, generator=generator)[:, 0]

    def missed(self, logits: Tensor, which: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """-log(1 - p(own class)), and whether another class wins."""
        return -logits.log_softmax(1).scatter(1, own[:, None], float("-inf")).logsumexp(1), logits.argmax(1) != own

    def search(
        self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int, late: Callable[[], bool] = never
    ) -> None:
        """As all; then see where pictures go."""
        super().search(network, pictures, own, generator, steps=steps, count=count, late=late)
        pictures, own = self._shown(pictures, own, generator)
        which = torch.arange(len(self.classes), device=self.classes.device).repeat_interleave(4 * count)
        with torch.no_grad():
            index = self.pick(which, own, generator)
            logits = network(self.change(pictures(index), which))
        logits = logits.scatter(1, own[index][:, None], float("-inf"))
        self.goals = logits.argmax(1).view(-1, 4 * count).mode(1).values
