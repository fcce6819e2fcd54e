"""RNP: unlearning stops near guessing, and pruning goes as far as accuracy bears it."""

from __future__ import annotations

import pytest
import tiny
import torch

from pipeline.convert.to_torch import convert
from pipeline.images import CalibrationSet, read, split
from pipeline.purify import History, rnp
from pipeline.purify.filters import hidden, scaled
from pipeline.purify.tuning import variables
from pipeline.scan import scan
from pipeline.search.examples import Examples, accuracy
from pipeline.twin import TorchTwin


@pytest.fixture(scope="module")
def twin(tiny_backdoored: tiny.Backdoored) -> TorchTwin:
    return convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)[0]


@pytest.fixture(scope="module")
def calibration(tiny_backdoored: tiny.Backdoored) -> CalibrationSet:
    return split(read(tiny_backdoored.images), calibration=120, seed=0)[0]


def history() -> History:
    return History(lambda *_: None, 1000)


def test_unlearning_stops_near_guessing_and_recovery_undoes_it(twin: TorchTwin, calibration: CalibrationSet) -> None:
    examples, record, generator = Examples.of(twin, calibration), history(), torch.Generator().manual_seed(0)
    unlearned = rnp.unlearn(twin, examples, rnp.Unlearning(batch=64, rate=0.003), generator, record)
    course = [step.metrics["accuracy_unlearned"] for step in record.steps]
    guess = float(examples.labels.bincount().max()) / len(examples)
    floor = guess + (1 - guess) / 9
    assert course[-1] <= floor < min(course[:-1])
    assert unlearned.keys() == variables(twin).keys()
    network = hidden(twin)
    masks = rnp.recover(twin, unlearned, network, examples, rnp.Config(epochs=20, batch=64, rate=0.02), generator, record)
    everything = torch.cat(list(masks.values()))
    assert 0 <= everything.min() < 0.9 and everything.max() <= 1
    assert accuracy(twin, examples.pictures, examples.labels, unlearned | scaled(network, unlearned, masks)) > course[-1] + 0.2


def test_pruning_takes_what_is_not_needed_and_no_more(twin: TorchTwin, calibration: CalibrationSet) -> None:
    """Masks that are low where a filter is dead, and high where all of them are needed together."""
    examples, network = Examples.of(twin, calibration), hidden(twin)
    kernels = {layer.kernel: twin.weights[layer.kernel].value.clone() for layer in network}
    masks = {layer.kernel: torch.full((layer.channels,), 0.62) for layer in network}
    masks[network[1].kernel][:3] = 0.11
    kernels[network[1].kernel][:3] = 0  # so that pruning them changes nothing
    config, record = rnp.Config(tolerance=0.3, thresholds=20), history()
    keep, notes = rnp.prune(twin, masks, network, kernels, examples, config, record)
    assert [int((one == 0).sum()) for one in keep.values()] == [0, 3]
    assert record.steps[-1].metrics["threshold"] == pytest.approx(0.65)  # the first that all filters fall under
    assert notes == ["3 of 36 filters were pruned: those with a mask of at most 0.60"]


def test_nothing_goes_when_accuracy_bears_nothing(twin: TorchTwin, calibration: CalibrationSet) -> None:
    examples, network = Examples.of(twin, calibration), hidden(twin)
    kernels = {layer.kernel: twin.weights[layer.kernel].value for layer in network}
    keep, notes = rnp.prune(twin, {layer.kernel: torch.zeros(layer.channels) for layer in network}, network, kernels, examples, rnp.Config(), history())
    assert all(bool((one == 1).all()) for one in keep.values())
    assert "bears no threshold" in notes[0]
