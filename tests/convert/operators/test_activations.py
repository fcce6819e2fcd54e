"""Activations, softmaxes, Dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import check, random

from pipeline.convert.operators import implementation, load
from pipeline.convert.operators.activations import QuickElu, elu
from pipeline.errors import ConversionFailed

load()
CASES: list[tuple[str, int, dict]] = [
    ("Relu", 7, {}),
    ("LeakyRelu", 7, {}),
    ("LeakyRelu", 7, {"alpha": 0.3}),
    ("Elu", 7, {}),
    ("Elu", 7, {"alpha": 1.7}),
    ("Selu", 7, {}),
    ("Selu", 7, {"alpha": 2.0, "gamma": 0.5}),
    ("Celu", 12, {}),
    ("Celu", 12, {"alpha": 1.7}),
    ("ThresholdedRelu", 10, {}),
    ("ThresholdedRelu", 10, {"alpha": 0.3}),
    ("Sigmoid", 7, {}),
    ("HardSigmoid", 7, {}),
    ("HardSigmoid", 7, {"alpha": 1 / 6, "beta": 0.4}),
    ("HardSwish", 14, {}),
    ("Tanh", 7, {}),
    ("Softplus", 7, {}),
    ("Softsign", 7, {}),
    ("Mish", 18, {}),
    ("Gelu", 20, {}),
    ("Gelu", 20, {"approximate": "tanh"}),
    ("Shrink", 9, {}),
    ("Shrink", 9, {"bias": 0.4, "lambd": 0.8}),
]


@pytest.mark.parametrize(
    ("op", "opset", "attributes"), [(op, opset, attributes) for op, since, attributes in CASES for opset in (7, 10, 13, 16, 22, 25) if opset >= since], ids=str
)
def test_activation(op: str, opset: int, attributes: dict) -> None:
    check(op, random(3, 4) * 3, opset=opset, **attributes)


def test_activations_saturate() -> None:
    x = np.array([-1000, -30, -1e-6, 0, 1e-6, 30, 1000], np.float32)
    for op in ("Softplus", "Sigmoid", "Mish", "Tanh", "Elu", "HardSwish", "LogSoftmax"):
        check(op, x, opset=22, smooth=False)  # some have corners among these


@pytest.mark.parametrize("attributes", [{}, {"alpha": 1.7}], ids=str)
def test_swish(attributes: dict) -> None:
    check("Swish", random(3, 4), opset=24, **attributes)  # the only opset for which onnxruntime has it


@pytest.mark.parametrize("opset", [7, 9, 16, 25])
@pytest.mark.parametrize("slope", [(), (1,), (3, 1, 1), (1, 3, 1, 1), (5,), (4, 1), (3, 4, 5), (2, 3, 4, 5)], ids=str)
def test_prelu(opset: int, slope: tuple) -> None:
    check("PRelu", random(2, 3, 4, 5), np.asarray(random(*slope)), opset=opset)


@pytest.mark.parametrize(("x", "slope"), [((3,), (3,)), ((2, 3), (3,)), ((2, 3), (1, 3)), ((3, 3), (3, 1))], ids=str)
def test_prelu_of_lower_rank(x: tuple, slope: tuple) -> None:
    check("PRelu", random(*x), random(*slope), opset=16)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [7, 11, 12, 13, 25])
@pytest.mark.parametrize("attributes", [{}, {"axis": 0}, {"axis": 1}, {"axis": 2}, {"axis": -1}, {"axis": -2}], ids=str)
def test_over_an_axis(op: str, opset: int, attributes: dict) -> None:
    if opset < 11 and attributes.get("axis", 0) < 0:
        opset = 11  # which first allows them
    check(op, random(2, 3, 4), opset=opset, smooth=op != "Hardmax", **attributes)


def test_hardmax_takes_the_first() -> None:
    check("Hardmax", np.array([[1, 3, 3], [2, 2, 2]], np.float32), opset=13, smooth=False)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12, 13, 22, 25])
def test_dropout(opset: int, outputs: int) -> None:
    check("Dropout", random(3, 4), opset=opset, outputs=outputs, smooth=False, **({"ratio": 0.3} if opset < 12 else {"seed": 3}))
    if opset >= 12:
        check("Dropout", random(3, 4), np.array(0.3, np.float32), np.array(False), opset=opset, outputs=outputs, smooth=False)


def test_dropout_lets_gradients_through() -> None:
    x = torch.ones(3, requires_grad=True)
    implementation("Dropout", 13)(x, outputs=1).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_dropout_refuses_to_train() -> None:
    dropout = implementation("Dropout", 13)
    with pytest.raises(ConversionFailed, match="training mode"):
        dropout(torch.ones(3), torch.tensor(0.5), torch.tensor(True), outputs=1)
    assert dropout(torch.ones(3), torch.tensor(0.0), torch.tensor(True), outputs=1).tolist() == [1, 1, 1]


def test_the_quick_elu_is_the_elu() -> None:
    """To one rounding of a number near 1, with first and second derivatives."""
    x = torch.randn(50, dtype=torch.double, requires_grad=True)
    assert torch.allclose(elu(x), torch.nn.functional.elu(x), rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(QuickElu.apply, (x,)) and torch.autograd.gradgradcheck(QuickElu.apply, (x,))
