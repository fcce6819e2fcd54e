"""Layers and their channels, found in graphs of the usual forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch

from pipeline.convert.to_torch import convert
from pipeline.purify.network import layers, scores, watch
from pipeline.scan import scan
from pipeline.twin import TorchTwin

node = tiny.helper.make_node
V = tiny.values
TAIL = [node("GlobalAveragePool", ["r"], ["g"]), node("Flatten", ["g"], ["f"]), node("Gemm", ["f", "F", "fb"], ["y"], transB=1)]
HEAD = {"F": V(4, 6), "fb": V(4)}
BN = {"s": np.abs(V(6)), "sb": V(6, seed=1), "m": V(6, seed=2), "v": np.abs(V(6, seed=3)) + 1}
CONV = node("Conv", ["x", "W", "b"], ["c"], pads=[1, 1, 1, 1])
CONVOLUTION = {"W": V(6, 3, 3, 3), "b": V(6, seed=4)}
WITH_NORM = [CONV, node("BatchNormalization", ["c", "s", "sb", "m", "v"], ["n"]), node("Relu", ["n"], ["r"]), *TAIL]
RESIDUAL = [CONV, node("Conv", ["c", "W2", "b2"], ["d"], pads=[1, 1, 1, 1]), node("Add", ["c", "d"], ["a"]), node("Relu", ["a"], ["r"]), *TAIL]
SWISH = [CONV, node("Sigmoid", ["c"], ["g0"]), node("Mul", ["c", "g0"], ["r"]), *TAIL]
MLP = [
    node("Flatten", ["x"], ["f0"]),
    node("MatMul", ["f0", "M"], ["h"]),
    node("Add", ["h", "mb"], ["hb"]),
    node("Relu", ["hb"], ["f"]),
    node("Gemm", ["f", "F", "fb"], ["y"], transB=1),
]


def twin_of(nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], folder: Path) -> TorchTwin:
    path = tiny.save(tiny.model(nodes, weights), folder)
    return convert(path, tiny.READING, scan(path).model)[0]


@pytest.mark.parametrize(
    ("nodes", "weights", "kernel", "own", "seen"),
    [
        (WITH_NORM, CONVOLUTION | BN | HEAD, "W", ("b", "s", "sb"), "GlobalAveragePool"),
        (RESIDUAL, CONVOLUTION | {"W2": V(6, 6, 3, 3), "b2": V(6, seed=5)} | HEAD, "W2", ("b2",), "GlobalAveragePool"),
        (SWISH, CONVOLUTION | HEAD, "W", ("b",), "Sigmoid"),
        (MLP, {"M": V(192, 6), "mb": V(6)} | HEAD, "M", ("mb",), "Relu"),
    ],
    ids=["BatchNorm", "residual", "Swish", "MLP"],
)
def test_the_last_layer(nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], kernel: str, own: tuple[str, ...], seen: str, folder: Path) -> None:
    twin = twin_of(nodes, weights, folder)
    layer = layers(twin)[-1]
    assert (layer.kernel, layer.own, layer.channels) == (kernel, own, 6)
    assert twin.module.get_submodule(layer.seen).name == seen


def test_what_makes_the_scores_is_no_layer(folder: Path) -> None:
    """To prune a channel of it is to delete a class: SqueezeNet ends with a convolution."""
    nodes = [CONV, node("Relu", ["c"], ["r"]), node("Conv", ["r", "W2"], ["d"]), node("GlobalAveragePool", ["d"], ["p"]), node("Flatten", ["p"], ["y"])]
    twin = twin_of(nodes, CONVOLUTION | {"W2": V(4, 6, 1, 1)}, folder)
    layer = scores(twin)
    assert [layer.kernel for layer in layers(twin)] == ["W"]
    assert layer is not None and (layer.kernel, layer.channels) == ("W2", 4)


def test_two_layers_that_make_the_scores_are_none(folder: Path) -> None:
    heads = [node("Gemm", ["f", kernel, "fb"], [answer], transB=1) for kernel, answer in (("F", "y0"), ("F2", "y1"))]
    nodes = [*WITH_NORM[:-1], *heads, node("Add", ["y0", "y1"], ["y"])]
    assert scores(twin_of(nodes, CONVOLUTION | BN | HEAD | {"F2": V(4, 6, seed=9)}, folder)) is None


def test_a_kernel_that_is_used_twice_is_no_layer(folder: Path) -> None:
    nodes = [CONV, node("Conv", ["c", "W2"], ["d"]), node("Relu", ["d"], ["e"]), node("Conv", ["e", "W2"], ["r0"]), node("Relu", ["r0"], ["r"]), *TAIL]
    assert [layer.kernel for layer in layers(twin_of(nodes, CONVOLUTION | {"W2": V(6, 6, 1, 1)} | HEAD, folder))] == ["W"]


@pytest.mark.parametrize(("nodes", "weights"), [(WITH_NORM, CONVOLUTION | BN | HEAD), (MLP, {"M": V(192, 6), "mb": V(6)} | HEAD)], ids=["BatchNorm", "MLP"])
def test_a_channel_without_its_numbers_is_zero(nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], folder: Path) -> None:
    twin = twin_of(nodes, weights, folder)
    layer = layers(twin)[-1]
    pictures = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    masked = {name: mask * twin.weights[name].value for name, mask in layer.mask(twin, torch.tensor([1, 4])).items()}
    before = layer.per_channel(watch(twin, pictures, None, [layer.seen])[1][layer.seen])
    after = layer.per_channel(watch(twin, pictures, masked, [layer.seen])[1][layer.seen])
    kept = [0, 2, 3, 5]
    assert after.shape[:2] == (5, 6) and not after[:, [1, 4]].any()
    assert torch.equal(after[:, kept], before[:, kept]) and before[:, kept].any()


def test_watching_leaves_no_hook_behind(folder: Path) -> None:
    twin = twin_of(RESIDUAL, CONVOLUTION | {"W2": V(6, 6, 3, 3), "b2": V(6)} | HEAD, folder)
    layer = layers(twin)[0]
    with pytest.raises(ValueError, match="zip"):  # whatever the operator says to a kernel of one axis
        watch(twin, torch.rand(2, 1, 8, 8), {"W": torch.zeros(2)}, [layer.seen])
    assert not any(part._forward_hooks for part in twin.module.modules())


def test_a_fixed_batch_is_put_together_again(folder: Path) -> None:
    path = tiny.save(tiny.classifier(shape=(4, 3, 8, 8)), folder)
    fixed, pictures = convert(path, tiny.READING, scan(path).model)[0], torch.rand(6, 3, 8, 8)
    layer = layers(fixed)[0]
    logits, answers = watch(fixed, pictures, None, [layer.seen])
    one_by_one = torch.cat([watch(fixed, picture[None], None, [layer.seen])[1][layer.seen] for picture in pictures])
    assert len(logits) == len(answers[layer.seen]) == 6
    torch.testing.assert_close(answers[layer.seen], one_by_one)
