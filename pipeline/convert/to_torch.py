"""From a model file to its torch twin, by onnx2torch."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx2torch
import torch
from torch import fx

from pipeline.convert.bind import bind
from pipeline.convert.normalise import normalise
from pipeline.convert.write_back import weights_of
from pipeline.errors import ConversionFailed
from pipeline.findings import printable
from pipeline.images import InputSpec
from pipeline.results import Bound, ModelFacts
from pipeline.twin import TorchTwin


def convert(path: Path, reading: InputSpec, facts: ModelFacts, *, output: str | None = None, probabilities: bool = False) -> tuple[TorchTwin, onnx.ModelProto]:
    """Convert a model that was scanned; returns the twin on the CPU, and the normalised copy it was made from.

    probabilities: that the file's scores are probabilities, for a head that cannot be cut off.  Raises ConversionFailed.
    """
    copy, head = normalise(path, output=output)
    try:
        module = onnx2torch.convert(copy)
    except Exception as error:  # onnx2torch raises NotImplementedError, KeyError, RuntimeError and more on what it does not know
        raise ConversionFailed(f"onnx2torch cannot convert the graph: {type(error).__name__}: {_first_line(error)}") from error
    assert isinstance(module, fx.GraphModule)
    module.eval().requires_grad_(False)
    writable = weights_of(onnx.load_model_from_string(path.read_bytes())).keys()
    weights, unbound = bind(copy, module, writable)
    twin = TorchTwin(
        module=module,
        weights=weights,
        reading=reading,
        parameters=facts.parameters,
        unbound=tuple(unbound),
        head=head,
        input_shape=tuple(facts.input_shape),
        probabilities=probabilities,
        device=torch.device("cpu"),
    )
    return twin, copy


def bound(twin: TorchTwin) -> Bound:
    """How much of the model can be written back."""
    return Bound(parameters=sum(weight.value.numel() for weight in twin.weights.values()), of=twin.parameters, initializers=len(twin.weights))


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or ["no message"])[0])
