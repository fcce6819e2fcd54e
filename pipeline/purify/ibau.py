"""Implicit Backdoor Adversarial Unlearning (Zeng, Chen, Park, Mao, Jin & Jia, ICLR 2022, arXiv 2110.03735).

    min over θ of  max over ‖δ‖ <= C of  1/n Σ L(f(x + δ; θ), y)                                              (equation 1)

δ is one perturbation for all pictures.  A step on θ must know how the worst δ moves with θ.  At the inner optimum, which is a
fixed point of Φ(δ, θ) = δ - η ∂L_in/∂δ, the implicit function theorem gives

    dL_out/dθ  =  ∂L_out/∂θ  +  (∂Φ/∂θ)ᵀ v     with     v = (∂Φ/∂δ)ᵀ v + ∂L_out/∂δ

and v is found by a few rounds of that very equation.  L_in = λ ‖δ‖² - L(f(x + δ), f(x)).

The released code puts δ on one picture in a hundred of an outer batch, and on none when the batch is smaller than that; the share is
a setting here, of at least one picture.  It also lets δ go free; here δ stays in the L2 ball of the paper.  Pictures are in 0..1,
and x + δ is not clipped, as in that code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.tuning import Weights, variables
from pipeline.search.examples import Examples, accuracy
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class Config:
    """passes: over the images for δ, by SGD of rate_delta; radius C in L2; rate: of Adam on θ; crop: pixels.

    price λ; fixed_points: rounds for v; eta η of Φ; share: of an outer batch that carries δ.
    """

    rounds: int = 5
    passes: int = 1
    batch: int = 100
    rate_delta: float = 10.0
    radius: float = 10.0
    rate: float = 1e-3
    price: float = 1e-3
    fixed_points: int = 5
    eta: float = 0.1
    share: float = 0.01
    crop: int = 0


PAPER = Config()
DEFAULT = Config(rounds=10, batch=50, rate=1e-4, share=0.1, crop=4)


def ibau(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Algorithm 1 of the paper.  Raises ImagesRefused, SpecRefused when there is nothing to tune."""
    config = PAPER if preset == "paper" else DEFAULT
    examples = Examples.of(twin, calibration)
    weights = {name: value.clone().requires_grad_() for name, value in variables(twin).items()}
    generator = torch.Generator().manual_seed(seed)
    history = History(report, config.rounds)
    optimizer = torch.optim.Adam(weights.values(), lr=config.rate)
    for _ in range(config.rounds):
        delta = worst(twin, weights, examples, config, generator)
        for x, y in examples.batches(config.batch, crop=config.crop, generator=generator):
            loss, gradients = hypergradient(twin, weights, delta, x, y, config, generator)
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
        history.add(loss=loss, perturbation_l2=float(delta.norm()), accuracy=accuracy(twin, examples.pictures, examples.labels, weights))
    found = delta.permute(0, 2, 3, 1).cpu().numpy()
    return Purified(arrays(weights), {}, found, ["universal, untargeted"], history.steps, [])


def inner(twin: TorchTwin, weights: Weights, delta: Tensor, x: Tensor, price: float) -> Tensor:
    """L_in: low where δ leads away from the network's own answers, and is small."""
    with torch.no_grad():
        answer = twin.logits(x, weights).argmax(1)
    loss: Tensor = price * delta.square().sum() - F.cross_entropy(twin.logits(x + delta, weights), answer)
    return loss


def worst(twin: TorchTwin, weights: Weights, examples: Examples, config: Config, generator: torch.Generator) -> Tensor:
    """δ (1, C, H, W), from zero, by gradient descent on L_in."""
    fixed = {name: weight.detach() for name, weight in weights.items()}
    delta = torch.zeros_like(examples.pictures[:1])
    for _ in range(config.passes):
        for x, _ in examples.batches(config.batch, crop=config.crop, generator=generator):
            delta.requires_grad_()
            (gradient,) = torch.autograd.grad(inner(twin, fixed, delta, x, config.price), delta)
            delta = (delta - config.rate_delta * gradient).detach()
    kept: Tensor = delta * (config.radius / delta.norm().clamp(min=1e-12)).clamp(max=1.0)
    return kept


def hypergradient(
    twin: TorchTwin, weights: Weights, delta: Tensor, x: Tensor, y: Tensor, config: Config, generator: torch.Generator
) -> tuple[float, list[Tensor]]:
    """L_out, and dL_out/dθ with the implicit term, in the order of `weights`."""
    theta = list(weights.values())
    delta = delta.detach().requires_grad_()
    carries = torch.zeros(len(x), 1, 1, 1)
    carries[torch.randperm(len(x), generator=generator)[: max(1, round(config.share * len(x)))]] = 1
    outer = F.cross_entropy(twin.logits(x + carries.to(x.device) * delta, weights), y)
    seen, *direct = torch.autograd.grad(outer, [delta, *theta], allow_unused=True, materialize_grads=True)
    (slope,) = torch.autograd.grad(inner(twin, weights, delta, x, config.price), delta, create_graph=True)
    phi = delta - config.eta * slope
    v = torch.zeros_like(seen)
    for _ in range(config.fixed_points):
        (back,) = torch.autograd.grad(phi, delta, v, retain_graph=True)
        v = back + seen
    implicit = torch.autograd.grad(phi, theta, v, allow_unused=True, materialize_grads=True)
    return outer.item(), [one + other for one, other in zip(direct, implicit, strict=True)]
