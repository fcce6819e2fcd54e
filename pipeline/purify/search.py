"""The inner maximisation of AWM: what must be added to pictures so that the masked network fails?

Two answers, with one face: a search looks at the network as it is now, and then stamps what it found on pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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


@dataclass
class TargetedPatches:
    """For each class, the smallest patch found that sends all pictures there (Neural Cleanse, Wang et al., S&P 2019, equation 3).

    A backdoor is a short cut: the patch of its target is much smaller than any other.  So the patches are drawn with a
    probability proportional to size ** -sharpness when pictures are stamped.

    opacity: (K, 1, H, W) in 0..1.  pattern: (K, C, H, W) in 0..1.  size: (K) sum of the opacity, in pixels.  reached: (K) share
    of pictures sent to the class at the end of the search.
    """

    classes: Tensor  # (K) int64
    opacity: Tensor
    pattern: Tensor
    size: Tensor
    reached: Tensor
    sharpness: float = 4.0

    @classmethod
    def search(
        cls, network: Network, sample: Sample, classes: Tensor, *, steps: int, pictures: int, rate: float, generator: torch.Generator
    ) -> TargetedPatches:
        """Minimise L(f((1 - a) x + a p), t) + λ ‖a‖₁ over a and p, for all classes t in one batch.

        λ grows while a class is reached by nine pictures in ten, and shrinks while it is not, each class for itself.
        """
        first, _ = sample(1)
        (_, c, h, w), device, k = first.shape, first.device, len(classes)
        raw_opacity = (0.1 * torch.randn((k, 1, h, w), generator=generator) - 3.0).to(device).requires_grad_()
        raw_pattern = (0.5 * torch.randn((k, c, h, w), generator=generator)).to(device).requires_grad_()
        optimizer = torch.optim.Adam([raw_opacity, raw_pattern], lr=rate, betas=(0.5, 0.9))
        price = torch.full((k,), 0.02, device=device)  # λ
        reached = torch.zeros(k, device=device)
        for _ in range(steps):
            x, _ = sample(pictures)
            opacity, pattern = raw_opacity.sigmoid(), raw_pattern.sigmoid()
            stamped = x[None] + opacity[:, None] * (pattern[:, None] - x[None])
            logits = network(stamped.flatten(0, 1))
            wanted = classes.repeat_interleave(len(x))
            loss = F.cross_entropy(logits, wanted, reduction="none").view(k, -1).mean(1)
            size = opacity.sum((1, 2, 3))
            optimizer.zero_grad(set_to_none=True)
            (loss + price * size).sum().backward()
            optimizer.step()
            reached = 0.8 * reached + 0.2 * (logits.argmax(1) == wanted).float().view(k, -1).mean(1)
            price = torch.where(reached > 0.9, price * 1.08, price / 1.08).clamp(1e-4, 0.5)
        opacity, pattern = raw_opacity.detach().sigmoid(), raw_pattern.detach().sigmoid()
        return cls(classes, opacity, pattern, opacity.sum((1, 2, 3)), reached)

    @property
    def probability(self) -> Tensor:
        """(K) how likely each patch is drawn."""
        weight = (self.size.min() / self.size) ** self.sharpness
        return weight / weight.sum()

    @property
    def outlier(self) -> float:
        """The smallest size over the median size: far below 1 when one class has a short cut."""
        return float(self.size.min() / self.size.quantile(0.5))

    def stamp(self, pictures: Tensor, which: Tensor) -> Tensor:
        """Stamp patch `which[i]` on picture i."""
        return pictures + self.opacity[which] * (self.pattern[which] - pictures)

    def differences(self, pictures: Tensor) -> Tensor:
        """(K, C, H, W) what each patch adds to the mean of the pictures."""
        return self.opacity * (self.pattern - pictures.mean(0))
