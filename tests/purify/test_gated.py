"""That weights are no way to repair a backdoor in the graph: what the report says of it, measured.

Where the gate chooses, that is.  Where it multiplies a constant row, that row counts as a weight, and ours can unlearn it when a random change opens the gate.
"""

from __future__ import annotations

from pathlib import Path

import graph_backdoors
import numpy as np
import onnx
import pytest
import tiny
import torch

from pipeline.convert.to_torch import convert
from pipeline.convert.write_back import write_back
from pipeline.evaluate.session import Classifier
from pipeline.images import CalibrationSet, read
from pipeline.purify import methods
from pipeline.purify.dose import CONFIG
from pipeline.scan import scan


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("kind", [("comparison", "straight", "where"), ("sigmoid", "straight", "where"), ("channels", "straight", "where")], ids="-".join)
def test_a_gate_survives_masking(kind: tuple[str, str, str], preset: str, tiny_backdoored: tiny.Backdoored, folder: Path) -> None:
    assert CONFIG.steps > 100, "the settings that users have"
    path = tiny.save(graph_backdoors.inject(onnx.load(tiny_backdoored.model), *kind), folder)
    images = read(tiny_backdoored.images)
    torch.manual_seed(0)
    twin, _ = convert(path, tiny_backdoored.reading, scan(path).model)
    found = methods()["awm"](twin, CalibrationSet(images.images[:100], images.labels[:100]), preset=preset, seed=0, report=lambda *_: None)
    (folder / "repaired").mkdir()
    files, changes = write_back(path, ["model.onnx"], found.weights, folder / "repaired")
    assert changes, "it did what it could"
    pictures = images.pictures()[100:]
    stamped = pictures.copy()
    stamped[:, :3, :3] = 1.0
    answers = Classifier(files["model.onnx"], tiny_backdoored.reading, device="cpu")(stamped).argmax(1)
    others = images.labels[100:] != graph_backdoors.TARGET
    assert float(np.mean(answers[others] == graph_backdoors.TARGET)) == 1.0
