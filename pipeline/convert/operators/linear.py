"""What multiplies by weights: Conv, ConvTranspose, Gemm, MatMul, Einsum, Det."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.convert.operators import operator
from pipeline.convert.operators.windows import of_rank, padded, place, split

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Gemm", since=1)
def gemm_to_6(a: Tensor, b: Tensor, c: Tensor, *, alpha: float = 1.0, beta: float = 1.0, broadcast: int = 0, transA: int = 0, transB: int = 0) -> Tensor:
    """As Gemm of 7, with the broadcasting of C announced."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@operator("Gemm", since=7)
def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0) -> Tensor:
    """alpha * A' @ B' + beta * C."""
    a = a.t() if transA else a
    if alpha == beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, b if transB else b.t(), c)
    y = alpha * (a @ (b.t() if transB else b))
    return y if c is None else y + beta * c


@operator("MatMul", since=1)
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """As numpy.matmul."""
    return torch.matmul(a, b)


@operator("Conv", since=1)
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),  # W says it too
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """x (N, C, D1, ...), w (M, C / group, k1, ...), b (M); 1 to 3 axes.

    Where the kernel is one pixel, those between two steps are left out first: oneDNN's gradient of such a kernel writes beyond its memory where there are few
    channels, last in memory (oneDNN issue 6035: a crash, or wrong numbers).
    """
    function = of_rank(CONVOLUTIONS, x)
    at = place(x.shape[2:], w.shape[2:], auto_pad=auto_pad, pads=pads, strides=strides, dilations=dilations)
    if max(at.kernel) == 1 < max(at.strides):
        return function(padded(x, at.begins, at.ends)[:, :, *(slice(None, None, step) for step in at.strides)], w, b, groups=group)
    if at.begins == at.ends:
        return function(x, w, b, at.strides, at.begins, at.dilations, group)
    return function(padded(x, at.begins, at.ends), w, b, at.strides, 0, at.dilations, group)


@operator("ConvTranspose", since=1)
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),  # W says it too
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """x (N, C, D1, ...), w (C, M / group, k1, ...), b (M); 1 to 3 axes.  `pads` are cut off what the windows reach."""
    function, rank = of_rank(TRANSPOSED, x), x.dim() - 2
    strides, dilations, extra = (list(given) or [default] * rank for given, default in ((strides, 1), (dilations, 1), (output_padding, 0)))
    rows = zip(x.shape[2:], w.shape[2:], strides, dilations, extra, strict=True)
    full = [(size - 1) * stride + (kernel - 1) * dilation + 1 + more for size, kernel, stride, dilation, more in rows]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = output_shape or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if output_shape:
        totals = [size - wanted for size, wanted in zip(full, output_shape[-rank:], strict=True)]
        begins, _ = split([max(total, 0) for total in totals], auto_pad)
        ends = [total - begin for total, begin in zip(totals, begins, strict=True)]
    else:
        begins, ends = list(pads[:rank]) or [0] * rank, list(pads[rank:]) or [0] * rank
    if begins == ends and all(more < max(stride, dilation) for more, stride, dilation in zip(extra, strides, dilations, strict=True)):
        return function(x, w, b, strides, begins, extra, group, dilations)
    y = padded(function(x, w, None, strides, 0, 0, group, dilations), [-begin for begin in begins], [more - end for more, end in zip(extra, ends, strict=True)])
    return y if b is None else y + b.view(-1, *[1] * rank)


@operator("Einsum", since=12)
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """As numpy.einsum."""
    return torch.einsum(equation, *operands)


@operator("Det", since=11)
def det(x: Tensor) -> Tensor:
    """The determinants of x (..., M, M)."""
    return torch.det(x)
