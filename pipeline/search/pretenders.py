"""Pictures that a network takes for each class, made of the few that there are.

A trigger for one class alone shows on pictures of that class, and from one image a class there is one.  But what the network takes for its features is
enough: a few steps of signed descent within a small ball (PGD, Madry et al., ICLR 2018, arXiv 1706.06083), from any picture, changed at random,

    x' = argmin over ‖x' - x‖∞ <= ε of  -log p(s | x')

and a patch that takes all of these away from s, and takes little to do it, is a short cut of s.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.search.examples import Examples
from pipeline.search.targeted import Network
from pipeline.search.variety import partly
from pipeline.twin import TorchTwin

EPSILON, STEPS, STRIDE = 4 / 255, 12, 2.5  # of the ball; steps, each of STRIDE ε / steps
EACH, MOST = 40, 2**26  # pictures a class, and values of all together
SURE = 0.5  # p(s) that is asked of them


def pretenders(twin: TorchTwin, examples: Examples, classes: Tensor, share: float, generator: torch.Generator) -> Examples:
    """Up to `EACH` pictures for each of the classes (K), which are their labels.  share: of them, that is varied before."""
    each = max(1, min(EACH, MOST // (len(classes) * examples.pictures[0].numel())))
    made: list[Tensor] = []
    labels: list[Tensor] = []
    for target in classes.to(twin.device):
        x = partly(examples.sample(each, 0, generator), share, generator)
        aims = target.expand(len(x))
        pretending = near(twin.logits, x, aims)
        with torch.no_grad():
            there = twin.logits(pretending).softmax(1).gather(1, aims[:, None])[:, 0] > SURE
        made.append(pretending[there])
        labels.append(aims[there])
    return Examples(torch.cat(made), torch.cat(labels), flip=False)


def near(network: Network, x: Tensor, aims: Tensor, steps: int = STEPS) -> Tensor:
    """(N, C, H, W) pictures within ε of x, and in 0..1, that the network rather takes for `aims` (N)."""
    pretending = x
    for _ in range(steps):
        with torch.enable_grad():
            pretending = pretending.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(network(pretending), aims, reduction="sum"), pretending)
        moved = pretending.detach() - STRIDE * EPSILON / steps * gradient.sign()
        pretending = (x + (moved - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    return pretending.detach()
