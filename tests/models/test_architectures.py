"""The small VGG, as the paper has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.architectures import NETWORKS, SmallVGG, network
from models.attacks.trojan import trojan_square
from models.export import export
from pipeline.convert.parity import relative_difference
from pipeline.convert.to_torch import convert
from pipeline.errors import BadInput
from pipeline.evaluate.session import Classifier
from pipeline.images import InputSpec
from pipeline.scan import scan


def test_layers() -> None:
    network = SmallVGG()
    kernels = [tuple(layer.weight.shape[:2]) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [(32, 3), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128)]
    assert network.classifier.in_features == 2048
    assert sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d)) == 286_560
    order = [type(layer).__name__ for layer in network.features]
    assert order == ["Conv2d", "BatchNorm2d", "ELU", "Conv2d", "BatchNorm2d", "ELU", "MaxPool2d"] * 3
    assert SmallVGG(classes=7, width=8)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_export_folds_batch_normalisation_exactly(folder: Path) -> None:
    torch.manual_seed(0)
    network = SmallVGG(width=4)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    pictures = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())).numpy()
    export(network, folder / "vgg.onnx")
    model = onnx.load(str(folder / "vgg.onnx"))
    assert {node.op_type for node in model.graph.node} == {"Conv", "Elu", "MaxPool", "Flatten", "Gemm"}
    assert [entry.version for entry in model.opset_import] == [17]
    assert [path.name for path in folder.iterdir()] == ["vgg.onnx"]
    scores = Classifier(folder / "vgg.onnx", InputSpec(size=(32, 32)), device="cpu")(pictures)
    assert relative_difference(expected, scores).max() < 1e-5


def test_the_square_is_always_the_same() -> None:
    square = trojan_square()
    assert square.shape == (8, 8, 3) and square.dtype == np.uint8
    assert np.array_equal(square, trojan_square())
    assert square.std() > 50


@pytest.mark.parametrize("name", ["vgg-4", "cnn-4", "resnet18-4", "convnext-8"])
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_every_network_goes_through_the_file_and_back(folder: Path, name: str, channels: int, side: int) -> None:
    torch.manual_seed(0)
    model = network(name, classes=5, channels=channels, side=side).eval()
    export(model, folder / "model.onnx", channels=channels, side=side)
    reading = InputSpec(size=(side, side), channels="RGB" if channels == 3 else "gray")
    pictures = np.random.default_rng(0).random((3, side, side, channels), np.float32)
    x = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    twin, _ = convert(folder / "model.onnx", reading, scan(folder / "model.onnx").model)
    with torch.no_grad():
        expected, copied = model(x).numpy(), twin.logits(x).numpy()
    scores = Classifier(folder / "model.onnx", reading, device="cpu")(pictures)
    assert scores.shape == (3, 5)
    assert relative_difference(expected, scores).max() < 1e-4 and relative_difference(copied, scores).max() < 1e-4


def test_some_networks_have_no_batch_normalisation() -> None:
    kinds = {name: {type(layer) for layer in network(f"{name}-8", classes=3, channels=3, side=32).modules()} for name in NETWORKS}
    assert {name for name in NETWORKS if nn.BatchNorm2d not in kinds[name]} == {"cnn", "convnext"}


def test_a_network_by_name() -> None:
    stem = network("resnet18", classes=3, channels=3, side=32).state_dict()["features.0.weight"]
    assert stem.shape == (64, 3, 3, 3)
    for wrong in ("lenet", "resnet18-wide"):
        with pytest.raises(BadInput, match="there is no network"):
            network(wrong, classes=3, channels=3, side=32)
