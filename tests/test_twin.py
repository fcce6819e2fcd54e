"""The twin: pixels in, the model's own answer out, and never another twin than it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from pipeline.convert.to_torch import convert
from pipeline.errors import DeviceUnavailable
from pipeline.images import InputSpec
from pipeline.scan import scan
from pipeline.twin import TorchTwin, choose_device, device_name


def twin_of(folder: Path, model: object = None, **options: object) -> TorchTwin:
    path = tiny.save(model or tiny.classifier(), folder)
    return convert(path, tiny.READING, scan(path).model, **options)[0]


def torched(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


@given(
    layout=st.sampled_from(["NCHW", "NHWC", "flat"]),
    channels=st.sampled_from(["RGB", "BGR", "gray"]),
    scale=st.sampled_from([1.0, 127.5, 255.0, 256.0]),
    shift=st.floats(-2, 2),
    spread=st.floats(0.1, 3),
)
def test_the_same_tensor_as_numpy_makes(layout: str, channels: str, scale: float, shift: float, spread: float) -> None:
    depth = 1 if channels == "gray" else 3
    mean, std = tuple(shift + row for row in range(depth)), tuple(spread * (row + 1) for row in range(depth))
    reading = InputSpec(layout=layout, size=(4, 5), channels=channels, scale=scale, mean=mean, std=std)
    pictures = tiny.pictures(2, size=(4, 5), channels=depth)
    twin = TorchTwin(torch.nn.Identity(), {}, reading, input_shape=(None, 20 * depth) if layout == "flat" else (None, 1, 1, 1))
    assert np.array_equal(twin.tensor(torched(pictures)).numpy(), reading.tensor(pictures))


def test_another_device_makes_another_twin(folder: Path) -> None:
    """Regression: `to` moved the module of the twin it was called on."""
    twin = twin_of(folder)
    before = {name: tensor.clone() for name, tensor in twin.module.state_dict().items()}
    moved = twin.to(torch.device("meta"))
    assert {weight.value.device.type for weight in moved.weights.values()} == {"meta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in twin.module.state_dict().items())
    assert twin.to(torch.device("cpu")) is twin


@pytest.mark.parametrize("fixed", [1, 3, 4])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_fixed_batch_changes_nothing(fixed: int, n: int, folder: Path) -> None:
    pictures = torched(tiny.pictures(n))
    free = twin_of(folder).scores(pictures)
    held = twin_of(folder, tiny.classifier(shape=(fixed, 3, 8, 8))).scores(pictures)
    assert held.shape == (n, tiny.CLASSES)
    assert torch.allclose(free, held, atol=1e-6)


def test_given_weights_leave_no_trace(folder: Path) -> None:
    twin, pictures = twin_of(folder), torched(tiny.pictures())
    before = twin.scores(pictures)
    assert not torch.equal(twin.scores(pictures, {"W": torch.zeros(6, 3, 3, 3)}), before)
    assert torch.equal(twin.scores(pictures), before)


def test_a_weight_that_is_not_there(folder: Path) -> None:
    with pytest.raises(KeyError, match="no weight is called 'V'"):
        twin_of(folder).scores(torched(tiny.pictures()), {"V": torch.zeros(1)})


def test_one_score_is_that_of_class_1(folder: Path) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "F", "fb"], ["z"], transB=1), helper.make_node("Sigmoid", ["z"], ["y"])]
    weights = {"F": tiny.values(1, 192), "fb": tiny.values(1)}
    model = tiny.model(nodes, weights, outputs={"y": ("N", 1)})
    pictures = torched(tiny.pictures())
    twin = twin_of(folder, model, probabilities=True)
    assert twin.weights.keys() == {"F", "fb"}
    score = torch.sigmoid(pictures.flatten(1) @ torch.from_numpy(weights["F"]).t() + torch.from_numpy(weights["fb"]))
    assert torch.allclose(twin.scores(pictures), torch.cat([1 - score, score], 1), atol=1e-6)
    assert torch.allclose(twin.logits(pictures).softmax(1), twin.scores(pictures), atol=1e-6)
    model.graph.node.pop()
    model.graph.node[-1].output[0] = "y"
    assert torch.allclose(twin_of(folder, model).scores(pictures).softmax(1), twin.scores(pictures), atol=1e-6)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_head_that_was_cut_is_in_the_scores_and_not_in_the_logits(op: str, folder: Path) -> None:
    model = tiny.classifier()
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(helper.make_node(op, ["logits"], ["y"]))
    twin, plain, pictures = twin_of(folder, model, probabilities=True), twin_of(folder), torched(tiny.pictures())
    assert torch.equal(twin.logits(pictures), plain.logits(pictures))
    expected = plain.logits(pictures).softmax(1) if op == "Softmax" else plain.logits(pictures).log_softmax(1)
    assert torch.allclose(twin.scores(pictures), expected)


def test_probabilities_without_a_head_become_logits(folder: Path) -> None:
    model = tiny.classifier()
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.extend(
        [helper.make_node("Softmax", ["logits"], ["s"]), helper.make_node("Add", ["s", "s"], ["d"]), helper.make_node("Sub", ["d", "s"], ["y"])]
    )
    twin, plain, pictures = twin_of(folder, model, probabilities=True), twin_of(folder), torched(tiny.pictures())
    assert twin.head is None
    assert torch.allclose(twin.logits(pictures), plain.logits(pictures).log_softmax(1), atol=1e-5)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    assert device_name(choose_device("cpu")) == "cpu"
    with pytest.raises(DeviceUnavailable):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


def test_bfloat16_is_near_and_only_where_it_is_quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, pictures = twin_of(folder), torched(tiny.pictures(5))
    monkeypatch.setattr("pipeline.twin.quick_at_bfloat16", lambda device: False)
    assert twin.quick(pictures) is twin
    monkeypatch.setattr("pipeline.twin.quick_at_bfloat16", lambda device: True)
    quick = twin.quick(pictures)
    assert quick.bfloat16 and not twin.bfloat16 and twin.quick(pictures[:0]) is twin
    exact, near = twin.logits(pictures), quick.logits(pictures)
    assert near.dtype == torch.float32 and not torch.equal(exact, near)
    assert float((exact - near).abs().max()) < 0.1 * float(exact.abs().max())
    monkeypatch.setattr("pipeline.twin.BORNE", 0.0)
    assert twin.quick(pictures) is twin
