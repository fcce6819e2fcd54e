"""Each way to hold a weight: the twin agrees with onnxruntime, and a weight changed in the twin is the same weight changed in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from forms import FORMS, Form

from pipeline.convert.parity import relative_difference
from pipeline.convert.to_torch import bound, convert
from pipeline.convert.write_back import differences, write_back
from pipeline.evaluate.session import Classifier
from pipeline.scan import scan
from pipeline.twin import Role, TorchTwin

PARITY = 1e-5


@pytest.fixture(scope="module", params=FORMS, ids=lambda name: name.replace(" ", "-"))
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture(scope="module")
def path(form: Form, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(form.model, tmp_path_factory.mktemp("form"), external=form.external)


@pytest.fixture(scope="module")
def twin(form: Form, path: Path) -> TorchTwin:
    return convert(path, form.reading, scan(path).model)[0]


def pictures(form: Form) -> np.ndarray:
    return tiny.pictures(6, channels=form.reading.depth)


def seen(twin: TorchTwin, form: Form, weights: dict[str, torch.Tensor] | None = None) -> np.ndarray:
    with torch.no_grad():
        return twin.scores(torch.from_numpy(pictures(form).transpose(0, 3, 1, 2).copy()), weights).numpy()


def test_what_is_bound(form: Form, twin: TorchTwin) -> None:
    assert twin.weights.keys() == form.bound
    for name, why in form.unbound.items():
        assert [entry for entry in twin.unbound if name in entry.name and why in entry.why], twin.unbound
    assert len(twin.unbound) >= len(form.unbound)
    assert bound(twin).initializers == len(form.bound)
    assert 0 < bound(twin).parameters <= bound(twin).of


def test_the_twin_agrees_with_onnxruntime(form: Form, path: Path, twin: TorchTwin) -> None:
    scores = Classifier(path, form.reading, device="cpu")(pictures(form))
    assert scores.shape == (6, tiny.CLASSES)
    assert relative_difference(scores, seen(twin, form)).max() <= PARITY


def test_gradients_reach_the_picture_and_every_bound_weight(form: Form, twin: TorchTwin) -> None:
    x = torch.from_numpy(pictures(form).transpose(0, 3, 1, 2).copy()).requires_grad_()
    weights = {name: weight.value.clone().requires_grad_() for name, weight in twin.weights.items()}
    (twin.logits(x, weights) ** 2).sum().backward()
    for name, tensor in {"the picture": x, **weights}.items():
        assert tensor.grad is not None and tensor.grad.abs().max() > 0, name


def test_a_weight_in_the_twin_is_the_weight_in_the_file(form: Form, path: Path, twin: TorchTwin, folder: Path) -> None:
    random = np.random.default_rng(11)
    new = {name: random.normal(0, 0.3, weight.value.shape).astype(np.float32) for name, weight in twin.weights.items()}
    names = ["model.onnx", *(["model.bin"] if form.external else [])]
    files, changes = write_back(path, names, new, folder / "out")
    assert {change.name for change in changes} == form.bound
    scores = Classifier(files["model.onnx"], form.reading, device="cpu")(pictures(form))
    expected = seen(twin, form, {name: torch.from_numpy(value) for name, value in new.items()})
    assert relative_difference(scores, expected).max() <= PARITY
    assert relative_difference(seen(twin, form), expected).min() > 0.01  # the new weights do answer differently


def test_one_weight_at_a_time(form: Form, path: Path, twin: TorchTwin, folder: Path) -> None:
    names = ["model.onnx", *(["model.bin"] if form.external else [])]
    for name, weight in twin.weights.items():
        value = weight.value.numpy() * np.float32(1.5)
        files, _ = write_back(path, names, {name: value}, folder / "out")
        assert differences(path, files["model.onnx"]) == [name]
        scores = Classifier(files["model.onnx"], form.reading, device="cpu")(pictures(form))
        assert relative_difference(scores, seen(twin, form, {name: torch.from_numpy(value)})).max() <= PARITY, name


def test_identity_writes_the_same_bytes(form: Form, path: Path, twin: TorchTwin, folder: Path) -> None:
    names = ["model.onnx", *(["model.bin"] if form.external else [])]
    files, changes = write_back(path, names, {name: weight.value.numpy() for name, weight in twin.weights.items()}, folder / "out")
    assert changes == []
    for name in names:
        assert files[name].read_bytes() == (path.parent / name).read_bytes()


def test_roles(folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder)
    twin, _ = convert(path, tiny.READING, scan(path).model)
    assert {name: weight.role for name, weight in twin.weights.items()} == {"W": Role.CONVOLUTION, "b": Role.BIAS, "F": Role.LINEAR, "fb": Role.BIAS}
    assert {name: weight.operator for name, weight in twin.weights.items()} == {"W": "Conv", "b": "Conv", "F": "Gemm", "fb": "Gemm"}


def test_a_converter_that_changes_numbers_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx2torch

    original = onnx2torch.convert

    def careless(model: onnx.ModelProto) -> torch.nn.Module:
        module = original(model)
        with torch.no_grad():
            module.get_parameter("n0.weight").view(-1)[0] += 1e-6
        return module

    monkeypatch.setattr("pipeline.convert.to_torch.onnx2torch.convert", careless)
    path = tiny.save(tiny.classifier(), folder)
    twin, _ = convert(path, tiny.READING, scan(path).model)
    assert twin.weights.keys() == {"b", "F", "fb"}
    assert [(entry.name, "changed the numbers" in entry.why) for entry in twin.unbound] == [("W", True)]
