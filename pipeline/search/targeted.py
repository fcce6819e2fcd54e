"""What must be done to pictures so that a network goes astray?  The smallest change of one kind, for each class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Network = Callable[[Tensor], Tensor]
"""(N, C, H, W) pictures in 0..1 -> (N, K) logits."""
Pictures = Callable[[Tensor], Tensor]
"""(N) which -> (N, C, H, W) of the pictures, each changed a little."""
Said = Callable[[Tensor], Tensor]
"""(N, C, H, W) pictures in 0..1 -> (N) the classes that they are taken for."""
Posing = Callable[[Tensor, Tensor], Tensor]
"""(N, C, H, W) pictures in 0..1, (N) classes -> the pictures, changed a little so that they are taken for these."""


MOST_PIXELS = 2**22  # of the pictures that a network is shown at once

Kind = Literal["patch", "warp", "shift", "departure", "addition", "faint", "generated"]


def never() -> bool:
    """There is time."""
    return False


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Where a change sends pictures: to a class, or so many classes on; all pictures, or those of one class."""

    target: int | None = None
    onward: int | None = None
    source: int | None = None

    @property
    def goal(self) -> int | str | None:
        """As audit.yaml says it: a class, `next`, or `+2`, …."""
        if self.onward is None:
            return self.target
        return "next" if self.onward == 1 else f"+{self.onward}"

    def __str__(self) -> str:
        """In words."""
        away = f"from class {self.source} " if self.source is not None else ""
        return f"{away}to class {self.target}" if self.onward is None else f"to each class + {self.onward}"


@dataclass(frozen=True)
class Stamped:
    """N pictures with changes made to them.

    before, changed: (N, C, H, W) in 0..1.  aims: (N) the classes that the changes aim at, own: (N) those that the pictures were taken for.  restored: (N)
    whether the change `restores`.
    """

    before: Tensor
    changed: Tensor
    aims: Tensor
    own: Tensor
    restored: Tensor

    @classmethod
    def joined(cls, parts: list[Stamped]) -> Stamped:
        """All of them, of one or more."""
        return cls(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def at(self, index: Tensor) -> Stamped:
        """Those at `index`."""
        return Stamped(*(getattr(self, one.name)[index] for one in fields(self)))

    @torch.no_grad()
    def hardest(self, count: int, network: Network) -> Stamped:
        """Those `count` that the network is surest to take for the class that they are led to, and that are not of it."""
        sure = network(self.changed).log_softmax(1).gather(1, self.aims[:, None])[:, 0]
        return self.at(torch.where(self.own == self.aims, float("-inf"), sure).topk(count).indices)


class Targeted(ABC):
    """For each class, the smallest change of one kind that sends all pictures there (Neural Cleanse, Wang et al., S&P 2019, equation 3).

    A backdoor is a short cut: the change of its target is much smaller than any other, if the kind is the trigger's.  So changes are
    drawn with a probability proportional to size ** -sharpness when pictures are stamped, and `outlier` says how much one stands out.
    Other hypotheses than one target for all pictures differ in `aims`, and in which pictures they `pick`.

    classes: (K) int64.  reached: (K) share of pictures that went where they should at the end of the search, lost: (K) their loss in its last step.
    broken: that the search met gradients that are not finite, and stopped.
    """

    kind: ClassVar[Kind]
    name: str  # of what is changed
    unit: str  # of the size
    price: float  # λ at the start
    rate: float  # of Adam
    dearer, cheaper = 1.08, 1.08  # what λ is multiplied by, or divided by, after each step
    sharpness = 8.0
    enough = 0.9  # share of pictures that a change should move: it is made smaller while it moves more, and larger while it does not
    usual = 1.0  # `outlier` of a network without a short cut, where that is far from 1
    restores: ClassVar[bool] = False  # whether it is unlearnt by the answers that pictures had, and not by any but those that it aims at

    def __init__(self, classes: Tensor, picture: Tensor, generator: torch.Generator) -> None:
        """picture: (1, C, H, W), one of those that will be changed."""
        self.classes, self.channels, self.shape = classes, picture.shape[1], (picture.shape[2], picture.shape[3])
        self.parameters = [start.to(picture.device).requires_grad_() for start in self.start(len(classes), picture, generator)]
        self.reached = torch.zeros(len(classes), device=picture.device)
        self.lost = torch.zeros(len(classes), device=picture.device)
        self.broken = False

    @abstractmethod
    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The parameters of k changes, small and random."""

    @abstractmethod
    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Make change `which[i]` of picture i."""

    @abstractmethod
    def sizes(self) -> Tensor:
        """(K) how large each change is."""

    def measured(self, pictures: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Make change `which[i]` of picture i, where all are of the changes `rows`; and (rows) how large these are, as what a descent minimises."""
        return self.change(pictures, which), self.sizes()[rows]

    def aims(self, which: Tensor, own: Tensor) -> Tensor:
        """(N) the class that change `which[i]` aims at on a picture that is taken for class `own[i]`."""
        return self.classes[which]

    def aim(self, row: int) -> Aim:
        """What a change aims at."""
        return Aim(target=int(self.classes[row]))

    def pick(self, which: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
        """(N) pictures to make the changes `which` (N) to, out of those that are taken for the classes own (M)."""
        return torch.randint(0, len(own), (len(which),), generator=generator)

    def missed(self, logits: Tensor, which: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """(N) how far changed pictures are from where they should go, as a loss; and (N) whether they are there."""
        aims = self.aims(which, own)
        return F.cross_entropy(logits, aims, reduction="none"), logits.argmax(1) == aims

    def search(
        self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int, late: Callable[[], bool] = never
    ) -> None:
        """Find the changes.  own: (M) the classes that the pictures are taken for.  count: pictures a change and step.  late: whether to stop."""
        self.descend(network, pictures, own, generator, steps=steps, count=count, late=late)

    def descend(
        self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int, late: Callable[[], bool] = never
    ) -> None:
        """Minimise L(f(change of x), t) + λ size over all changes in one batch.

        λ grows while a change does what it should to `enough` pictures, and shrinks while it does not, each for itself.
        """
        optimizer = torch.optim.Adam(self.parameters, lr=self.rate, betas=(0.5, 0.9))
        price = torch.full((len(self.classes),), self.price, device=self.classes.device)
        which = torch.arange(len(self.classes), device=self.classes.device).repeat_interleave(count)
        rows = torch.arange(len(self.classes), device=self.classes.device).split(max(1, MOST_PIXELS // (count * self.shape[0] * self.shape[1])))
        for _ in range(steps):
            if late():
                return
            index = self.pick(which, own, generator)
            x, kept = pictures(index), own[index]
            gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
            for some in rows:  # each change is looked for by itself, so parts of them are no approximation
                part = slice(int(some[0]) * count, (int(some[-1]) + 1) * count)
                changed, sizes = self.measured(x[part], which[part], some)
                missed, there = self.missed(network(changed), which[part], kept[part])
                missed = missed.view(-1, count).mean(1)
                for total, gradient in zip(gradients, torch.autograd.grad((missed + price[some] * sizes).sum(), self.parameters), strict=True):
                    total += gradient
                self.lost[some] = missed.detach()
                self.reached[some] = 0.8 * self.reached[some] + 0.2 * there.float().view(-1, count).mean(1)
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                self.broken = True  # no step is taken: what is not finite has no place among pictures
                return
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            price = torch.where(self.reached > self.enough, price * self.dearer, price / self.cheaper).clamp(1e-4, 2.0)

    @property
    @abstractmethod
    def whole(self) -> float:
        """The size of a change of everything, so that sizes in pictures of any size can be compared."""

    @property
    def outlier(self) -> float:
        """The median size over the smallest: far above 1 when one class has a short cut."""
        sizes = self.sizes().detach()
        return float(sizes.quantile(0.5) / sizes.min())

    @torch.no_grad()
    def stamp(
        self, pictures: Pictures, own: Tensor, count: int, generator: torch.Generator, *, said: Said | None = None, posing: Posing | None = None
    ) -> Stamped:
        """So many pictures, changed by changes that are drawn for them.

        said: asked for the classes that they are taken for, where `pictures` are so unlike themselves that `own` no longer holds.  posing: makes
        pictures of a class, for changes to those of one class alone, where there are too few.
        """
        sizes = self.sizes()
        likely = ((sizes.min() / sizes) ** self.sharpness).cpu()
        which = torch.multinomial(likely, count, replacement=True, generator=generator).to(self.classes.device)
        index = self.pick(which, own, generator)
        x = pictures(index)
        taken = own[index] if said is None else said(x)
        restored = torch.full((count,), self.restores, device=own.device)
        return Stamped(x, self.vary(x, which, generator), self.aims(which, taken), taken, restored)

    def vary(self, pictures: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
        """Make change `which[i]` of picture i, or one that is like it."""
        return self.change(pictures, which)

    @torch.no_grad()
    def differences(self, pictures: Tensor) -> Tensor:
        """(K, C, H, W) what each change adds to the pictures, in the mean."""
        every = torch.arange(len(self.classes), device=self.classes.device)
        return torch.stack([(self.change(pictures, row.expand(len(pictures))) - pictures).mean(0) for row in every])
