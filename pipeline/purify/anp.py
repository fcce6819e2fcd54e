"""Adversarial Neuron Pruning (Wu & Wang, NeurIPS 2021, arXiv 2110.14430).

Neurons of a backdoor collapse first when weights are disturbed.  Each neuron has a mask m in [0, 1]; ANP learns masks that bear
the worst relative disturbance of weights and biases (equation 4), and prunes what ends below a threshold:

    min over m of  α L(f(x; m w, b), y)  +  (1 - α) max over δ, ξ in [-ε, ε] of L(f(x; (m + δ) w, (1 + ξ) b), y)

δ and ξ start at random in the box and take one step of length ε along the sign of the gradient.  As published, m and δ are factors
on BatchNorm's scale; here they are factors on the filter, so that any network with a hidden layer will do.  Biases stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count, islice

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.filters import Factors, hidden, ones, scaled, spread
from pipeline.purify.network import Layer
from pipeline.search.examples import Examples
from pipeline.twin import Role, TorchTwin


@dataclass(frozen=True, kw_only=True)
class Config:
    """steps: of m; rate: their length, plain SGD; epsilon ε; alpha α; threshold: m from which on a filter is kept; crop: pixels."""

    steps: int = 2000
    batch: int = 128
    rate: float = 0.2
    momentum: float = 0.9
    epsilon: float = 0.4
    alpha: float = 0.2
    threshold: float = 0.2
    crop: int = 4


PAPER = Config()
DEFAULT = Config(steps=500, batch=64)  # the same within minutes on a CPU


def anp(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Algorithm 1 of the paper.  Raises ImagesRefused, SpecRefused without a hidden layer."""
    config = PAPER if preset == "paper" else DEFAULT
    examples, network = Examples.of(twin, calibration), hidden(twin)
    generator = torch.Generator().manual_seed(seed)
    history = History(report, config.steps)
    kernels = {layer.kernel: twin.weights[layer.kernel].value for layer in network}
    masks = ones(twin, network)
    optimizer = torch.optim.SGD(masks.values(), lr=config.rate, momentum=config.momentum)
    epochs = chain.from_iterable(examples.batches(config.batch, crop=config.crop, generator=generator) for _ in count())
    for x, y in islice(epochs, config.steps):
        worst = disturbed(twin, network, masks, x, y, epsilon=config.epsilon, generator=generator)
        natural = F.cross_entropy(twin.logits(x, scaled(network, kernels, masks)), y)
        robust = F.cross_entropy(twin.logits(x, worst), y)
        optimizer.zero_grad()
        (config.alpha * natural + (1 - config.alpha) * robust).backward()
        optimizer.step()
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0, 1)
        low = sum(int((mask < config.threshold).sum()) for mask in masks.values())
        history.add(loss_clean=natural.item(), loss_disturbed=robust.item(), pruned=low)
    keep = {name: (mask >= config.threshold).float() for name, mask in masks.items()}
    notes = [f"{low} of {sum(layer.channels for layer in network)} filters were pruned"]
    spreads = {layer.kernel: spread(layer, keep[layer.kernel], kernels[layer.kernel]) for layer in network}
    return Purified(arrays(scaled(network, kernels, keep)), arrays(spreads), None, [], history.steps, notes)


def disturbed(twin: TorchTwin, network: list[Layer], masks: Factors, x: Tensor, y: Tensor, *, epsilon: float, generator: torch.Generator) -> dict[str, Tensor]:
    """(m + δ) w and (1 + ξ) b by initializer, at the worst δ and ξ that one signed step finds; differentiable in m alone."""
    biases = [name for layer in network for name in layer.own if twin.weights[name].role is Role.BIAS]
    kernels = {layer.kernel: twin.weights[layer.kernel].value for layer in network}

    def start(like: Tensor) -> Tensor:
        return (epsilon * (2 * torch.rand(like.shape, generator=generator) - 1)).to(like.device).requires_grad_()

    def weights(m: Factors, noise: Factors) -> dict[str, Tensor]:
        scales = scaled(network, kernels, {name: m[name] + noise[name] for name in kernels})
        return scales | {name: (1 + noise[name]) * twin.weights[name].value for name in biases}

    noise = {name: start(mask) for name, mask in masks.items()} | {name: start(twin.weights[name].value) for name in biases}
    fixed = {name: mask.detach() for name, mask in masks.items()}
    loss = F.cross_entropy(twin.logits(x, weights(fixed, noise)), y)
    gradients = torch.autograd.grad(loss, list(noise.values()), allow_unused=True, materialize_grads=True)
    up = zip(noise.items(), gradients, strict=True)
    return weights(masks, {name: (value + epsilon * gradient.sign()).clamp(-epsilon, epsilon).detach() for (name, value), gradient in up})
