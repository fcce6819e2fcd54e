"""Auto: it chooses by what it measures on images kept aside, falls back where nothing else works, and says why."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tiny

from pipeline.convert.to_torch import convert
from pipeline.errors import SpecRefused
from pipeline.images import CalibrationSet, read, split
from pipeline.purify import Purified, auto, clp
from pipeline.scan import scan
from pipeline.twin import TorchTwin


@pytest.fixture(scope="module")
def twin(tiny_backdoored: tiny.Backdoored, tmp_path_factory: pytest.TempPathFactory) -> TorchTwin:
    path = shutil.copy(tiny_backdoored.model, tmp_path_factory.mktemp("auto") / "model.onnx")
    return convert(path, tiny_backdoored.reading, scan(path).model)[0]


@pytest.fixture(scope="module")
def calibration(tiny_backdoored: tiny.Backdoored) -> CalibrationSet:
    return split(read(tiny_backdoored.images), calibration=64, seed=0)[0]


def nothing(twin: TorchTwin, calibration: CalibrationSet, **_: object) -> Purified:
    """A method that leaves every weight as it was."""
    return Purified({name: weight.value.numpy() for name, weight in twin.weights.items()}, {}, None, [], [], [])


def ruin(twin: TorchTwin, calibration: CalibrationSet, **_: object) -> Purified:
    """No backdoor is left, nor anything else."""
    return Purified({name: np.zeros_like(weight.value.numpy()) for name, weight in twin.weights.items()}, {}, None, [], [], [])


def refuse(twin: TorchTwin, calibration: CalibrationSet, **_: object) -> Purified:
    raise SpecRefused("not for this network")


def run(twin: TorchTwin, calibration: CalibrationSet) -> Purified:
    return auto.auto(twin, calibration, preset="default", seed=0, report=lambda *_: None)


def test_what_removes_the_short_cut_and_keeps_accuracy_wins(twin: TorchTwin, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", {"nothing": nothing, "awm": auto.awm, "ruin": ruin, "refuse": refuse})
    found = run(twin, calibration)
    assert "awm was chosen" in found.notes
    assert [note.partition(":")[0] for note in found.notes[:5]] == ["submitted", "nothing", "awm", "ruin", "refuse"]
    assert "estimated DER 0.500" in found.notes[1] and "not for this network" in found.notes[4]
    assert found.perturbation is not None and found.history


def test_without_a_trigger_that_can_be_found_it_leaves_the_network_alone(twin: TorchTwin, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", {"nothing": nothing, "ruin": ruin})
    monkeypatch.setattr(auto.Judged, "fooled", 0.0)
    assert "nothing was chosen" in run(twin, calibration).notes


def test_fallbacks(twin: TorchTwin, calibration: CalibrationSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "CANDIDATES", {"refuse": refuse})
    found = run(twin, calibration)
    assert "clp was chosen" in found.notes and found.notes[1] == "refuse: not for this network"
    assert run(twin, calibration.at(np.arange(0))).notes[:2] == ["there are no images, and clp needs none", "clp was chosen"]
    assert found.weights.keys() == clp.clp(twin, calibration, preset="default", seed=0, report=lambda *_: None).weights.keys()
    monkeypatch.setattr(auto, "awm", nothing)
    few = run(twin, calibration.at(np.arange(5)))
    assert "awm was chosen" in few.notes and "too few to keep some aside" in few.notes[0]
