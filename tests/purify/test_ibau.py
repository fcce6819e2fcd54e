"""I-BAU: the hypergradient is the derivative of the outer loss at the inner optimum, and δ stays in its ball."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.convert.to_torch import convert
from pipeline.images import CalibrationSet
from pipeline.purify import ibau
from pipeline.purify.tuning import Weights
from pipeline.scan import scan
from pipeline.search.examples import Examples
from pipeline.twin import TorchTwin

CONFIG = ibau.Config(price=2.0, eta=0.2, fixed_points=30, share=1.0)  # strongly convex in δ: the fixed point is reached


@pytest.fixture
def twin(folder: Path) -> TorchTwin:
    nodes = [
        tiny.helper.make_node("Flatten", ["x"], ["f"]),
        tiny.helper.make_node("Gemm", ["f", "A"], ["h"], transB=1),
        tiny.helper.make_node("Sigmoid", ["h"], ["s"]),
        tiny.helper.make_node("Gemm", ["s", "B", "c"], ["y"], transB=1),
    ]
    model = tiny.model(nodes, {"A": 4 * tiny.values(8, 192), "B": 6 * tiny.values(tiny.CLASSES, 8), "c": tiny.values(tiny.CLASSES)})
    path = tiny.save(model, folder)
    return convert(path, tiny.READING, scan(path).model)[0]


def pictures(n: int) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(tiny.pictures(n).transpose(0, 3, 1, 2).copy()), torch.arange(n) % tiny.CLASSES


def optimum(twin: TorchTwin, weights: Weights, x: Tensor) -> Tensor:
    """argmin of L_in."""
    delta = torch.zeros_like(x[:1])
    for _ in range(60):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(ibau.inner(twin, weights, delta, x, CONFIG.price), delta)
        delta = (delta - CONFIG.eta * gradient).detach()
    return delta


def test_the_hypergradient_follows_the_worst_perturbation(twin: TorchTwin) -> None:
    """Against a finite difference that lets δ settle again at the changed weights."""
    x, y = pictures(4)
    weights = {name: weight.value.clone().requires_grad_() for name, weight in twin.weights.items()}

    def settled(shift: float, along: Weights) -> float:
        moved = {name: weight.detach() + shift * along[name] for name, weight in weights.items()}
        return F.cross_entropy(twin.logits(x + optimum(twin, moved, x), moved), y).item()

    delta = optimum(twin, {name: weight.detach() for name, weight in weights.items()}, x)
    _, found = ibau.hypergradient(twin, weights, delta, x, y, CONFIG, torch.Generator())
    gradient = dict(zip(weights, found, strict=True))
    direct = dict(zip(weights, torch.autograd.grad(F.cross_entropy(twin.logits(x + delta, weights), y), list(weights.values())), strict=True))
    implicit = {name: gradient[name] - direct[name] for name in gradient}
    length = torch.stack([value.norm() for value in implicit.values()]).norm()
    along = {name: value / length for name, value in implicit.items()}
    step = 0.02
    measured = (settled(step, along) - settled(-step, along)) / (2 * step)
    alone = float(sum((direct[name] * along[name]).sum() for name in along))
    assert measured == pytest.approx(alone + float(length), rel=0.02)
    assert abs(measured - alone) > 0.1 * abs(measured)  # the implicit term counts here


def test_the_perturbation_fools_within_its_ball(twin: TorchTwin) -> None:
    x, y = pictures(24)
    weights = {name: weight.value for name, weight in twin.weights.items()}
    config = replace(CONFIG, price=0.0, radius=0.7, rate_delta=10.0, passes=3)
    delta = ibau.worst(twin, weights, Examples(x, y, flip=False), config, torch.Generator().manual_seed(0))
    answers = twin.logits(x).argmax(1)
    assert delta.shape == (1, 3, 8, 8)
    assert float(delta.norm()) == pytest.approx(0.7, rel=1e-4)
    assert F.cross_entropy(twin.logits(x + delta), answers) > 1.2 * F.cross_entropy(twin.logits(x), answers)


def test_one_picture_is_enough_to_unlearn(twin: TorchTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression of the released code: a hundredth of a small batch is no picture at all."""
    x, y = pictures(3)
    weights = {name: weight.value.clone().requires_grad_() for name, weight in twin.weights.items()}
    delta = torch.full_like(x[:1], 0.5)
    loss, _ = ibau.hypergradient(twin, weights, delta, x, y, replace(CONFIG, share=0.01), torch.Generator())
    assert loss != pytest.approx(F.cross_entropy(twin.logits(x), y).item(), rel=1e-4)
    images = tiny.labelled(3)
    monkeypatch.setattr(ibau, "DEFAULT", ibau.Config(rounds=1))
    found = ibau.ibau(twin, CalibrationSet(images.images, images.labels), preset="default", seed=0, report=lambda *_: None)
    assert found.perturbation is not None and found.perturbation.shape == (1, 8, 8, 3)
