"""The inner maximisation of AWM: one perturbation, for all pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Network = Callable[[Tensor], Tensor]
"""(N, C, H, W) pictures in 0..1 -> (N, K) logits."""


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
