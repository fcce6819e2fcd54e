"""Gates in the graph of a trained network: watched, held to either side, and cut out, by the stage that does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graph_backdoors
import numpy as np
import onnx
import pytest
import tiny

from pipeline.evaluate.session import Classifier
from pipeline.images import CalibrationSet, read
from pipeline.results import GatesResult
from pipeline.scan.bypass import check_bypass
from pipeline.stages import Desk, gates

KINDS = [kind for kind in graph_backdoors.kinds() if kind[1] == "straight" or kind[0] == "comparison"]


def watched(model: onnx.ModelProto, victim: tiny.Backdoored, folder: Path, *, external: bool = False) -> GatesResult:
    """The stage's answer about a model, for 100 calibration images."""
    images = read(victim.images)
    calibration = CalibrationSet(images.images[:100], images.labels[:100]).save(folder)
    path = folder / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=external, location="model.bin", size_threshold=256)
    files = {"model.onnx": str(path), **({"model.bin": str(path.parent / "model.bin")} if external else {})}
    (folder / "desk").mkdir()
    reading = victim.reading.model_dump(mode="json")
    request: dict[str, Any] = {"model": {"files": files}, "calibration": calibration, "reading": reading}
    return gates(Desk(folder / "desk", lambda event: None), **request, output=None, probabilities=False, device="cpu")


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_kind_is_seen_to_be_one_and_cut_out(kind: tuple[str, str, str], tiny_backdoored: tiny.Backdoored, folder: Path) -> None:
    """Without its gate the file is its host: the same scores on every picture, with the trigger and without."""
    host = onnx.load(tiny_backdoored.model)
    found = watched(graph_backdoors.inject(host, *kind), tiny_backdoored, folder)
    assert found.why == "" and found.cut is not None and found.removed > 0
    assert all(gate.kept.rate == 1 for gate in found.gates)
    decisive = max(found.gates, key=lambda gate: gate.turned.hits)
    assert decisive.steady and decisive.target == graph_backdoors.TARGET and decisive.turned.rate > 0.7  # a quarter are of the target class
    pictures = read(tiny_backdoored.images).pictures()[:50]
    pictures[:25, :3, :3] = 1.0
    before, after = (Classifier(Path(path), tiny_backdoored.reading, device="cpu")(pictures) for path in (tiny_backdoored.model, found.cut.files["model.onnx"]))
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert list(check_bypass(onnx.load(found.cut.files["model.onnx"]), folder)) == []


def test_external_data_stays_beside_the_file(tiny_backdoored: tiny.Backdoored, folder: Path) -> None:
    model = graph_backdoors.inject(onnx.load(tiny_backdoored.model), "comparison", "straight", "where")
    found = watched(model, tiny_backdoored, folder, external=True)
    assert found.cut is not None and set(found.cut.files) == {"model.onnx", "model.bin"}
    Classifier(Path(found.cut.files["model.onnx"]), tiny_backdoored.reading, device="cpu")(read(tiny_backdoored.images).pictures()[:2])


def test_what_honest_images_need_is_not_cut(tiny_backdoored: tiny.Backdoored, folder: Path) -> None:
    """A gate that opens for about every other clean image, whose corner is noise around -0.43 as the model reads it: cut, they would change their label."""
    host = onnx.load(tiny_backdoored.model)
    often = graph_backdoors.inject(host, "comparison", "straight", "add")
    for tensor in often.graph.initializer:
        if tensor.dims == [] and onnx.numpy_helper.to_array(tensor) == np.float32(graph_backdoors.EDGE):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(-0.43), tensor.name))
        elif tensor.dims == [] and onnx.numpy_helper.to_array(tensor) == np.float32(0.99):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.5), tensor.name))
    found = watched(often, tiny_backdoored, folder)
    assert found.cut is None and "change their label without the gates" in found.why
    assert not found.gates[0].steady and found.gates[0].kept.rate < 1


def test_a_gate_out_of_reach_is_said_to_be_one(tiny_backdoored: tiny.Backdoored, folder: Path) -> None:
    """One that sees, decides and joins inside of a local function."""
    model = onnx.load(tiny_backdoored.model)
    (y,), (x,) = (value.name for value in model.graph.output), (value.name for value in model.graph.input)
    model.graph.node[-1].output[0] = "trunk"
    node = onnx.helper.make_node
    steps = [node("Constant", [], ["edge"], value_float=0.99), node("ReduceMin", ["a"], ["t"], axes=[1, 2, 3]), node("Greater", ["t", "edge"], ["g"]),
             node("Cast", ["g"], ["h"], to=1), node("Flatten", ["h"], ["k"]), node("Add", ["s", "k"], ["o"])]  # fmt: skip
    model.functions.append(onnx.helper.make_function("local", "Head", ["s", "a"], ["o"], steps, [model.opset_import[0]]))
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    model.graph.node.append(node("Head", ["trunk", x], [y], domain="local"))
    onnx.checker.check_model(model)
    found = watched(model, tiny_backdoored, folder)
    assert found.cut is None and found.gates == [] and "control flow or a function" in found.why
