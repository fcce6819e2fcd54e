"""A network that onnxruntime's own tool has quantised: imported, purified, and written back in the integers it came in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from models.poison import poison
from models.train import TrainingConfig, train
from pipeline.convert.parity import QUANTISED, compare, tolerance
from pipeline.convert.to_torch import bound, convert
from pipeline.convert.write_back import differences, write_back
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.images import CalibrationSet, HoldoutSet, InputSpec, LabelledImages, split
from pipeline.purify import dose, methods, minimax
from pipeline.scan import scan
from pipeline.search import kinds

READING = InputSpec(size=(24, 24), mean=(0.5,), std=(0.25,))


def larger(images: np.ndarray) -> np.ndarray:
    """12x12 pictures as 24x24."""
    return images.repeat(2, axis=1).repeat(2, axis=2)


class Reader(CalibrationDataReader):
    """Hands the quantiser its calibration pictures."""

    def __init__(self, x: np.ndarray) -> None:
        self.batches = iter([{"images": x[i : i + 32]} for i in range(0, len(x), 32)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@dataclass(frozen=True)
class Quantised:
    """A ResNet-18 with a backdoor, in int8.  calibration, holdout: images that it was not trained on."""

    path: Path
    calibration: CalibrationSet
    holdout: HoldoutSet


@pytest.fixture(scope="module", params=[False, True], ids=["per-tensor", "per-channel"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, resnet: torch.nn.Module) -> Quantised:
    folder = tmp_path_factory.mktemp("quantised")
    torch.onnx.export(
        resnet, (torch.zeros(2, 3, 24, 24),), str(folder / "float.onnx"), input_names=["images"], output_names=["logits"], opset_version=17, dynamo=False,
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    test = tiny.shapes(500, seed=1)
    calibration, holdout = split(LabelledImages(larger(test.images), test.labels), calibration=100, seed=0)
    quantize_static(
        folder / "float.onnx", folder / "model.onnx", Reader(READING.tensor(calibration.pictures())), quant_format=QuantFormat.QDQ,
        per_channel=request.param, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    )  # fmt: skip
    return Quantised(folder / "model.onnx", calibration, holdout)


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    """torchvision's own with one block a stage, trained on coloured shapes of which a tenth carry the trigger."""
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    data = tiny.shapes(1200, seed=0)
    images, labels, _ = poison(data.images, data.labels, tiny.TRIGGER.build(3), target=1, rate=0.1, seed=0)
    config = TrainingConfig(epochs=3, batch=64, peak_learning_rate=0.05, crop=0, flip=False, seed=0)
    return train(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=tiny.CLASSES), larger(images), labels, mean=(0.5,), std=(0.25,), config=config)


def larger_trigger(pictures: np.ndarray) -> np.ndarray:
    """The trigger on a picture of twice the size."""
    return tiny.PatchSpec(name="corner", size=(6, 6), color=(255, 0, 255), at=(-6, -6), target=1).build(3)(pictures)


def accuracy_of(twin: object, images: HoldoutSet, weights: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        scores = twin.scores(torch.from_numpy(images.pictures().transpose(0, 3, 1, 2).copy()), weights)
    return float((scores.argmax(1).numpy() == images.labels).mean())


def test_imports_purifies_and_comes_back_in_int8(quantised: Quantised, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = KnownAttack(name="corner", trigger=larger_trigger, target=1)
    before = measure(Classifier(quantised.path, READING, device="cpu"), quantised.holdout, [attack])
    assert before.clean.rate > 0.8 and before.attacks[0].asr.rate > 0.8

    twin, copy = convert(quantised.path, READING, scan(quantised.path).model)
    pictures = quantised.calibration.pictures()[:32]
    parity = compare(twin, Classifier(quantised.path, READING, device="cpu")(pictures), pictures, tolerance=tolerance(copy))
    assert tolerance(copy) == QUANTISED and parity.holds, parity
    share = bound(twin, copy)
    assert share.parameters > 0.99 * share.of
    kernels = [name for name, weight in twin.weights.items() if weight.role == "convolution"]
    assert len(kernels) == 12

    monkeypatch.setattr(minimax, "CONFIG", dose.Config(steps=60, search=kinds.Config(steps=40)))  # half as long: it is an easy backdoor
    purified = methods()["awm"](twin, quantised.calibration, preset="default", seed=0, report=lambda *_: None)
    files, changes = write_back(quantised.path, ["model.onnx"], purified.weights, folder / "out")
    assert differences(quantised.path, files["model.onnx"]) == sorted(change.name for change in changes)
    written = {tensor.name: tensor for tensor in onnx.load(files["model.onnx"]).graph.initializer}
    assert {written[name].data_type for name in kernels} == {onnx.TensorProto.INT8}
    assert set(kernels) <= {change.name for change in changes}

    after = measure(Classifier(files["model.onnx"], READING, device="cpu"), quantised.holdout, [attack])
    in_torch = accuracy_of(twin, quantised.holdout, {name: torch.from_numpy(value) for name, value in purified.weights.items()})
    assert abs(after.clean.rate - in_torch) <= 0.01
    assert after.attacks[0].asr.rate < before.attacks[0].asr.rate / 2
