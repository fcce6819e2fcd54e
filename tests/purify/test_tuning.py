"""Fine-tuning, sharpness-aware steps, pruning and distillation: what each paper says of them, on networks that can be reckoned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from pipeline.convert.to_torch import convert
from pipeline.errors import StageFailed
from pipeline.images import CalibrationSet, read, split
from pipeline.purify import History, Purified, distillation, methods
from pipeline.purify.distillation import DistillationConfig, attention, stages
from pipeline.purify.fine_pruning import FinePruningConfig, dormancy, fitting, last_convolution, prune, without
from pipeline.purify.network import layers, watch
from pipeline.purify.tuning import TuningConfig, tune, variables
from pipeline.scan import scan
from pipeline.search.examples import Examples, accuracy
from pipeline.twin import TorchTwin


@pytest.fixture(scope="module")
def twin(tiny_backdoored: tiny.Backdoored) -> TorchTwin:
    return convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)[0]


@pytest.fixture(scope="module")
def calibration(tiny_backdoored: tiny.Backdoored) -> CalibrationSet:
    return split(read(tiny_backdoored.images), calibration=80, seed=0)[0]


@pytest.fixture
def examples(twin: TorchTwin, calibration: CalibrationSet) -> Examples:
    return replace(Examples.of(twin, calibration), flip=False)


def history() -> History:
    return History(lambda *_: None, 100)


def run(method: str, twin: TorchTwin, calibration: CalibrationSet) -> Purified:
    return methods()[method](twin, calibration, preset="default", seed=0, report=lambda *_: None)


def one_step(twin: TorchTwin, examples: Examples, rho: float) -> dict[str, torch.Tensor]:
    config = TuningConfig(epochs=1, batch=len(examples), rate=0.5, decay=0.0, rho=rho, clip=float("inf"), crop=0)
    return tune(twin, examples, variables(twin), config=config, generator=torch.Generator(), history=history())


def gradients(twin: TorchTwin, examples: Examples, at: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {name: value.clone().requires_grad_() for name, value in at.items()}
    loss = F.cross_entropy(twin.logits(examples.pictures, weights), examples.labels)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def test_a_step_of_plain_fine_tuning_goes_down_the_gradient(twin: TorchTwin, examples: Examples) -> None:
    start = variables(twin)
    slope = gradients(twin, examples, start)
    for name, value in one_step(twin, examples, 0.0).items():
        torch.testing.assert_close(value, start[name] - 0.5 * slope[name], rtol=1e-4, atol=1e-6)


def test_a_sharpness_aware_step_takes_the_gradient_at_the_edge_of_the_adaptive_ball(twin: TorchTwin, examples: Examples) -> None:
    """‖T⁻¹ ε‖₂ = ρ with T = |w|, and no other ε of that size has a larger product with the gradient."""
    start, rho = variables(twin), 0.7
    slope = gradients(twin, examples, start)
    length = torch.cat([(start[name] * slope[name]).flatten() for name in start]).norm()
    epsilon = {name: rho * start[name] ** 2 * slope[name] / length for name in start}
    relative = torch.cat([(epsilon[name] / start[name])[start[name] != 0].flatten() for name in start])
    assert float(relative.norm()) == pytest.approx(rho, rel=1e-4)
    there = gradients(twin, examples, {name: start[name] + epsilon[name] for name in start})
    for name, value in one_step(twin, examples, rho).items():
        torch.testing.assert_close(value, start[name] - 0.5 * there[name], rtol=1e-3, atol=1e-5)


def test_divergence_is_said(twin: TorchTwin, examples: Examples) -> None:
    config = TuningConfig(epochs=20, rate=1e6, momentum=0.99, clip=float("inf"))
    with pytest.raises(StageFailed, match="diverged"):
        tune(twin, examples, variables(twin), config=config, generator=torch.Generator(), history=history())


def test_pictures_are_mirrored_only_where_the_network_can_read_them(twin: TorchTwin, folder: Path) -> None:
    """A network that looks for light on the left half, whose mirrored pictures belong to the other class."""
    side = np.zeros((4, 1, 1, 8), np.float32)
    side[0, ..., :4] = side[1, ..., 4:] = 1
    nodes = [
        tiny.helper.make_node("ReduceMean", ["x"], ["gray"], axes=[1, 2], keepdims=1),
        tiny.helper.make_node("Conv", ["gray", "W"], ["c"]),
        tiny.helper.make_node("Flatten", ["c"], ["y"]),
    ]
    path = tiny.save(tiny.model(nodes, {"W": side}), folder)
    sided = convert(path, tiny.READING, scan(path).model)[0]
    pictures = np.zeros((10, 8, 8, 3), np.uint8)
    pictures[::2, :, :4] = pictures[1::2, :, 4:] = 255
    labels = np.arange(10) % 2
    assert not Examples.of(sided, CalibrationSet(pictures, labels)).flip
    both = np.maximum(pictures, pictures[:, :, ::-1])
    assert Examples.of(sided, CalibrationSet(both, np.zeros(10, np.int64))).flip


def test_dormant_channels_come_first(twin: TorchTwin, examples: Examples) -> None:
    layer = last_convolution(twin)
    assert layer is not None and layer.kernel == [found for found in layers(twin) if found.role == "convolution"][-1].kernel
    order = dormancy(twin, layer, examples.pictures, batch=32)
    means = layer.per_channel(watch(twin, examples.pictures, None, [layer.seen])[1][layer.seen]).mean((0, 2))
    assert sorted(order.tolist()) == list(range(layer.channels))
    assert (means[order].diff() >= -1e-5).all()


def test_the_curve_ends_where_accuracy_drops(twin: TorchTwin, examples: Examples) -> None:
    layer, config, seen = last_convolution(twin), FinePruningConfig(points=6), history()
    assert layer is not None
    gone = prune(twin, layer, examples, examples, config=config, history=seen)
    curve = {int(step.metrics["pruned"]): step.metrics["accuracy_judged"] for step in seen.steps}
    before = accuracy(twin, examples.pictures, examples.labels)
    assert curve[0] == before and len(curve) == len(seen.steps)
    assert 0 < len(gone) < layer.channels
    assert curve[len(gone)] >= before - config.drop > without(twin, layer, dormancy(twin, layer, examples.pictures)[: len(gone) + 1], examples)


def test_pruned_channels_stay_at_zero(twin: TorchTwin, calibration: CalibrationSet) -> None:
    purified = run("fine-pruning", twin, calibration)
    layer = last_convolution(twin)
    assert layer is not None and purified.masks.keys() == {layer.kernel, *layer.own}
    gone = purified.masks[layer.kernel].reshape(layer.channels, -1).max(1) == 0
    assert gone.any() and f"{gone.sum()} of {layer.channels}" in purified.notes[-2]
    assert purified.notes[-1] == "fine-tuned at a rate of 0.01", "40 images judge none"
    assert not purified.weights[layer.kernel][gone].any() and purified.weights[layer.kernel][~gone].any()
    assert not any(purified.weights[name][gone].any() for name in layer.own)


@pytest.mark.parametrize(
    ("rates", "least", "chosen"),
    [((0.05, 0.02), 50, 0.05), ((1e5, 0.02), 50, 0.02), ((1e5,), 50, 0.01), ((0.05,), 81, 0.01)],
    ids=["the largest", "the next where that costs accuracy", "none fits", "too few images"],
)
def test_fine_pruning_tunes_at_the_largest_rate_that_accuracy_allows(
    twin: TorchTwin, examples: Examples, rates: tuple[float, ...], least: int, chosen: float
) -> None:
    config, seen = FinePruningConfig(rates=rates, least=least, tuning=TuningConfig(epochs=3, clip=float("inf"))), history()
    assert fitting(twin, {}, examples, examples, config=config, seed=0, history=seen) == replace(config.tuning, rate=chosen)
    tried = {step.metrics["rate"]: step.metrics["accuracy_judged"] for step in seen.steps if "rate" in step.metrics}
    fits = {rate for rate, found in tried.items() if found >= accuracy(twin, examples.pictures, examples.labels) - config.drop}
    assert fits == {chosen} - {config.tuning.rate}


def test_without_convolutions_the_layer_is_chosen(folder: Path) -> None:
    """Of two hidden layers, the one whose other half is always dormant.  The four classes are the corner that is bright."""
    node, eye = tiny.helper.make_node, np.eye(4, dtype=np.float32)
    nodes = [
        node("AveragePool", ["x"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        node("ReduceMean", ["p"], ["q"], axes=[1], keepdims=1),
        node("Flatten", ["q"], ["f"]),
        node("Gemm", ["f", "A", "a"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "B"], ["k"]),
        node("Relu", ["k"], ["s"]),
        node("MatMul", ["s", "C"], ["y"]),
    ]
    half_dormant = np.array([0, 0, 0, 0, -9, -9, -9, -9], np.float32)
    path = tiny.save(tiny.model(nodes, {"A": np.hstack([eye, eye]), "a": half_dormant, "B": np.vstack([eye, eye]), "C": eye}), folder)
    pictures, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
    for picture, label in zip(pictures, labels, strict=True):
        picture[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] = 255
    twin = convert(path, tiny.READING, scan(path).model)[0]
    assert last_convolution(twin) is None
    purified = run("fine-pruning", twin, CalibrationSet(pictures, labels))
    assert purified.masks.keys() == {"A", "a"}
    assert sorted(np.flatnonzero(purified.masks["a"] == 0)) == [0, 4, 5, 6, 7]  # no score at all still says class 0
    assert "no convolution" in purified.notes[0]


def test_attention_is_where_the_energy_is(twin: TorchTwin, examples: Examples) -> None:
    found = stages(twin, examples.pictures[:1])
    assert [layer.role for layer in found] == ["convolution"] * len(found) and len(found) == 2
    values = torch.zeros(1, found[0].channels, 2, 2)
    values[0, 1, 0, 1], values[0, 2, 1, 0] = -3.0, 1.0
    torch.testing.assert_close(attention(found[0], values, 2.0), torch.tensor([[0.0, 9.0, 1.0, 0.0]]) / 82**0.5)


def test_the_student_looks_where_the_teacher_looks(twin: TorchTwin, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = TuningConfig(epochs=4, batch=16, rate=0.05)
    student = TuningConfig(epochs=6, batch=16, rate=0.002)
    examples = Examples.of(twin, calibration)
    goal = tune(twin, examples, variables(twin), config=teacher, generator=torch.Generator().manual_seed(0), history=history())
    layer = stages(twin, examples.pictures[:1])[-1]

    def look(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return attention(layer, watch(twin, examples.pictures, weights, [layer.seen])[1][layer.seen], 2.0)

    def distance(beta: float) -> float:
        config = DistillationConfig(beta=beta, teacher=teacher, student=student)
        monkeypatch.setattr(distillation, "DistillationConfig", lambda: config)
        weights = {name: torch.from_numpy(value) for name, value in run("nad", twin, calibration).weights.items()}
        return float((look(weights) - look(goal)).square().sum(1).mean())

    assert distance(1000.0) < 0.8 * distance(0.0)
