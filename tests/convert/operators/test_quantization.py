"""Quantisation, on float tensors that hold integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import answered, check_gradients, expected, one_node, random
from onnx import TensorProto

from pipeline.convert.operators import implementation, load
from pipeline.errors import ConversionFailed

load()
KINDS = [np.uint8, np.int8, np.uint16, np.int16]


def check_whole(op: str, *inputs: np.ndarray | None, opset: int, outputs: int = 1, **attributes: object) -> list[np.ndarray]:
    """Assert that ours answers the very integers that onnxruntime does, in a float tensor."""
    model = one_node(op, inputs, opset=opset, outputs=outputs, **attributes)
    theirs, ours = expected(model, inputs), answered(model, inputs)
    for their, our in zip(theirs, ours, strict=True):
        assert their.shape == our.shape
        if np.issubdtype(their.dtype, np.integer):
            np.testing.assert_array_equal(our, their)
        else:
            np.testing.assert_allclose(our, their, rtol=1e-6)
    return ours


def scale(*values: float) -> np.ndarray:
    return np.array(values if len(values) != 1 else values[0], np.float32)


def whole(kind: type, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(kind)
    return np.random.default_rng([seed, *shape]).integers(limits.min, limits.max, shape, kind, endpoint=True)


# Between floats and integers


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 24, 25])
@pytest.mark.parametrize("kind", KINDS)
def test_quantize(opset: int, kind: type) -> None:
    if opset < 21 and kind not in (np.uint8, np.int8):
        opset = 21  # which first knows 16 bits
    x = np.array([*random(50) * 30, *np.arange(-5, 6) / 4, -1e6, 1e6], np.float32)  # with halves of the scale, and what is out of range
    (y,) = check_whole("QuantizeLinear", x, scale(0.5), np.array(3, kind), opset=opset)
    assert y.dtype == np.float32


@pytest.mark.parametrize("opset", [10, 21])
def test_quantize_without_zero_point(opset: int) -> None:
    check_whole("QuantizeLinear", random(9) * 30, scale(0.5), None, opset=opset)


@pytest.mark.parametrize("kind", ["UINT8", "INT8", "UINT16", "INT16"])
def test_quantize_to_an_attribute(kind: str) -> None:
    check_whole("QuantizeLinear", random(9) * 1e5, scale(0.5), opset=21, output_dtype=getattr(TensorProto, kind))


def test_precision() -> None:
    """Of the division, since opset 23; onnxruntime has no kernel for another than the scale's."""
    x, y = torch.tensor([0.3, 1.0, 2.5]), torch.tensor([1.0, 2.0, 5.0])
    assert implementation("QuantizeLinear", 23)(x, torch.tensor(0.5), precision=TensorProto.DOUBLE).dtype == torch.float64
    assert implementation("QuantizeLinear", 23)(x.half(), torch.tensor(0.5).half(), precision=TensorProto.FLOAT).tolist() == y.tolist()


@pytest.mark.parametrize("opset", [13, 19, 21, 25])
@pytest.mark.parametrize(("axis", "count"), [(0, 2), (1, 3), (-1, 4), (None, 3)])
def test_per_axis(opset: int, axis: int | None, count: int) -> None:
    given = {} if axis is None else {"axis": axis}
    scales, zeros = np.linspace(0.1, 0.9, count, dtype=np.float32), np.arange(count, dtype=np.uint8)
    check_whole("QuantizeLinear", random(2, 3, 4) * 30, scales, zeros, opset=opset, **given)
    check_whole("DequantizeLinear", whole(np.uint8, 2, 3, 4), scales, zeros, opset=opset, **given)


@pytest.mark.parametrize("opset", [21, 25])
@pytest.mark.parametrize(("axis", "shape", "block"), [(0, (2, 3), 2), (1, (4, 2), 2), (-1, (4, 1), 3)])
def test_blocked(opset: int, axis: int, shape: tuple, block: int) -> None:
    """The last block may be smaller: 2 of 3 columns, then one."""
    scales, zeros = np.abs(random(*shape)) + 0.1, whole(np.uint8, *shape)
    check_whole("QuantizeLinear", random(4, 3) * 30, scales, zeros, opset=opset, axis=axis, block_size=block)
    check_whole("DequantizeLinear", whole(np.uint8, 4, 3), scales, zeros, opset=opset, axis=axis, block_size=block)


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 25])
@pytest.mark.parametrize("kind", [*KINDS, np.int32])
def test_dequantize(opset: int, kind: type) -> None:
    if opset < 21 and kind in (np.uint16, np.int16):
        opset = 21
    zero = np.array(0 if kind == np.int32 else 3, kind)
    check_whole("DequantizeLinear", whole(kind, 9), scale(0.3), zero, opset=opset)
    check_whole("DequantizeLinear", whole(kind, 9), scale(0.3), None, opset=opset)
    check_gradients(one_node("DequantizeLinear", [whole(np.int8, 9), scale(0.3)], opset=opset), [whole(np.int8, 9), scale(0.3)])


def test_dequantize_to_another_type() -> None:
    x = torch.tensor([1, 2], dtype=torch.int8)
    assert implementation("DequantizeLinear", 23)(x, torch.tensor(0.5), output_dtype=TensorProto.DOUBLE).dtype == torch.float64


@pytest.mark.parametrize("x", [random(3, 4), np.abs(random(3, 4)), -np.abs(random(3, 4)), np.zeros((2, 2), np.float32), random(2, 3, 4) * 1e3], ids=range(5))
@pytest.mark.parametrize("opset", [11, 25])
def test_dynamic_quantize(x: np.ndarray, opset: int) -> None:
    check_whole("DynamicQuantizeLinear", x, opset=opset, outputs=3)


# Gradients


def test_the_pair_lets_gradients_through_within_its_range() -> None:
    x = torch.tensor([-70.0, -64.0, 0.1, 1.3, 63.5, 70.0], requires_grad=True)
    step, zero = torch.tensor(0.5), torch.tensor(0, dtype=torch.int8)
    whole = implementation("QuantizeLinear", 21)(x, step, zero)
    y = implementation("DequantizeLinear", 21)(whole, step, zero)
    assert y.tolist() == [-64, -64, 0, 1.5, 63.5, 63.5]
    (y * torch.arange(1.0, 7.0)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]


def test_the_gradient_of_the_scale_is_the_rounding() -> None:
    """d (q s) / ds = round(x / s) - x / s within the range (Esser et al., LSQ, ICLR 2020, eq. 3)."""
    x, step = torch.tensor([0.3, -1.4], dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    implementation("DequantizeLinear", 21)(implementation("QuantizeLinear", 21)(x, step, output_dtype=TensorProto.INT8), step).sum().backward()
    assert step.grad.item() == pytest.approx(-0.3 + 0.4)


def test_products_let_gradients_through() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.uint8)
    x = torch.rand(1, 2, 5, 5, dtype=torch.float64).mul(9).round().requires_grad_()
    w = torch.rand(3, 2, 3, 3, dtype=torch.float64).round().requires_grad_()
    implementation("QLinearConv", 10)(x, one, zero, w, one, zero, one * 10, zero).sum().backward()
    assert torch.allclose(x.grad, torch.nn.functional.conv_transpose2d(torch.full((1, 3, 3, 3), 0.1, dtype=torch.float64), w))
    assert w.grad.abs().sum() > 0
    a, b = (torch.rand(3, 3).mul(9).round().requires_grad_() for _ in range(2))
    implementation("QLinearMatMul", 10)(a, one, zero, b, one, zero, one * 10, zero).sum().backward()
    assert torch.allclose(a.grad, b.detach().sum(1).expand(3, 3) / 10)


def test_dynamic_quantize_lets_gradients_through() -> None:
    x = torch.tensor([-1.0, 0.3, 2.0], requires_grad=True)
    whole, step, zero = implementation("DynamicQuantizeLinear", 11)(x)
    (implementation("MatMulInteger", 10)(whole.reshape(1, 3), torch.eye(3, dtype=torch.int8), zero) * step)[0, 1].backward()
    assert x.grad[1].item() == pytest.approx(1, abs=1e-5)


# Products of integers

SIGNS = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]


def factor(a: type, b: type, *shape: int) -> np.ndarray:
    """What an `a` is multiplied with: of int8 seven bits by uint8, as onnxruntime adds two such products in 16 bits, cut off, where a processor has no VNNI."""
    return whole(b, *shape) // 2 if (a, b) == (np.uint8, np.int8) else whole(b, *shape)


@pytest.mark.parametrize(("a", "b"), SIGNS)
@pytest.mark.parametrize("zeros", ["none", "one", "each"])
def test_matmul_integer(a: type, b: type, zeros: str) -> None:
    given = {"none": (None, None), "one": (np.array(5, a), np.array(7, b)), "each": (np.array([5], a), np.arange(3, dtype=b))}[zeros]
    check_whole("MatMulInteger", whole(a, 2, 4, 9), factor(a, b, 9, 3), *given, opset=10)


@pytest.mark.parametrize("zero", [0, 7])
def test_all_eight_bits_of_int8_count(zero: int) -> None:
    """Where a processor has no VNNI, onnxruntime is no measure of it: the exact integers are."""
    a, b, point = whole(np.uint8, 2, 4, 9), whole(np.int8, 9, 3), np.array(zero, np.int8)
    (y,) = answered(one_node("MatMulInteger", [a, b, None, point], opset=10), [a, b, None, point])
    np.testing.assert_array_equal(y, a.astype(int) @ (b.astype(int) - zero))
    scales = scale(0.03), np.array(5, np.uint8), scale(0.02), point, scale(0.7), np.array(11, np.uint8)
    inputs = [a, *scales[:2], b, *scales[2:]]
    (y,) = answered(one_node("QLinearMatMul", inputs, opset=10), inputs)
    exact = (a.astype(int) - 5) @ (b.astype(int) - zero) * np.float64(np.float32(0.03)) * np.float64(np.float32(0.02)) / np.float64(np.float32(0.7))
    assert np.abs(y - np.clip(np.rint(exact) + 11, 0, 255)).max() <= 1, "but for a half that is rounded"


def test_matmul_integer_with_a_zero_point_for_each_row() -> None:
    """onnxruntime has no kernel for it."""
    a, b, rows = whole(np.uint8, 4, 9), whole(np.uint8, 9, 3), np.arange(4, dtype=np.uint8)
    (y,) = answered(one_node("MatMulInteger", [a, b, rows], opset=10), [a, b, rows])
    np.testing.assert_array_equal(y, (a.astype(int) - rows[:, None]) @ b.astype(int))


@pytest.mark.parametrize(("a", "b"), SIGNS)
@pytest.mark.parametrize("opset", [10, 21])
@pytest.mark.parametrize("each", [False, True])
def test_qlinear_matmul(a: type, b: type, opset: int, each: bool) -> None:
    b_scale, b_zero = (np.linspace(0.01, 0.03, 3, dtype=np.float32), np.arange(3, dtype=b)) if each else (scale(0.02), np.array(7, b))
    inputs = (whole(a, 2, 4, 9), scale(0.03), np.array(5, a), factor(a, b, 9, 3), b_scale, b_zero, scale(0.7), np.array(11, a))
    check_whole("QLinearMatMul", *inputs, opset=opset)


CONVOLUTIONS: list[tuple[tuple, tuple, dict]] = [
    ((1, 2, 7), (4, 2, 3), {}),
    ((2, 2, 7, 8), (4, 2, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ((1, 4, 7, 8), (4, 2, 3, 3), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 4, 7, 8), (4, 1, 3, 3), {"group": 4, "dilations": [2, 2], "kernel_shape": [3, 3]}),
]


@pytest.mark.parametrize(("shape", "weight", "attributes"), CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("zeros", [False, True])
def test_conv_integer(shape: tuple, weight: tuple, attributes: dict, zeros: bool) -> None:
    given = (np.array(100, np.uint8), np.array(7, np.uint8)) if zeros else ()
    check_whole("ConvInteger", whole(np.uint8, *shape), whole(np.uint8, *weight), *given, opset=10, **attributes)


def test_conv_integer_with_a_zero_point_for_each_channel() -> None:
    """Against numbers shifted beforehand: onnxruntime knows one zero point only."""
    x, w, zeros = whole(np.uint8, 1, 2, 5, 5), whole(np.uint8, 4, 2, 3, 3), np.arange(4, dtype=np.uint8)
    (y,) = answered(one_node("ConvInteger", [x, w, None, zeros], opset=10), [x, w, None, zeros])
    shifted = torch.from_numpy(w.astype(np.float64) - zeros[:, None, None, None])
    np.testing.assert_array_equal(y, torch.nn.functional.conv2d(torch.from_numpy(x).double(), shifted).numpy())


@pytest.mark.parametrize(("shape", "weight", "attributes"), CONVOLUTIONS, ids=str)
@pytest.mark.parametrize(("x", "w"), SIGNS)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_qlinear_conv(shape: tuple, weight: tuple, attributes: dict, x: type, w: type, each: bool, bias: bool) -> None:
    if each and w == np.uint8:
        w_scale, w_zero = np.linspace(0.01, 0.03, 4, dtype=np.float32), np.full(4, 7, w)
    elif each:
        w_scale, w_zero = np.linspace(0.01, 0.03, 4, dtype=np.float32), np.zeros(4, w)
    else:
        w_scale, w_zero = scale(0.02), np.array(7, w)
    given = (whole(x, *shape), scale(0.03), np.array(5, x), factor(x, w, *weight), w_scale, w_zero, scale(0.7), np.array(11, x))
    check_whole("QLinearConv", *given, *([whole(np.int16, 4).astype(np.int32)] if bias else []), opset=10, **attributes)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT8E4M3FN, TensorProto.INT4])
def test_quantize_refuses(kind: int) -> None:
    with pytest.raises(ConversionFailed, match="no converter"):
        implementation("QuantizeLinear", 21)(torch.ones(3), torch.tensor(1.0), output_dtype=kind)


def test_integers_of_the_cpu_meet_a_device() -> None:
    """The meta device stands for a GPU."""
    x, step, zero = torch.empty(1, 2, 5, 5, device="meta"), torch.tensor(0.5), torch.tensor(3, dtype=torch.int8)
    weights = torch.ones(3, 2, 3, 3, dtype=torch.int8)
    answers = [
        implementation("QuantizeLinear", 21)(x, step, zero),
        implementation("DequantizeLinear", 21)(x, step, zero),
        implementation("ConvInteger", 10)(x, weights, zero, zero),
        implementation("QLinearConv", 10)(x, step, zero, weights, step, zero, step, zero, torch.ones(3, dtype=torch.int32)),
        implementation("MatMulInteger", 10)(x, torch.ones(5, 4, dtype=torch.int8), zero, zero),
        implementation("QLinearMatMul", 10)(x, step, zero, torch.ones(5, 4, dtype=torch.int8), step, zero, step, zero),
    ]
    assert {answer.device.type for answer in answers} == {"meta"}
