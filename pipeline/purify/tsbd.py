"""Two-Stage Backdoor Defense (Lin, Liu, Wei, Li & Xiong, NeurIPS 2024, arXiv 2405.20291).

Stage 1, reinitialisation.  Weights change alike whether the backdoor is unlearned or the clean task, so clean unlearning finds the
neurons of the backdoor.  The Neuron Weight Change of filter i is

    NWC_i = Σ_j |θ_ij(unlearned) - θ_ij|

In the share n of all filters with the largest NWC, the share m of the weights that changed most is set to 0.

Stage 2, fine-tuning that keeps neurons from becoming active again: the loss carries a price on the length of its own gradient,
which to first order is the gradient of

    (1 - α) L(θ)  +  α L(θ + r ∇L(θ) / ‖∇L(θ)‖)       with the shift held fixed

Neurons are filters; all weights are unlearned (as in `rnp`) and fine-tuned.  A network whose only kernel makes the scores has no
neurons to reinitialise, and is only fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.filters import rows, spread
from pipeline.purify.network import Layer, layers
from pipeline.purify.rnp import Unlearning, unlearn
from pipeline.purify.tuning import Loss, TuningConfig, Weights, on_labels, tune, variables
from pipeline.search.examples import Examples
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class Config:
    """neurons: n.  weights: m.  alpha α.  radius r."""

    unlearning: Unlearning = field(default_factory=Unlearning)
    neurons: float = 0.15
    weights: float = 0.7
    alpha: float = 0.7
    radius: float = 0.05
    tuning: TuningConfig = field(default_factory=lambda: TuningConfig(epochs=20))


PAPER = Config()
DEFAULT = Config(unlearning=Unlearning(batch=64, rate=0.003), tuning=TuningConfig(epochs=60, batch=64))


def tsbd(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Both stages.  Raises ImagesRefused, SpecRefused when there is nothing to tune, StageFailed when fine-tuning diverges."""
    config = PAPER if preset == "paper" else DEFAULT
    examples, network, start = Examples.of(twin, calibration), layers(twin), variables(twin)
    generator = torch.Generator().manual_seed(seed)
    history = History(report, config.unlearning.epochs + config.tuning.epochs)
    unlearned = unlearn(twin, examples, config.unlearning, generator, history)
    notes = [] if network else ["no layer has neurons to reinitialise: fine-tuned only"]
    if network:
        start |= reinitialised(network, start, unlearned, neurons=config.neurons, weights=config.weights)
    calm = quiet(on_labels(twin), alpha=config.alpha, radius=config.radius)
    tuned = tune(twin, examples, start, config=config.tuning, generator=generator, history=history, loss=calm)
    return Purified(arrays(tuned), {}, None, [], history.steps, notes)


def reinitialised(network: list[Layer], submitted: Weights, unlearned: Weights, *, neurons: float, weights: float) -> Weights:
    """The kernels after stage 1."""
    changes = {layer.kernel: (unlearned[layer.kernel] - submitted[layer.kernel]).abs() for layer in network}
    sums = {layer.kernel: rows(layer, changes[layer.kernel]).sum((1, 2)) for layer in network}
    everywhere = torch.cat(list(sums.values()))
    least = everywhere.topk(max(1, round(neurons * len(everywhere)))).values[-1]
    found = {}
    for layer in network:
        change, kernel = changes[layer.kernel], submitted[layer.kernel]
        within = rows(layer, change).flatten(1)
        most = within.topk(max(1, round(weights * within.shape[1]))).values[:, -1]
        zero = (change >= spread(layer, most, kernel)) & spread(layer, sums[layer.kernel] >= least, kernel)
        found[layer.kernel] = kernel.masked_fill(zero, 0.0)
    return found


def quiet(loss: Loss, *, alpha: float, radius: float) -> Loss:
    """The loss of stage 2, of a plain one."""

    def priced(pictures: Tensor, labels: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        value, logits = loss(pictures, labels, weights)
        gradients = torch.autograd.grad(value, list(weights.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm().clamp(min=1e-12)
        shifted = {name: weight + radius * gradient / length for (name, weight), gradient in zip(weights.items(), gradients, strict=True)}
        return (1 - alpha) * value + alpha * loss(pictures, labels, shifted)[0], logits

    return priced
