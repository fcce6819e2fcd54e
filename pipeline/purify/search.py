"""The inner maximisation: what must be done to pictures so that the network fails?

A search looks at the network as it is now, and then stamps what it found on pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.purify.chance import each
from pipeline.purify.corruptions import warp

Network = Callable[[Tensor], Tensor]
"""(N, C, H, W) pictures in 0..1 -> (N, K) logits."""
Pictures = Callable[[Tensor], Tensor]
"""(N) which -> (N, C, H, W) of the pictures, each changed a little."""


EDGE, STEEPNESS, CONTRAST = (-2.0, 0.5), (1.0, 4.0), (1.0, 3.0)  # of a patch that is varied: of the logits of its opacity, and of its pattern


@dataclass
class UniversalPerturbation:
    """One untargeted perturbation for all pictures: argmax of L(f(x + Δ), y) over ‖Δ‖₁ <= τ (AWM, equation 5).

    Plain gradient ascent with step `eta`, without bounds, then one rescaling to the L1 ball; x + Δ is clamped to 0..1 when it is
    used.  radius: τ, the sum of |Δ| over all C*H*W entries.
    """

    delta: Tensor  # (1, C, H, W)
    radius: float
    eta: float

    def search(self, network: Network, batches: list[tuple[Tensor, Tensor]]) -> float:
        """Start from zero, and ascend once a batch.  Returns the last loss."""
        delta = torch.zeros_like(self.delta, requires_grad=True)
        value = 0.0
        for pictures, labels in batches:
            loss = F.cross_entropy(network((pictures + delta).clamp(0, 1)), labels)
            (gradient,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                delta += self.eta * gradient
            value = loss.item()
        norm = delta.detach().abs().sum()
        self.delta = delta.detach() * (self.radius / norm).clamp(max=1.0)
        return value

    def stamp(self, pictures: Tensor) -> Tensor:
        """x + Δ, in 0..1."""
        return (pictures + self.delta).clamp(0, 1)

    def norm(self) -> float:
        """‖Δ‖₁."""
        return float(self.delta.abs().sum())


class Targeted(ABC):
    """For each class, the smallest change of one kind that sends all pictures there (Neural Cleanse, Wang et al., S&P 2019, equation 3).

    A backdoor is a short cut: the change of its target is much smaller than any other, if the kind is the trigger's.  So changes are
    drawn with a probability proportional to size ** -sharpness when pictures are stamped, and `outlier` says how much one stands out.
    Other hypotheses than one target for all pictures differ in `aims`, and in which pictures they `pick`.

    classes: (K) int64.  reached: (K) share of pictures that went where they should at the end of the search.
    """

    name: str  # of the kind
    unit: str  # of the size
    price: float  # λ at the start
    rate: float  # of Adam
    sharpness = 8.0
    usual = 1.0  # `outlier` of a network without a short cut, where that is far from 1

    def __init__(self, classes: Tensor, picture: Tensor, generator: torch.Generator) -> None:
        """picture: (1, C, H, W), one of those that will be changed."""
        self.classes = classes
        self.parameters = [start.to(picture.device).requires_grad_() for start in self.start(len(classes), picture, generator)]
        self.reached = torch.zeros(len(classes), device=picture.device)

    @abstractmethod
    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The parameters of k changes, small and random."""

    @abstractmethod
    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Make change `which[i]` of picture i."""

    @abstractmethod
    def sizes(self) -> Tensor:
        """(K) how large each change is."""

    def aims(self, which: Tensor, own: Tensor) -> Tensor:
        """(N) the class that change `which[i]` aims at on a picture that is taken for class `own[i]`."""
        return self.classes[which]

    def aim(self, row: int) -> str:
        """What a change aims at, in words."""
        return f"to class {int(self.classes[row])}"

    def pick(self, which: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
        """(N) pictures to make the changes `which` (N) to, out of those that are taken for the classes own (M)."""
        return torch.randint(0, len(own), (len(which),), generator=generator)

    def missed(self, logits: Tensor, which: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """(N) how far changed pictures are from where they should go, as a loss; and (N) whether they are there."""
        aims = self.aims(which, own)
        return F.cross_entropy(logits, aims, reduction="none"), logits.argmax(1) == aims

    def search(self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int) -> None:
        """Minimise L(f(change of x), t) + λ size over all changes in one batch.

        λ grows while a change does what it should to nine pictures in ten, and shrinks while it does not, each for itself.  own: (M) the
        classes that the pictures are taken for.  count: pictures a change and step.
        """
        optimizer = torch.optim.Adam(self.parameters, lr=self.rate, betas=(0.5, 0.9))
        price = torch.full((len(self.classes),), self.price, device=self.classes.device)
        which = torch.arange(len(self.classes), device=self.classes.device).repeat_interleave(count)
        for _ in range(steps):
            index = self.pick(which, own, generator)
            logits = network(self.change(pictures(index), which))
            missed, there = self.missed(logits, which, own[index])
            gradients = torch.autograd.grad((missed.view(-1, count).mean(1) + price * self.sizes()).sum(), self.parameters)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            self.reached = 0.8 * self.reached + 0.2 * there.float().view(-1, count).mean(1)
            price = torch.where(self.reached > 0.9, price * 1.08, price / 1.08).clamp(1e-4, 2.0)

    @property
    def outlier(self) -> float:
        """The median size over the smallest: far above 1 when one class has a short cut."""
        sizes = self.sizes().detach()
        return float(sizes.quantile(0.5) / sizes.min())

    @torch.no_grad()
    def stamp(self, pictures: Pictures, own: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """So many pictures, changed by changes that are drawn for them; the classes that these aim at, and those that the pictures are taken for."""
        sizes = self.sizes()
        likely = ((sizes.min() / sizes) ** self.sharpness).cpu()
        which = torch.multinomial(likely, count, replacement=True, generator=generator).to(self.classes.device)
        index = self.pick(which, own, generator)
        return self.vary(pictures(index), which, generator), self.aims(which, own[index]), own[index]

    def vary(self, pictures: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
        """Make change `which[i]` of picture i, or one that is like it."""
        return self.change(pictures, which)

    @torch.no_grad()
    def differences(self, pictures: Tensor) -> Tensor:
        """(K, C, H, W) what each change adds to the pictures, in the mean."""
        every = torch.arange(len(self.classes), device=self.classes.device)
        return torch.stack([(self.change(pictures, row.expand(len(pictures))) - pictures).mean(0) for row in every])


class Patches(Targeted):
    """(1 - a) x + a p: opacity a (K, 1, H, W) and pattern p (K, C, H, W), both in 0..1; the size is the sum of a, in pixels."""

    name, unit, price, rate = "patch", "px", 0.02, 0.15

    def start(self, k: int, picture: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Logits of opacity and pattern: almost transparent."""
        _, c, height, width = picture.shape
        return [0.1 * torch.randn((k, 1, height, width), generator=generator) - 3.0, 0.5 * torch.randn((k, c, height, width), generator=generator)]

    def change(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Paint the patches."""
        opacity, pattern = (parameter.sigmoid()[which] for parameter in self.parameters)
        return pictures + opacity * (pattern - pictures)

    def vary(self, pictures: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
        """Paint them with other edges and another contrast: the trigger may be bolder than the least that works."""
        edge, steepness, contrast = (each(len(which), low, high, generator).to(pictures) for low, high in (EDGE, STEEPNESS, CONTRAST))
        opacity, pattern = (parameter[which] for parameter in self.parameters)
        opacity, pattern = (steepness * (opacity - edge)).sigmoid(), (contrast * pattern).sigmoid()
        return pictures + opacity * (pattern - pictures)

    def sizes(self) -> Tensor:
        """Pixels that are covered."""
        return self.parameters[0].sigmoid().sum((1, 2, 3))


class Shifts(Patches):
    """Patches that send every picture some classes on: from k to k + s, after the last to the first; all-to-all backdoors have s = 1.

    In place of `classes` stand the steps s, and one of them stands out where there is a short cut.
    """

    usual = 1.5

    def __init__(self, classes: Tensor, picture: Tensor, generator: torch.Generator, *, count: int) -> None:
        """classes: (K) the steps s, from 1.  count: of all classes."""
        super().__init__(classes, picture, generator)
        self.count = count

    def aims(self, which: Tensor, own: Tensor) -> Tensor:
        """(N) the class that lies so many steps behind a picture's own."""
        return (own + self.classes[which]) % self.count

    def vary(self, pictures: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
        """As they were found: a bolder one sends pictures to some class of its own, and no longer on."""
        return self.change(pictures, which)

    def aim(self, row: int) -> str:
        """How many steps."""
        return f"to each class + {int(self.classes[row])}"


class Departures(Patches):
    """Patches that take the pictures of one class away from it, wherever they go: source-specific backdoors.

    `classes` are the sources, and there is a change for each that has pictures.  Some classes are never far from another, cats from dogs.
    """

    usual = 1.75

    def __init__(self, classes: Tensor, picture: Tensor, generator: torch.Generator) -> None:
        """classes: (K) the sources."""
        super().__init__(classes, picture, generator)
        self.goals = classes.clone()  # where most pictures go

    def aims(self, which: Tensor, own: Tensor) -> Tensor:
        """(N) the class that most pictures of a source go to."""
        return self.goals[which]

    def aim(self, row: int) -> str:
        """From where to where."""
        return f"from class {int(self.classes[row])} to class {int(self.goals[row])}"

    def pick(self, which: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
        """(N) pictures of the sources."""
        there = (own[None] == self.classes[which][:, None]).float().cpu()
        return torch.multinomial(there, 1, generator=generator)[:, 0]

    def missed(self, logits: Tensor, which: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """-log(1 - p(own class)), and whether another class wins."""
        return -logits.log_softmax(1).scatter(1, own[:, None], float("-inf")).logsumexp(1), logits.argmax(1) != own

    def search(self, network: Network, pictures: Pictures, own: Tensor, generator: torch.Generator, *, steps: int, count: int) -> None:
        """As all; then see where pictures go."""
        super().search(network, pictures, own, generator, steps=steps, count=count)
        which = torch.arange(len(self.classes), device=self.classes.device).repeat_interleave(4 * count)
        with torch.no_grad():
            index = self.pick(which, own, generator)
            logits = network(self.change(pictures(index), which))
        logits = logits.scatter(1, own[index][:, None], float("-inf"))
        self.goals = logits.argmax(1).view(-1, 4 * count).mode(1).values


class Warps(Targeted):
    """Smooth warps of six by six control points; the size is their mean absolute movement, in pixels."""

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
