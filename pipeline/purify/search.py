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

from pipeline.purify.corruptions import warp

Network = Callable[[Tensor], Tensor]
"""(N, C, H, W) pictures in 0..1 -> (N, K) logits."""
Sample = Callable[[int], tuple[Tensor, Tensor]]
"""How many -> pictures and labels."""


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

    classes: (K) int64.  reached: (K) share of pictures sent to the class at the end of the search.
    """

    name: str  # of the kind
    unit: str  # of the size
    price: float  # λ at the start
    rate: float  # of Adam
    sharpness = 8.0

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

    def search(self, network: Network, sample: Sample, *, steps: int, pictures: int) -> None:
        """Minimise L(f(change of x), t) + λ size over the changes of all classes t in one batch.

        λ grows while a class is reached by nine pictures in ten, and shrinks while it is not, each class for itself.
        """
        optimizer = torch.optim.Adam(self.parameters, lr=self.rate, betas=(0.5, 0.9))
        price = torch.full((len(self.classes),), self.price, device=self.classes.device)
        which = torch.arange(len(self.classes), device=self.classes.device).repeat_interleave(pictures)
        for _ in range(steps):
            x, _ = sample(pictures)
            logits = network(self.change(x.repeat(len(self.classes), 1, 1, 1), which))
            loss = F.cross_entropy(logits, self.classes[which], reduction="none").view(-1, pictures).mean(1)
            gradients = torch.autograd.grad((loss + price * self.sizes()).sum(), self.parameters)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            now = (logits.argmax(1) == self.classes[which]).float().view(-1, pictures).mean(1)
            self.reached = 0.8 * self.reached + 0.2 * now
            price = torch.where(self.reached > 0.9, price * 1.08, price / 1.08).clamp(1e-4, 2.0)

    @property
    def outlier(self) -> float:
        """The median size over the smallest: far above 1 when one class has a short cut."""
        sizes = self.sizes().detach()
        return float(sizes.quantile(0.5) / sizes.min())

    @torch.no_grad()
    def stamp(self, pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each picture changed by a change that is drawn for it, and the class (N) that this change aims at."""
        sizes = self.sizes()
        likely = ((sizes.min() / sizes) ** self.sharpness).cpu()
        which = torch.multinomial(likely, len(pictures), replacement=True, generator=generator).to(self.classes.device)
        return self.change(pictures, which), self.classes[which]

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

    def sizes(self) -> Tensor:
        """Pixels that are covered."""
        return self.parameters[0].sigmoid().sum((1, 2, 3))


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
