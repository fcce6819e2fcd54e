"""The differentiable copy of a submitted model: pictures in, scores out, its weights given from outside.

The twin never changes: who wants other weights hands them to the call, so that masked weights m * w are an expression and not a
state.  Weights go by the names of the submitted file's initializers and have their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from torch import Tensor, nn

from pipeline.errors import DeviceUnavailable
from pipeline.images import InputSpec
from pipeline.results import Unbound

BORNE = 0.1  # of the largest logit: by more, bfloat16 may not change an answer
CACHED = 2**17  # pixels a thread of a CPU, of pictures that are looked at together: what a layer says of more no longer lies near the processor


class Role(StrEnum):
    """What an initializer is to the model.  statistic: a running mean or variance; other: a table, a token, a position."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    BIAS = "bias"
    SCALE = "scale"
    STATISTIC = "statistic"
    OTHER = "other"


@dataclass(frozen=True)
class Weight:
    """An initializer that the twin can be given other values for: float32, in the shape it is stored in.

    operator: the first that computes with it.
    """

    value: Tensor
    role: Role
    operator: str


@dataclass(frozen=True, eq=False)
class TorchTwin:
    """The submitted model in torch.

    module: takes what the model takes, then a tensor for each of `weights`, in their order.  head: what stood after the logits
    in the submitted graph, and is left out here so that gradients do not die in it.  A model of one score is one of two classes:
    the score is that of class 1.  bfloat16: multiply in it, as `quick` asks.
    """

    module: nn.Module
    weights: Mapping[str, Weight]
    reading: InputSpec
    unbound: tuple[Unbound, ...] = ()
    head: str | None = None
    input_shape: tuple[int | None, ...] = ()
    probabilities: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bfloat16: bool = False

    @property
    def batch(self) -> int | None:
        """How many pictures the module takes at a time; None: any number."""
        return self.input_shape[0] if self.input_shape else None

    def logits(self, pictures: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(N, C, H, W) float pictures in 0..1 -> (N, K) logits, differentiable in the pictures and in `weights`."""
        scores = self._run(pictures, weights)
        if not self.probabilities or self.head is not None:
            return _pair(scores, torch.zeros_like(scores))
        return _pair(scores, 1 - scores).clamp_min(1e-12).log()

    def scores(self, pictures: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The same as the submitted model answers it: with its own head."""
        scores = self._run(pictures, weights)
        match self.head:
            case "Softmax":
                scores = scores.softmax(-1)
            case "LogSoftmax":
                scores = scores.log_softmax(-1)
            case "Sigmoid":
                scores = scores.sigmoid()
        return _pair(scores, 1 - scores if self.probabilities else torch.zeros_like(scores))

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
        weights = {name: replace(weight, value=weight.value.to(device)) for name, weight in self.weights.items()}
        module = deepcopy(self.module)
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.is_floating_point():  # integers are shapes and indices, and stay on the CPU
                    setattr(part, name, buffer.to(device))
        return replace(self, module=module, weights=weights, device=device)

    def having(self, weights: Mapping[str, Tensor]) -> TorchTwin:
        """The same twin, with other values for these of its weights."""
        return replace(self, weights={name: replace(weight, value=weights.get(name, weight.value)) for name, weight in self.weights.items()})

    def quick(self, pictures: Tensor) -> TorchTwin:
        """The same twin, multiplying in bfloat16 where this device is made for that and the model bears it; else this one.

        What a purifier does is judged on the file that is written, in float32.  pictures: (N, C, H, W) in 0..1 to try it on.
        """
        if not quick_at_bfloat16(self.device) or not len(pictures):
            return self
        other = replace(self, bfloat16=True)
        weights = {name: weight.value.detach().clone().requires_grad_() for name, weight in self.weights.items()}
        try:
            answers = other.logits(pictures[:8], weights)
            torch.autograd.grad(answers.sum(), list(weights.values()), allow_unused=True)
        except (RuntimeError, TypeError, NotImplementedError):  # an operator that does not mix the two
            return self
        with torch.no_grad():
            exact = self.logits(pictures[:8])
        return other if bool((answers - exact).abs().max() <= BORNE * exact.abs().max()) else self

    def _run(self, pictures: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
        if unknown := (weights or {}).keys() - self.weights.keys():
            raise KeyError(f"no weight is called {min(unknown)!r}")
        x = self.tensor(pictures)
        given = [(weights or {}).get(name, weight.value) for name, weight in self.weights.items()]
        if (fixed := self.batch) is None:
            return torch.cat([self._batch(some, given) for some in x.split(self._together(pictures))])
        chunks = [torch.cat([chunk, chunk[-1:].expand(fixed - len(chunk), *chunk.shape[1:])]) for chunk in torch.split(x, fixed)]
        return torch.cat([self._batch(chunk, given) for chunk in chunks])[: len(pictures)]

    def _together(self, pictures: Tensor) -> int:
        """How many of (N, C, H, W) pictures are best looked at together: on a CPU fewer, where nothing is kept for gradients."""
        if self.device.type != "cpu" or torch.is_grad_enabled():
            return max(1, len(pictures))
        return max(1, torch.get_num_threads() * CACHED // (pictures.shape[2] * pictures.shape[3]))

    def _batch(self, x: Tensor, given: list[Tensor]) -> Tensor:
        if not self.bfloat16:
            scores: Tensor = self.module(x, *given)
            return scores.reshape(len(x), -1)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            scores = self.module(x, *given)
            return scores.float().reshape(len(x), -1)


def quick_at_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies it itself: where it does not, float32 is quicker."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def _pair(scores: Tensor, other: Tensor) -> Tensor:
    """(N, 1) scores of class 1 -> (N, 2), with `other` for class 0; (N, K) stay as they are."""
    return torch.cat([other, scores], 1) if scores.shape[1] == 1 else scores


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
