"""What multiplies by weights."""

from __future__ import annotations

import pytest
import torch
from harness import check, random
from reference import check_by_reference

from pipeline.convert.operators.linear import conv, gemm_to_6
from pipeline.errors import ConversionFailed


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
@pytest.mark.parametrize("attributes", [{}, {"transA": 1}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0, "transB": 1}])
@pytest.mark.parametrize("bias", [(4,), (1, 4), (3, 1), ()], ids=str)
def test_gemm(opset: int, attributes: dict, bias: tuple) -> None:
    a = random(5, 3) if attributes.get("transA") else random(3, 5)
    b = random(4, 5) if attributes.get("transB") else random(5, 4)
    check("Gemm", a, b, random(*bias), opset=opset, **attributes)


@pytest.mark.parametrize("opset", [11, 13])
def test_gemm_needs_no_c(opset: int) -> None:
    check("Gemm", random(3, 5), random(5, 4), opset=opset)


def test_gemm_before_7() -> None:  # onnxruntime begins at 7
    a, b, c = (torch.from_numpy(random(*shape)) for shape in ((3, 5), (4, 5), (4,)))
    torch.testing.assert_close(gemm_to_6(a, b, c, beta=2.0, broadcast=1, transB=1), a @ b.T + 2 * c)


@pytest.mark.parametrize("opset", [7, 9, 13])
@pytest.mark.parametrize("shapes", [((3, 5), (5, 4)), ((2, 3, 5), (5, 4)), ((2, 1, 3, 5), (6, 5, 4)), ((5,), (5, 4)), ((3, 5), (5,))], ids=str)
def test_matmul(opset: int, shapes: tuple) -> None:
    check("MatMul", *(random(*shape) for shape in shapes), opset=opset)


PADDINGS = [{}, {"pads": "even"}, {"pads": "odd"}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"}]
SIZES = {1: (9,), 2: (7, 8), 3: (5, 4, 6)}


def padding(given: dict, rank: int) -> dict:
    """The attributes, pads written out: the same on all sides, or another for each."""
    return given | ({"pads": [1] * 2 * rank if given["pads"] == "even" else [0, 1, 2][:rank] + [2, 1, 0][:rank]} if "pads" in given else {})


@pytest.mark.parametrize("opset", [7, 22])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("given", PADDINGS, ids=str)
@pytest.mark.parametrize(("stride", "dilation", "group"), [(1, 1, 1), (3, 1, 2), (2, 2, 4)])
def test_conv(opset: int, rank: int, given: dict, stride: int, dilation: int, group: int) -> None:
    kernel = [3, 2, 3][:rank]
    attributes = padding(given, rank) | {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group, "kernel_shape": kernel}
    judge = check_by_reference if dilation > 1 and "SAME" in given.get("auto_pad", "") else check  # onnxruntime has no dilated SAME
    judge("Conv", random(2, 4, *SIZES[rank]), random(8, 4 // group, *kernel), random(8), opset=opset, smooth=opset == 22 and rank == 2, **attributes)


@pytest.mark.parametrize("given", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [[2, 2], [3, 1], [1, 2]], ids=str)
def test_conv_by_pixels_in_steps(given: dict, strides: list) -> None:
    attributes = padding(given, 2) | {"strides": strides, "kernel_shape": [1, 1], "group": 2}
    check("Conv", random(2, 4, *SIZES[2]), random(8, 2, 1, 1), random(8), opset=13, **attributes)


def test_conv_by_pixels_in_steps_of_few_channels_that_are_last_in_memory() -> None:  # oneDNN issue 6035: without care this crashes, or has wrong gradients
    x, w = torch.from_numpy(random(32, 4, 32, 32)).contiguous(memory_format=torch.channels_last), torch.from_numpy(random(8, 4, 1, 1)).requires_grad_()
    for _ in range(10):
        (found,) = torch.autograd.grad(conv(x, w, strides=[2, 2]).square().sum(), w)
    (exact,) = torch.autograd.grad(conv(x.double(), w.double(), strides=[2, 2]).square().sum(), w)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)


def test_conv_with_no_more_than_it_needs() -> None:
    check("Conv", random(2, 3, 6, 6), random(4, 3, 3, 3), opset=13)


def test_conv_over_four_axes_is_refused() -> None:
    with pytest.raises(ConversionFailed, match="over 4 axes"):
        check("Conv", random(1, 1, 2, 2, 2, 2), random(1, 1, 1, 1, 1, 1), opset=13)


@pytest.mark.parametrize("opset", [7, 22])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("given", PADDINGS, ids=str)
@pytest.mark.parametrize(("stride", "dilation", "group", "extra"), [(1, 1, 1, 0), (3, 1, 2, 2), (2, 2, 4, 1)])
def test_conv_transpose(opset: int, rank: int, given: dict, stride: int, dilation: int, group: int, extra: int) -> None:
    kernel = [3, 2, 3][:rank]
    attributes = padding(given, rank) | {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group, "output_padding": [extra] * rank}
    check("ConvTranspose", random(2, 4, *SIZES[rank]), random(4, 8 // group, *kernel), random(8), opset=opset, smooth=opset == 22 and rank == 2, **attributes)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("shape", [[13, 15], [14, 16], [10, 11]], ids=str)
@pytest.mark.parametrize("extra", [0, 1])
def test_conv_transpose_to_a_shape(auto_pad: str, shape: list, extra: int) -> None:
    attributes = {"auto_pad": auto_pad, "output_shape": shape, "output_padding": [extra, extra]}
    check("ConvTranspose", random(1, 2, 7, 8), random(2, 3, 3, 3), random(3), opset=11, strides=[2, 2], **attributes)


def test_conv_transpose_to_a_shape_beyond_its_windows() -> None:  # onnxruntime refuses it
    check_by_reference("ConvTranspose", random(1, 1, 3, 3), random(1, 2, 3, 3), opset=22, strides=[3, 2], output_shape=[10, 8])


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
        ("bhid, bhjd -> bhij", ((2, 2, 3, 4), (2, 2, 5, 4))),
        ("ij,jk", ((3, 4), (4, 5))),
        ("ba,ca", ((3, 4), (5, 4))),
        ("...ij,jk->...ik", ((2, 6, 3, 4), (4, 5))),
        ("ii->i", ((4, 4),)),
        ("ij->", ((3, 4),)),
        ("i,ij,j->", ((3,), (3, 4), (4,))),
    ],
)
@pytest.mark.parametrize("opset", [12, 22])
def test_einsum(equation: str, shapes: tuple, opset: int) -> None:
    check("Einsum", *(random(*shape, seed=row) for row, shape in enumerate(shapes)), opset=opset, equation=equation)


@pytest.mark.parametrize("opset", [11, 22])
@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 4, 4)], ids=str)
def test_det(opset: int, shape: tuple) -> None:
    check("Det", random(*shape), opset=opset)
