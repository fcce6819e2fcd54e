"""Whether the torch twin and onnxruntime agree, and where they part when they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx, nn

from pipeline.errors import ConversionFailed
from pipeline.findings import printable
from pipeline.results import PARITY, Divergence, Parity, Rate
from pipeline.twin import TorchTwin

Run = Callable[[bytes, NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""Runs a model's bytes on a tensor, and gives every output by name."""


def relative_difference(reference: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """(N, ...) against (N, ...): a row's largest |difference| over its largest |reference|, (N).  Not finite counts as infinite."""
    flat = np.asarray(reference, np.float64).reshape(len(reference), -1), np.asarray(other, np.float64).reshape(len(other), -1)
    scale = np.maximum(np.abs(flat[0]).max(1), 1e-6)
    with np.errstate(invalid="ignore"):
        difference = np.abs(flat[0] - flat[1]).max(1) / scale
    return np.where(np.isfinite(difference), difference, np.inf)


def compare(twin: TorchTwin, scores: NDArray[np.float32], pictures: NDArray[np.float32]) -> Parity:
    """Compare the twin with onnxruntime's (N, K) `scores` of the same (N, H, W, C) pictures.

    Raises ConversionFailed when the twin does not run.
    """
    try:
        with torch.no_grad():
            answered = twin.scores(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).to(twin.device)).float().cpu().numpy()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # a graph that was converted for other shapes or types
        raise ConversionFailed(f"the torch copy does not run on {len(pictures)} pictures: {type(error).__name__}: {printable(error)}") from error
    if answered.shape != scores.shape:
        return Parity(max_relative_difference=float("inf"), label_agreement=Rate.of(0, len(scores)))
    agreed = int((answered.argmax(1) == scores.argmax(1)).sum())
    return Parity(max_relative_difference=float(relative_difference(scores, answered).max()), label_agreement=Rate.of(agreed, len(scores)))


def first_divergence(copy: onnx.ModelProto, module: nn.Module, x: NDArray[np.float32], run: Run) -> Divergence | None:
    """The first node of the normalised copy, in order, whose output differs by more than the tolerance on the tensor `x`."""
    probed = onnx.ModelProto()
    probed.CopyFrom(copy)
    del probed.graph.output[:]
    nodes = [node for node in copy.graph.node if len([name for name in node.output if name]) == 1]
    probed.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
    expected = run(probed.SerializeToString(), x)
    seen: dict[str, NDArray[Any]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            answer = super().run_node(n)
            if n.op == "call_module" and isinstance(answer, torch.Tensor):
                seen[str(n.target)] = answer.detach().cpu().numpy()
            return answer

    with torch.no_grad():
        Recorder(module).run(torch.from_numpy(x))
    for node in nodes:
        theirs, ours = expected.get(node.output[0]), seen.get(node.name)
        if theirs is None or ours is None or theirs.size == 0 or not np.issubdtype(theirs.dtype, np.floating):
            continue
        if theirs.shape != ours.shape:
            return Divergence(node=node.output[0], operator=node.op_type, onnxruntime=float(theirs.flat[0]), torch=float(ours.flat[0]) if ours.size else np.nan)
        gap = np.abs(theirs.astype(np.float64) - ours.astype(np.float64))
        worst = int(np.nan_to_num(gap, nan=np.inf).argmax())
        if not gap.flat[worst] <= PARITY * max(float(np.abs(theirs).max()), 1e-6):
            return Divergence(node=node.output[0], operator=node.op_type, onnxruntime=float(theirs.flat[worst]), torch=float(ours.flat[worst]))
    return None
