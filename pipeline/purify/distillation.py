"""Neural Attention Distillation (Li, Lyu, Koren, Lyu, Li, Ma, ICLR 2021, arXiv 2101.05930).

A teacher is the submitted network after fine-tuning on the clean images.  The student starts from the submitted network again, and
is fine-tuned such that it also looks where the teacher looks (equations 2 to 4):

    min over w of  E [ L(f(x; w), y)  +  β Σ_l ‖ A_l(x; w) / ‖A_l(x; w)‖₂ - A_l(x; teacher) / ‖A_l(x; teacher)‖₂ ‖² ]

with the attention map A_l = Σ_c |F_c|^p over the channels of stage l, p = 2.  As in the released code, the square is averaged over
the positions of the map.  A stage is what the network answers at one resolution: of each resolution the last convolution (or the
last linear layer of a transformer, over its tokens), after its activation and pooling; the last three stages count, as many as the
groups of the paper's WideResNet.  A network without positions (an MLP) has no attention, and is only fine-tuned.

One preset under two names.  The released code starts at a learning rate of 0.1, for a network whose BatchNorm is trained along; in
a graph with BatchNorm folded or fixed it is 0.01, and β is 1000 for each stage (released: 5000 for the last alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.network import Layer, layers, watch
from pipeline.purify.tuning import TuningConfig, tune, variables
from pipeline.search.examples import Examples
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """beta: β, weight of a stage.  power: p.  stages: at most.  teacher, student: how each is tuned."""

    beta: float = 1000.0
    power: float = 2.0
    stages: int = 3
    teacher: TuningConfig = field(default_factory=lambda: TuningConfig(epochs=10, batch=64))
    student: TuningConfig = field(default_factory=lambda: TuningConfig(epochs=20, batch=64))


def nad(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Distil attention; both presets are one.  Raises ImagesRefused, SpecRefused when there is nothing to tune, StageFailed when it diverges."""
    config = DistillationConfig()
    examples, start = Examples.of(twin, calibration), variables(twin)
    generator = torch.Generator().manual_seed(seed)
    history = History(report, config.teacher.epochs + config.student.epochs)
    looks = stages(twin, examples.pictures[:1])[-config.stages :]
    notes = [] if looks else ["the network has no positions to attend to: fine-tuned only"]
    teacher = tune(twin, examples, start, config=config.teacher, generator=generator, history=history)

    def loss(pictures: Tensor, labels: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        names = [layer.seen for layer in looks]
        with torch.no_grad():
            _, goal = watch(twin, pictures, teacher, names)
        logits, answers = watch(twin, pictures, weights, names)
        value = F.cross_entropy(logits, labels)
        for layer in looks:
            one, other = (attention(layer, found[layer.seen], config.power) for found in (answers, goal))
            value = value + config.beta * F.mse_loss(one, other)
        return value, logits

    student = tune(twin, examples, start, config=config.student, generator=generator, history=history, loss=loss)
    return Purified(arrays(student), {}, None, [], history.steps, notes)


def stages(twin: TorchTwin, picture: Tensor) -> list[Layer]:
    """The last layer of each resolution that has more than one position, in the graph's order.  picture: (1, C, H, W) in 0..1."""
    found = layers(twin)
    with torch.no_grad():
        _, answers = watch(twin, picture, None, [layer.seen for layer in found])
    last = {positions: layer for layer in found if (positions := layer.per_channel(answers[layer.seen]).shape[2]) > 1}
    return [layer for layer in found if layer in last.values()]


def attention(layer: Layer, values: Tensor, power: float) -> Tensor:
    """The attention map of what a layer answers, (N, positions), each of length 1 (equation 1)."""
    return F.normalize(layer.per_channel(values).abs().pow(power).sum(1), dim=1)
