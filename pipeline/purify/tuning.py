"""Fine-tuning on clean images, plain and sharpness-aware.

FT       SGD with momentum on the labels of the calibration images, as every paper on purification has it as its baseline.

FT-SAM   Zhu, Wei, Shen, Fan, Wu, *Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization*, ICCV 2023,
         arXiv 2304.11823.  Plain fine-tuning hardly moves the neurons that carry a backdoor; they have large weights, so each
         step is taken where the loss is worst within a neighbourhood that is wider for larger weights (section 4):

             min over w of  max L(w + ε)  with  ‖T⁻¹ ε‖₂ <= ρ  and  T = diag(|w|)

         which is solved to first order, as in ASAM (Kwon et al., ICML 2021, arXiv 2102.11600):

             ε = ρ T² ∇L(w) / ‖T ∇L(w)‖₂,    w <- w - η ∇L(w + ε)

Both are given one preset under two names: the paper's numbers for CIFAR-10.  Three things are as an imported graph needs them:

- The network stays in inference mode: BatchNorm keeps its statistics, its scale and bias are tuned; folded, it is not there at all.
- Without BatchNorm in training mode nothing holds the gradients, and with ρ = 2 they explode within a few steps; so all of them
  together are clipped to the length 1.
- Pictures are mirrored only where the submitted network reads the mirrored calibration images as well as the others, since a
  mirrored digit or traffic sign is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import SpecRefused, StageFailed
from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.search.examples import Examples
from pipeline.twin import Role, TorchTwin

TUNED = frozenset({Role.CONVOLUTION, Role.LINEAR, Role.BIAS, Role.SCALE})

Weights = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""Pictures (N, C, H, W), labels (N), weights -> the loss, a scalar, and the logits (N, K)."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How to tune.

    rate: η at the start, falling to zero along a half cosine.  decay: of the weights, an L2 penalty.  rho: ρ; 0 is plain SGD.  clip:
    the most length of all gradients together.  crop: pixels of shift.
    """

    epochs: int = 100
    batch: int = 128
    rate: float = 0.01
    momentum: float = 0.9
    decay: float = 1e-4
    rho: float = 0.0
    clip: float = 1.0
    crop: int = 4


FT = TuningConfig()
FT_SAM = TuningConfig(rho=2.0)


def ft(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Fine-tune; both presets are one.  Raises ImagesRefused, SpecRefused when there is nothing to tune, StageFailed when it diverges."""
    return _purify(twin, calibration, FT, seed, report)


def ft_sam(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Fine-tune with sharpness-aware steps; the rest as `ft`."""
    return _purify(twin, calibration, FT_SAM, seed, report)


def _purify(twin: TorchTwin, calibration: CalibrationSet, config: TuningConfig, seed: int, report: Report) -> Purified:
    examples = Examples.of(twin, calibration)
    history = History(report, config.epochs)
    weights = tune(twin, examples, variables(twin), config=config, generator=torch.Generator().manual_seed(seed), history=history)
    return Purified(arrays(weights), {}, None, [], history.steps, [])


def variables(twin: TorchTwin, roles: frozenset[Role] = TUNED) -> Weights:
    """The weights that are tuned.  Raises SpecRefused when the twin has none."""
    found = {name: weight.value for name, weight in twin.weights.items() if weight.role in roles}
    if not found:
        raise SpecRefused(f"there is nothing to tune: the model has no weight of a {' or '.join(sorted(roles))} that can be bound")
    return found


def typical(weight: Tensor) -> float:
    """The root mean square of a weight, or 1e-3 where that is more: a step of Adam in these units means the same in every layer (Adafactor)."""
    return max(1e-3, float(weight.detach().square().mean().sqrt()))


def on_labels(twin: TorchTwin) -> Loss:
    """The cross-entropy of the labels."""

    def loss(pictures: Tensor, labels: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = twin.logits(pictures, weights)
        return F.cross_entropy(logits, labels), logits

    return loss


def tune(
    twin: TorchTwin, examples: Examples, start: Weights, *, config: TuningConfig, generator: torch.Generator, history: History, loss: Loss | None = None
) -> Weights:
    """SGD from `start` on `loss`, that of the labels unless another is given; returns the new weights.

    A step of the history is an epoch: the mean loss, and the accuracy on the changed pictures while it went on.  Raises StageFailed
    when the loss is no longer finite.
    """
    loss = loss or on_labels(twin)
    weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=config.rate, momentum=config.momentum, weight_decay=config.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * ceil(len(examples) / config.batch))
    for _ in range(config.epochs):
        total, hits = 0.0, 0
        for x, y in examples.batches(config.batch, crop=config.crop, generator=generator):
            value, logits = loss(x, y, weights)
            gradients = _gradients(value, weights)
            if config.rho:
                shifted = _worst(weights, gradients, config.rho)
                gradients = _gradients(loss(x, y, shifted)[0], shifted)
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight.grad = gradient
            torch.nn.utils.clip_grad_norm_(weights.values(), config.clip)
            optimizer.step()
            schedule.step()
            total += len(y) * value.item()
            hits += int((logits.argmax(1) == y).sum())
        if not isfinite(total) or not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise StageFailed(f"fine-tuning diverged: the loss is no longer finite after {len(history.steps) + 1} steps")
        history.add(loss=total / len(examples), accuracy=hits / len(examples))
    return {name: weight.detach() for name, weight in weights.items()}


def _gradients(loss: Tensor, weights: Weights) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)


def _worst(weights: Weights, gradients: tuple[Tensor, ...], rho: float) -> Weights:
    """w + ε."""
    with torch.no_grad():
        scaled = [weight * gradient for weight, gradient in zip(weights.values(), gradients, strict=True)]  # T ∇L, up to signs
        norm = torch.sqrt(sum((values.square().sum() for values in scaled), start=torch.zeros_like(scaled[0].sum()))).clamp(min=1e-12)
        moved = {name: weight + rho * weight * values / norm for (name, weight), values in zip(weights.items(), scaled, strict=True)}
    return {name: value.requires_grad_() for name, value in moved.items()}
