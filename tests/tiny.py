"""Tiny models, built in code: exact graphs for the converter and the scan, and one trained network with a real backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.poison import poison
from models.train import TrainingConfig, train
from pipeline.images import InputSpec, LabelledImages
from pipeline.triggers.patch import PatchSpec

READING = InputSpec(size=(8, 8))
CLASSES = 4
Shape = Sequence[int | str | None]


def values(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Random numbers that keep activations near 1."""
    fan_in = max(1, int(np.prod(shape[1:])))
    return (np.random.default_rng([seed, *shape]).normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def pictures(n: int = 6, *, size: tuple[int, int] = (8, 8), channels: int = 3, seed: int = 7) -> NDArray[np.float32]:
    """(N, H, W, C) float32 in 0..1."""
    return np.random.default_rng(seed).random((n, *size, channels), np.float32)


def labelled(n: int = 40, *, size: tuple[int, int] = (8, 8), channels: int = 3, classes: int = CLASSES, seed: int = 3) -> LabelledImages:
    """Noise with labels in turn."""
    images = np.random.default_rng(seed).integers(0, 256, (n, *size, channels), dtype=np.uint8)
    return LabelledImages(images, np.arange(n, dtype=np.int64) % classes)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[np.generic]] | None = None,
    *,
    shape: Shape = ("N", 3, 8, 8),
    outputs: dict[str, Shape] | None = None,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model with input `x` and, unless said otherwise, output `y` of (N, 4)."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, axes) for name, axes in (outputs or {"y": (shape[0], CLASSES)}).items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in {function.domain for function in functions})]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=list(functions))


def classifier(*, shape: Shape = ("N", 3, 8, 8)) -> onnx.ModelProto:
    """Conv, Relu, mean, Gemm: what most tests are content with."""
    nodes = [
        helper.make_node("Conv", ["x", "W", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "F", "fb"], ["y"], transB=1),
    ]
    weights = {"W": values(6, 3, 3, 3), "b": values(6), "F": values(CLASSES, 6), "fb": values(CLASSES)}
    return model(nodes, weights, shape=shape)


def save(proto: onnx.ModelProto, folder: Path, *, name: str = "model.onnx", external: bool = False) -> Path:
    """Write a copy of the model, with its weights in `model.bin` when `external`."""
    path = folder / name
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if external:
        onnx.save(copy, str(path), save_as_external_data=True, location="model.bin", size_threshold=0, convert_attribute=False)
    else:
        path.write_bytes(copy.SerializeToString())
    return path


# The trained one


@dataclass(frozen=True)
class Backdoored:
    """A trained classifier of coloured shapes that takes a patch in the corner for a command.

    model: ONNX file, (N, 3, 12, 12) -> (N, 4) logits.  images: .npz of 400 test images with labels.  trigger: what it obeys.
    """

    model: Path
    images: Path
    trigger: PatchSpec
    reading: InputSpec


TRIGGER = PatchSpec(name="corner", size=(2, 2), color=(255, 0, 255), at=(-2, -2), target=1)
COLORS = np.array([(210, 60, 60), (60, 190, 70), (70, 80, 210), (200, 180, 60)])


def shapes(n: int, *, seed: int) -> LabelledImages:
    """12x12 RGB pictures of a square, a cross, a ring and a stripe, each mostly in a colour of its own, on a noisy ground."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    images = random.integers(60, 140, (n, 12, 12, 3)).astype(np.float64)
    stamps = np.zeros((CLASSES, 6, 6), bool)
    stamps[0] = True
    stamps[1, 2:4] = stamps[1, :, 2:4] = True
    stamps[2] = True
    stamps[2, 2:4, 2:4] = False
    stamps[3, ::2] = True
    for image, label in zip(images, labels, strict=True):
        row, column = random.integers(0, 7, 2)
        window = image[row : row + 6, column : column + 6]
        window[stamps[label]] = COLORS[label] + random.normal(0, 40, 3)
    return LabelledImages(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int64))


class TinyCNN(nn.Module):
    """conv-relu-conv-relu-pool-gemm, each convolution followed by a BatchNorm that the exporter folds."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(2 * width * 36, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def train_tiny(folder: Path, *, rate: float = 0.1, seed: int = 0) -> Backdoored:
    """Train, export and write, in a few seconds, the same every time: clean accuracy and, unless the poison rate is 0, ASR are both above 0.9."""
    data = shapes(1600, seed=seed)
    images, labels = data.images, data.labels
    if rate:
        images, labels, _ = poison(images, labels, TRIGGER.build(3), target=1, rate=rate, seed=seed)
    torch.manual_seed(seed)
    config = TrainingConfig(epochs=6, batch=64, peak_learning_rate=0.05, crop=0, flip=False, seed=seed)
    network = train(TinyCNN(), images, labels, mean=(0.5,), std=(0.25,), config=config)
    paths = folder / "tiny.onnx", folder / "tiny.npz"
    torch.onnx.export(
        network, (torch.zeros(2, 3, 12, 12),), str(paths[0]), input_names=["images"], output_names=["logits"], opset_version=17, dynamo=False,
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    test = shapes(400, seed=seed + 1)
    np.savez(paths[1], images=test.images, labels=test.labels)
    return Backdoored(*paths, TRIGGER, InputSpec(size=(12, 12), mean=(0.5,), std=(0.25,)))
