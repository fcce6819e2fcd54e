"""A copy of the graph in the form that the converter understands.  The submitted file itself is never changed here."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from pipeline.errors import ConversionFailed
from pipeline.findings import printable

HEADS = frozenset({"Softmax", "LogSoftmax"})


def normalise(path: Path, *, output: str | None = None) -> tuple[onnx.ModelProto, str | None]:
    """Return the copy, and the operator of the head that was cut off (None when there was none).

    Initializers keep their names; a Constant becomes an initializer with the name of its output; nodes are called n0, n1, …, so
    that no name of the file reaches generated code.  External data is taken in.  Only `output` (the first float output by
    default) is kept.
    Raises ConversionFailed.
    """
    try:
        model = ir.external_data.load_to_model(ir.load(path.absolute()))
        ir.passes.Sequential(
            common.RemoveInitializersFromInputsPass(),
            common.InlinePass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        )(model)
        _keep_output(model.graph, output)
        head = _cut_head(model.graph)
        ir.passes.Sequential(common.IdentityEliminationPass(), common.RemoveUnusedNodesPass(), common.TopologicalSortPass())(model)
        for row, node in enumerate(model.graph):
            node.name = f"n{row}"
        return ir.to_proto(model), head
    except Exception as error:  # onnx-ir raises many types on graphs it does not expect
        raise ConversionFailed(f"the graph could not be brought into the converter's form: {type(error).__name__}: {printable(error)}") from error


def _keep_output(graph: ir.Graph, output: str | None) -> None:
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
    kept = next((value for value in graph.outputs if (value.name == output if output else value.dtype in floats)), None)
    if kept is None:
        raise ValueError(f"there is no output {output!r}" if output else "there is no float output")
    graph.outputs[:] = [kept]


def _cut_head(graph: ir.Graph) -> str | None:
    """Make the logits the output, when a softmax over the classes is all that follows them."""
    (scores,) = graph.outputs
    node = scores.producer()
    if node is None or node.domain or node.op_type not in HEADS:
        return None
    logits = node.inputs[0]
    rank = len(scores.shape) if scores.shape is not None else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else None
    over_classes = axis == -1 or (rank == 2 and axis in (1, None))
    if logits is None or not over_classes or logits.is_graph_input():
        return None
    logits.type = logits.type or scores.type
    logits.shape = logits.shape or scores.shape
    graph.outputs[:] = [logits]
    return str(node.op_type)
