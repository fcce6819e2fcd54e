"""The differentiable copy of a submitted model: pictures in, scores out, its weights given from outside.

The twin never changes: who wants other weights hands them to the call, so that masked weights m * w are an expression and not a
state.  Weights go by the names of the submitted file's initializers and have their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.errors import DeviceUnavailable
from pipeline.images import InputSpec
from pipeline.results import Unbound


class Role(StrEnum):
    """What an initializer is to the model."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    BIAS = "bias"


@dataclass(frozen=True)
class Use:
    """Where the torch module holds an initializer: value = factor * initializer, transposed or not."""

    path: str
    transposed: bool = False
    factor: float = 1.0

    def apply(self, value: Tensor) -> Tensor:
        """The tensor that stands at `path`."""
        seen = value.t() if self.transposed else value
        return seen if self.factor == 1.0 else seen * self.factor


@dataclass(frozen=True)
class Weight:
    """An initializer that the twin can be given other values for.  uses: every place that reads it; all are exact."""

    value: Tensor
    role: Role
    operator: str
    uses: tuple[Use, ...]


@dataclass(frozen=True, eq=False)
class TorchTwin:
    """The submitted model in torch.

    module: takes what the model takes; in eval mode, without gradients of its own.  head: what stood after the logits in the
    submitted graph, and is left out here so that gradients do not die in it.
    """

    module: nn.Module
    weights: Mapping[str, Weight]
    reading: InputSpec
    parameters: int
    unbound: tuple[Unbound, ...] = ()
    head: str | None = None
    input_shape: tuple[int | None, ...] = ()
    probabilities: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def logits(self, pictures: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(N, C, H, W) float pictures in 0..1 -> (N, K) logits, differentiable in the pictures and in `weights`."""
        scores = self._run(pictures, weights)
        return scores.clamp_min(1e-12).log() if self.probabilities and self.head is None else scores

    def scores(self, pictures: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The same as the submitted model answers it: with its own head."""
        scores = self._run(pictures, weights)
        if self.head == "Softmax":
            return scores.softmax(-1)
        return scores.log_softmax(-1) if self.head == "LogSoftmax" else scores

    def tensor(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) pictures in 0..1 -> what the model takes; the same arithmetic as `InputSpec.tensor`."""
        a, b = (torch.from_numpy(values.copy()).to(pictures).view(1, -1, 1, 1) for values in self.reading.coefficients())
        x = pictures * a + b
        if self.reading.channels == "BGR":
            x = x.flip(1)
        if self.reading.layout == "NHWC":
            return x.permute(0, 2, 3, 1)
        if self.reading.layout == "flat":
            return x.reshape(len(x), *(axis or -1 for axis in self.input_shape[1:]))
        return x

    def to(self, device: torch.device) -> TorchTwin:
        """The same twin on another device; this one stays where it is."""
        if device == self.device:
            return self
        weights = {name: Weight(weight.value.to(device), weight.role, weight.operator, weight.uses) for name, weight in self.weights.items()}
        return TorchTwin(
            deepcopy(self.module).to(device), weights, self.reading, self.parameters, self.unbound, self.head, self.input_shape, self.probabilities, device
        )

    def _run(self, pictures: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
        x = self.tensor(pictures)
        if (fixed := self.input_shape[0] if self.input_shape else None) is None:
            return self._batch(x, weights)
        chunks = [torch.cat([chunk, chunk[-1:].expand(fixed - len(chunk), *chunk.shape[1:])]) for chunk in torch.split(x, fixed)]
        return torch.cat([self._batch(chunk, weights) for chunk in chunks])[: len(pictures)]

    def _batch(self, x: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
        given = {use.path: use.apply(value) for name, value in (weights or {}).items() for use in self.weights[name].uses}
        scores: Tensor = functional_call(self.module, given, (x,))
        return scores.reshape(len(x), -1)


def choose_device(wanted: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a torch device.  Raises DeviceUnavailable rather than fall back in silence."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceUnavailable("CUDA was asked for, and torch sees no CUDA device here: use --device cpu or auto")
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """`cpu`, or `cuda: ` and the name of the card."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
