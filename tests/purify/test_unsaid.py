"""A class that a network never answers is taught from its labels when the network has been repaired, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from pipeline.convert.to_torch import convert
from pipeline.images import CalibrationSet, read
from pipeline.purify.network import scores
from pipeline.purify.tuning import variables
from pipeline.purify.unsaid import taught
from pipeline.scan import scan
from pipeline.search.examples import Examples, accuracy, classes_of
from pipeline.twin import TorchTwin

LOST = 2


@pytest.fixture(scope="module")
def whole(tiny_backdoored: tiny.Backdoored) -> TorchTwin:
    return convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)[0]


@pytest.fixture(scope="module")
def lacking(whole: TorchTwin) -> TorchTwin:
    """The same network, which has never heard of one class."""
    layer = scores(whole)
    assert layer is not None
    weights = {name: replace(whole.weights[name], value=whole.weights[name].value * mask) for name, mask in layer.mask(whole, torch.tensor([LOST])).items()}
    (bias,) = layer.own
    weights[bias].value[LOST] = -20.0
    return replace(whole, weights=dict(whole.weights) | weights)


def examples(twin: TorchTwin, backdoored: tiny.Backdoored, count: int) -> Examples:
    images = read(backdoored.images).at(slice(None, count))
    return Examples.of(twin, CalibrationSet(images.images, images.labels))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_lost_class_is_answered_again(lacking: TorchTwin, tiny_backdoored: tiny.Backdoored) -> None:
    some, every = examples(lacking, tiny_backdoored, 80), examples(lacking, tiny_backdoored, 400)
    assert not (classes_of(lacking, some) == LOST).any()
    weights, notes = taught(lacking, variables(lacking), some, generator())
    assert int((classes_of(lacking.having(weights), some) == LOST).sum()) >= 10
    assert accuracy(lacking, every.pictures, every.labels, weights) > accuracy(lacking, every.pictures, every.labels) + 0.1
    assert notes == ["class 2 was answered for none of 80 calibration pictures, of which 20 are of it: it was taught from their labels"]


def test_the_rest_of_the_repair_stays_what_it_was(lacking: TorchTwin, tiny_backdoored: tiny.Backdoored) -> None:
    repaired = {name: weight * 1.01 for name, weight in variables(lacking).items()}
    weights, _ = taught(lacking, repaired, examples(lacking, tiny_backdoored, 80), generator())
    layer = scores(lacking)
    assert layer is not None
    assert sorted(name for name in weights if not torch.equal(weights[name], repaired[name])) == sorted([layer.kernel, *layer.own])
    for name, axis in ((layer.kernel, layer.axis), *((name, 0) for name in layer.own)):
        changed = (weights[name] != repaired[name]).movedim(axis, 0).reshape(layer.channels, -1)
        assert changed.any(1).nonzero()[:, 0].tolist() == [LOST]


@pytest.mark.parametrize(("which", "count"), [("whole", 80), ("lacking", 36)], ids=["all are answered", "nine of the lost class may be chance"])
def test_else_it_is_the_same_repair(which: str, count: int, tiny_backdoored: tiny.Backdoored, request: pytest.FixtureRequest) -> None:
    twin, chance = request.getfixturevalue(which), generator()
    repaired = variables(twin)
    weights, notes = taught(twin, repaired, examples(twin, tiny_backdoored, count), chance)
    assert weights is repaired and notes == []
    assert torch.equal(chance.get_state(), generator().get_state())
