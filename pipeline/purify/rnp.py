"""Reconstructive Neuron Pruning (Li, Lyu, Ma, Koren, Lyu, Li & Jiang, ICML 2023, arXiv 2305.14876).

Unlearn, neurons: gradient ascent of all weights on clean pictures, until the network gets no more than a fifth of them right; that
is for ten classes, and in general a ninth of what is above guessing.  What it still knows then is mostly the backdoor.  Recover,
filters: a mask for each filter of that network, learned on the same pictures:

    min over m in [0, 1] of  α L(f(x; m θ_unlearned), y)

Filters that must be shut for the clean task to come back belong to the backdoor: those of the submitted network are pruned in the
order of m.  The threshold on m is the highest at which the calibration pictures keep their accuracy within `tolerance` (in public
code it is chosen on test pictures).  As published, m is a factor on BatchNorm's scale; here it is one on the filter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.filters import hidden, ones, scaled, spread
from pipeline.purify.network import Layer
from pipeline.purify.tuning import Weights, variables
from pipeline.search.examples import Examples, accuracy
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """Gradient ascent by SGD.  epochs: at most; left: of the accuracy above guessing, where it stops; clip: of the gradient's L2 length.

    Guessing is to give all pictures their most frequent label: ascent ends there at the latest, and then only the loss still grows.
    """

    epochs: int = 20
    batch: int = 128
    rate: float = 0.01
    momentum: float = 0.9
    clip: float = 20.0
    left: float = 1 / 9
    crop: int = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    """epochs, batch, rate: of the recovery, by SGD; alpha α; thresholds: how many are tried, evenly in 0..1; tolerance: of accuracy."""

    unlearning: Unlearning = field(default_factory=Unlearning)
    epochs: int = 20
    batch: int = 128
    rate: float = 0.2
    momentum: float = 0.9
    alpha: float = 0.2
    crop: int = 4
    thresholds: int = 20
    tolerance: float = 0.1


PAPER = Config()
DEFAULT = Config(unlearning=Unlearning(batch=64, rate=0.003), epochs=40, batch=64, rate=0.02, tolerance=0.04)  # slower, so that masks are told apart


def rnp(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Unlearn, recover, prune.  Raises ImagesRefused, SpecRefused without a hidden layer."""
    config = PAPER if preset == "paper" else DEFAULT
    examples, network = Examples.of(twin, calibration), hidden(twin)
    generator = torch.Generator().manual_seed(seed)
    history = History(report, config.unlearning.epochs + config.epochs + config.thresholds)
    unlearned = unlearn(twin, examples, config.unlearning, generator, history)
    masks = recover(twin, unlearned, network, examples, config, generator, history)
    kernels = {layer.kernel: twin.weights[layer.kernel].value for layer in network}
    keep, notes = prune(twin, masks, network, kernels, examples, config, history)
    spreads = {layer.kernel: spread(layer, keep[layer.kernel], kernels[layer.kernel]) for layer in network}
    return Purified(arrays(scaled(network, kernels, keep)), arrays(spreads), None, [], history.steps, notes)


def unlearn(twin: TorchTwin, examples: Examples, config: Unlearning, generator: torch.Generator, history: History) -> Weights:
    """max over θ of L(f(x; θ), y), stopped in time; all weights that can be tuned, by name."""
    guess = float(examples.labels.bincount().max()) / len(examples)
    weights = {name: value.clone().requires_grad_() for name, value in variables(twin).items()}
    optimizer = torch.optim.SGD(weights.values(), lr=config.rate, momentum=config.momentum, maximize=True)
    for _ in range(config.epochs):
        for x, y in examples.batches(config.batch, crop=config.crop, generator=generator):
            optimizer.zero_grad()
            F.cross_entropy(twin.logits(x, weights), y).backward()
            clip_grad_norm_(weights.values(), config.clip)
            optimizer.step()
        known = accuracy(twin, examples.pictures, examples.labels, weights)
        history.add(accuracy_unlearned=known)
        if known <= guess + config.left * (1 - guess):
            break
    return {name: weight.detach() for name, weight in weights.items()}


def recover(
    twin: TorchTwin, unlearned: Weights, network: list[Layer], examples: Examples, config: Config, generator: torch.Generator, history: History
) -> dict[str, Tensor]:
    """The masks, (M) in 0..1 by kernel, with which the unlearned network knows the pictures again."""
    masks = ones(twin, network)
    optimizer = torch.optim.SGD(masks.values(), lr=config.rate, momentum=config.momentum)
    for _ in range(config.epochs):
        for x, y in examples.batches(config.batch, crop=config.crop, generator=generator):
            loss = config.alpha * F.cross_entropy(twin.logits(x, unlearned | scaled(network, unlearned, masks)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(0, 1)
        history.add(loss=loss.item(), mask_mean=float(torch.cat(list(masks.values())).detach().mean()))
    return {name: mask.detach() for name, mask in masks.items()}


def prune(
    twin: TorchTwin, masks: dict[str, Tensor], network: list[Layer], kernels: Weights, examples: Examples, config: Config, history: History
) -> tuple[dict[str, Tensor], list[str]]:
    """1 for each filter of the submitted network that stays: m is above the highest threshold that accuracy bears."""
    least = accuracy(twin, examples.pictures, examples.labels) - config.tolerance - 1e-9
    keep = {name: torch.ones_like(mask) for name, mask in masks.items()}
    total = sum(layer.channels for layer in network)
    notes = [f"0 of {total} filters were pruned: accuracy bears no threshold"]
    for step in range(config.thresholds):
        threshold = step / config.thresholds
        tried = {name: (mask > threshold).float() for name, mask in masks.items()}
        left = accuracy(twin, examples.pictures, examples.labels, scaled(network, kernels, tried))
        gone = sum(int((one == 0).sum()) for one in tried.values())
        history.add(threshold=threshold, accuracy=left, pruned=gone)
        if left < least:
            break
        keep, notes = tried, [f"{gone} of {total} filters were pruned: those with a mask of at most {threshold:.2f}"]
    return keep, notes
