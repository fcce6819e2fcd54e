"""Shared Adversarial Unlearning (Wei, Zhang, Zha & Wu, NeurIPS 2023, arXiv 2307.10562).

Poisoned pictures are adversarial pictures of the submitted network θ₀.  Those by which the network in repair, θ, is fooled in the
same way, the shared ones, are what is left of the backdoor.  For each batch they are sought, and then unlearned:

    max over ‖ε‖∞ <= ρ of  β₁ (L(f(x + ε; θ), y) + L(f(x + ε; θ₀), y)) / 2  -  β₂ JS(f(x + ε; θ), f(x + ε; θ₀))
    min over θ of  λ₁ L(f(x; θ), y)  +  λ₂ L(f(x + ε; θ), y)  -  λ₃ mean of log(1 - p(ỹ | x + ε; θ)) where ỹ ≠ y

ỹ is what θ₀ answers to x + ε; pictures that do not fool θ₀ count nothing in the last term.  JS is the Jensen-Shannon divergence.
x + ε stays in 0..1.  The weights of the terms are those of the released settings, which leave λ₂ at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.tuning import Weights, variables
from pipeline.search.examples import Examples
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class Config:
    """rate: of Adam, falling to 0 along a half cosine; rho ρ in 0..1; ascents: signed steps of length `step` on ε; crop: pixels."""

    epochs: int = 100
    batch: int = 256
    rate: float = 1e-4
    rho: float = 0.2
    ascents: int = 5
    step: float = 0.2
    beta1: float = 0.01
    beta2: float = 1.0
    lambda1: float = 1.0
    lambda2: float = 0.0
    lambda3: float = 1.0
    crop: int = 4


PAPER = Config()
DEFAULT = Config(epochs=20, batch=64, rate=3e-4)  # the same within minutes on a CPU


def sau(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Algorithm 1 of the paper.  Raises ImagesRefused, SpecRefused when there is nothing to tune."""
    config = PAPER if preset == "paper" else DEFAULT
    examples = Examples.of(twin, calibration)
    weights = {name: value.clone().requires_grad_() for name, value in variables(twin).items()}
    generator = torch.Generator().manual_seed(seed)
    history = History(report, config.epochs)
    optimizer = torch.optim.Adam(weights.values(), lr=config.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    for _ in range(config.epochs):
        for x, y in examples.batches(config.batch, crop=config.crop, generator=generator):
            shared = adversarial(twin, weights, x, y, config, generator)
            loss, fooled = unlearning(twin, weights, x, shared, y, config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        history.add(loss=loss.item(), fooled=fooled)
    return Purified(arrays(weights), {}, None, [], history.steps, [])


def adversarial(
    twin: TorchTwin, weights: Weights, x: Tensor, y: Tensor, config: Config, generator: torch.Generator, *, submitted: TorchTwin | None = None
) -> Tensor:
    """x + ε (N, C, H, W) in 0..1, by signed ascent from a random corner of the ball.

    submitted: the network that is to be fooled too, `twin` itself unless given.
    """
    fixed = {name: weight.detach() for name, weight in weights.items()}
    epsilon = (config.rho * (torch.rand(x.shape, generator=generator) - 0.5).sign()).to(x.device)
    for _ in range(config.ascents):
        epsilon.requires_grad_()
        stamped = (x + epsilon).clamp(0, 1)
        now, before = twin.logits(stamped, fixed), (submitted or twin).logits(stamped)
        goal = config.beta1 * (F.cross_entropy(now, y) + F.cross_entropy(before, y)) / 2 - config.beta2 * jensen_shannon(now, before)
        (gradient,) = torch.autograd.grad(goal, epsilon)
        epsilon = (epsilon + config.step * gradient.sign()).clamp(-config.rho, config.rho).detach()
    return (x + epsilon).clamp(0, 1)


def unlearning(twin: TorchTwin, weights: Weights, x: Tensor, shared: Tensor, y: Tensor, config: Config) -> tuple[Tensor, float]:
    """The outer loss, and the share of pictures that fool the submitted network."""
    with torch.no_grad():
        wrong = twin.logits(shared).argmax(1)
    fools = wrong != y
    clean, stamped = twin.logits(torch.cat([x, shared]), weights).split(len(x))
    others = stamped.scatter(1, wrong[:, None], float("-inf")).logsumexp(1) - stamped.logsumexp(1)  # log(1 - p), however close p is to 1
    harm = -(others * fools).mean()
    loss = config.lambda1 * F.cross_entropy(clean, y) + config.lambda2 * F.cross_entropy(stamped, y) + config.lambda3 * harm
    return loss, float(fools.float().mean())


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """The mean divergence between the answers of (N, K) logits: 0 where they agree, log 2 at most."""
    middle = ((one.softmax(1) + other.softmax(1)) / 2).clamp(min=1e-12).log()
    sides = [F.kl_div(middle, side.log_softmax(1), log_target=True, reduction="batchmean") for side in (one, other)]
    return (sides[0] + sides[1]) / 2
