"""Activations, softmaxes, and Dropout, which does nothing here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.convert.operators import axis_of, operator, together
from pipeline.errors import ConversionFailed

# Activations


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """x, times alpha where it is negative."""
    return F.leaky_relu(x, alpha)


@operator("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x, times the slope where it is negative; the slope broadcasts to x."""
    x, slope = together(x, slope)
    per_channel = x.dim() > 1 and slope.dim() >= x.dim() - 1 and slope.shape[1 - x.dim()] == slope.numel() == x.shape[1]
    if x.is_floating_point() and (per_channel or slope.numel() == 1):
        return F.prelu(x, slope.flatten())  # many times quicker than the general form
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x, or alpha (exp(x) - 1) where it is negative."""
    if alpha == 1 and x.device.type == "cpu" and x.is_floating_point():
        y: Tensor = QuickElu.apply(x)
        return y
    return F.elu(x, alpha)


class QuickElu(torch.autograd.Function):
    """ELU of alpha 1 on a processor, with exp(x) - 1 for expm1(x): absolute errors of one rounding, several times quicker.

    torch's own takes 12 ns a number on some processors, where exp takes half of one; it was most of a step of a small network.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """max(x, exp(min(x, 0)) - 1): below 0 exp(x) - 1 is the larger one, but for rounding."""
        y = x.clamp(max=0).exp_().sub_(1)
        torch.maximum(x, y, out=y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        """The slope is 1 above 0 and y + 1 below."""
        slopes: Tensor = torch.ops.aten.elu_backward(gradient, 1.0, 1.0, 1.0, True, ctx.saved_tensors[0])  # type: ignore[attr-defined]
        return slopes


@operator("Selu", since=6)
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """gamma times x, or gamma alpha (exp(x) - 1) where it is negative."""
    return gamma * F.elu(x, alpha)


@operator("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x, or alpha (exp(x / alpha) - 1) where it is negative."""
    return F.celu(x, alpha)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x where it is over alpha, else 0."""
    return F.threshold(x, alpha, 0.0)


@operator("Sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha x + beta, within 0..1."""
    return (alpha * x + beta).clamp(0, 1)


@operator("HardSwish", since=14)
def hard_swish(x: Tensor) -> Tensor:
    """x times x / 6 + 1 / 2 within 0..1."""
    return F.hardswish(x)


@operator("Tanh")
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return torch.tanh(x)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return F.softplus(x)


@operator("Softsign")
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return F.softsign(x)


@operator("Mish", since=18)
def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x))."""
    return F.mish(x)


@operator("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x times the normal distribution function, or its approximation by "tanh"."""
    return F.gelu(x, approximate=approximate)


@operator("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x sigmoid(alpha x)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """0 within -lambd..lambd; outside x, by bias nearer to 0."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0)).to(x.dtype)


# Over an axis


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)  # argmax answers the first of equals, as is wanted


def _over_axis(function: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, *, axis: int = -1) -> Tensor:
        return function(x, axis)

    return apply


def _over_rest(function: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, *, axis: int = 1) -> Tensor:
        return function(x.flatten(axis_of(axis, x.dim())), -1).reshape(x.shape)

    return apply


MAXES: dict[str, Callable[[Tensor, int], Tensor]] = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax, "Hardmax": _hardmax}
for name, function in MAXES.items():
    operator(name, since=1)(_over_rest(function))  # over this axis and all behind it
    operator(name, since=13)(_over_axis(function))


# Dropout


@operator("Dropout", since=7)
def dropout_to_11(x: Tensor, *, ratio: float = 0.5, outputs: int, opset: int) -> Tensor | tuple[Tensor, Tensor]:
    """x; the mask, of which the specification says nothing, is onnxruntime's: all zeros, of x's type before opset 10."""
    return x if outputs == 1 else (x, torch.zeros_like(x, dtype=torch.bool if opset >= 10 else x.dtype))


@operator("Dropout", since=12)
def dropout(x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None, *, seed: int = 0, outputs: int) -> Tensor | tuple[Tensor, Tensor]:
    """x, and a mask that lets everything through.  Raises ConversionFailed in training mode, unless the ratio is 0."""
    if training_mode is not None and training_mode.item() and (ratio is None or ratio.item() > 0):
        raise ConversionFailed("a Dropout in training mode answers at random, which has no converter")
    return x if outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
