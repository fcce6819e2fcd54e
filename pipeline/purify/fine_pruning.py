"""Fine-Pruning (Liu, Dolan-Gavitt, Garg, RAID 2018, arXiv 1805.12185).

A backdoor lives in neurons that clean pictures leave dormant.  So (section 4):

1. Show clean pictures, and note the mean activation of each channel of the last convolution, after its ReLU and pooling.
2. Prune channels, the most dormant first, and measure accuracy on other clean pictures.
3. Stop before accuracy has dropped by more than a threshold, 4 points.
4. Fine-tune what is left; pruned channels stay at zero.  An attacker who expects pruning hides the backdoor in neurons that clean
   pictures need too, and then this step is the one that removes it.

The paper leaves open at what rate is fine-tuned, and that decides: a small one keeps the backdoor of such an attacker, a large one costs
accuracy.  So it is the largest of some that costs no more than pruning may.

Half of the calibration images show which channels are dormant and try the rates, the other half how many can go and what a rate costs; all of them
fine-tune.  Accuracy is measured at every sixteenth of the layer until it has dropped, then the last sixteenth is bisected; all of that is the curve in the
history.  To prune is to set the kernel and what belongs to the channel alone (bias, BatchNorm's scale and bias) to zero.

Where no activation follows the last convolution (a patch embedding), there is none (an MLP), or it can spare no channel, the layer
is chosen on the same images: the one that misses half of its channels least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipeline.errors import StageFailed
from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.network import Layer, layers, watch
from pipeline.purify.tuning import TuningConfig, Weights, on_labels, tune, variables
from pipeline.search.examples import Examples, accuracy
from pipeline.twin import Role, TorchTwin


@dataclass(frozen=True, kw_only=True)
class FinePruningConfig:
    """drop: of accuracy, the most that pruning may cost, and fine-tuning.  points: of the curve, over the whole layer.

    tuning: how to fine-tune; at its rate where none of `rates` fits, and where fewer than `least` images can judge them.
    """

    drop: float = 0.04
    points: int = 16
    rates: tuple[float, ...] = (0.1, 0.03)
    least: int = 50
    tuning: TuningConfig = field(default_factory=lambda: TuningConfig(epochs=50))


def fine_pruning(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Prune, then fine-tune; both presets are one.  Raises ImagesRefused, SpecRefused when there is nothing to tune."""
    config = FinePruningConfig()
    examples = Examples.of(twin, calibration)
    variables(twin)  # raises where there is nothing to tune, before anything is pruned
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator)
    half = (len(order) + 1) // 2
    shown, judged = examples.at(order[:half]), examples.at(order[half:] if len(order) > 1 else order)
    notes = [] if len(order) > 1 else ["one image shows which channels are dormant, and how many can go"]
    history = History(report, 3 * (config.points + 16) + (1 + len(config.rates)) * (config.tuning.epochs + 1))

    gone, layer = torch.zeros(0, dtype=torch.int64), last_convolution(twin)
    if layer is not None:
        gone = prune(twin, layer, shown, judged, config=config, history=history)
    if not len(gone) and (spare := most_spare(twin, shown, judged)) not in (None, layer):
        notes.append("the last convolution can spare no channel" if layer else "the last layer that an activation follows is no convolution")
        assert spare is not None
        layer = spare
        gone = prune(twin, layer, shown, judged, config=config, history=history)
    masks = layer.mask(twin, gone) if layer else {}
    notes.append(f"{len(gone)} of {layer.channels} channels of {layer.kernel} were pruned" if layer else "no layer has channels to prune: fine-tuned only")

    tuning = fitting(twin, masks, shown, judged, config=config, seed=seed, history=history)
    notes.append(f"fine-tuned at a rate of {tuning.rate:g}")
    weights = tuned(twin, masks, examples, config=tuning, generator=generator, history=history)
    return Purified(arrays(weights), arrays(masks), None, [], history.steps, notes)


def tuned(twin: TorchTwin, masks: Weights, examples: Examples, *, config: TuningConfig, generator: torch.Generator, history: History) -> Weights:
    """The weights after fine-tuning, pruned channels held at zero."""
    on = on_labels(twin)
    start = variables(twin)
    weights = tune(twin, examples, start, config=config, generator=generator, history=history, loss=lambda x, y, weights: on(x, y, masked(weights, masks)))
    return masked(weights, masks)


def fitting(twin: TorchTwin, masks: Weights, shown: Examples, judged: Examples, *, config: FinePruningConfig, seed: int, history: History) -> TuningConfig:
    """How to fine-tune: at the largest rate which, on `shown`, costs no more of the accuracy on `judged` than it may."""
    least = accuracy(twin, judged.pictures, judged.labels) - config.drop - 1e-9
    for rate in config.rates if len(judged) >= config.least else ():
        trial = replace(config.tuning, rate=rate)
        try:
            weights = tuned(twin, masks, shown, config=trial, generator=torch.Generator().manual_seed(seed), history=history)
        except StageFailed:
            continue  # it diverged
        found = accuracy(twin, judged.pictures, judged.labels, weights)
        history.add(rate=rate, accuracy_judged=found)
        if found >= least:
            return trial
    return config.tuning


def last_convolution(twin: TorchTwin) -> Layer | None:
    """The last convolution, where an activation follows it."""
    found = [layer for layer in layers(twin) if layer.role is Role.CONVOLUTION]
    return found[-1] if found and found[-1].activated else None


def dormancy(twin: TorchTwin, layer: Layer, pictures: Tensor, *, batch: int = 256) -> Tensor:
    """The channels of a layer, the most dormant first: indices (C) in increasing order of their mean activation on (N, C, H, W) pictures."""
    total = torch.zeros(layer.channels, device=pictures.device)
    with torch.no_grad():
        for x in pictures.split(batch):
            _, answers = watch(twin, x, None, [layer.seen])
            total += layer.per_channel(answers[layer.seen]).mean(2).sum(0)
    return total.argsort(stable=True)


def prune(twin: TorchTwin, layer: Layer, shown: Examples, judged: Examples, *, config: FinePruningConfig, history: History) -> Tensor:
    """The channels that can go: as many as accuracy on `judged` allows, dormant on `shown`."""
    order = dormancy(twin, layer, shown.pictures)

    def measured(count: int) -> float:
        found = without(twin, layer, order[:count], judged)
        history.add(pruned=count, accuracy_judged=found)
        return found

    least = measured(0) - config.drop - 1e-9
    low, high = 0, layer.channels
    for point in range(1, config.points):
        count = layer.channels * point // config.points
        if count == low:
            continue
        if measured(count) < least:
            high = count
            break
        low = count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measured(middle) >= least else (low, middle)
    return order[:low]


def most_spare(twin: TorchTwin, shown: Examples, judged: Examples) -> Layer | None:
    """The layer, of those that an activation follows, that misses half of its channels least; of equals the last."""
    found = [layer for layer in layers(twin) if layer.activated]
    return max(reversed(found), key=lambda layer: without(twin, layer, dormancy(twin, layer, shown.pictures)[: layer.channels // 2], judged), default=None)


def without(twin: TorchTwin, layer: Layer, gone: Tensor, judged: Examples) -> float:
    """Accuracy without the channels `gone`."""
    masks = layer.mask(twin, gone)
    return accuracy(twin, judged.pictures, judged.labels, masked({name: twin.weights[name].value for name in masks}, masks))


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Weights:
    """The weights, those that have a mask multiplied by it."""
    return {name: value * masks[name] if name in masks else value for name, value in weights.items()}
