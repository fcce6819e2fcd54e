"""Which tensor of the torch module holds which initializer of the file, and in which form.

The converter puts a weight into a module's parameter, perhaps transposed or scaled, or into a buffer that the traced graph
reads.  A binding is accepted only when the operator says what the form must be and the numbers agree to the last bit; what
is left is listed with its reason and left alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from torch import Tensor, fx

from pipeline.results import Unbound
from pipeline.twin import Role, Use, Weight

# operator -> input index -> role
ROLES: dict[str, dict[int, Role]] = {
    "Conv": {1: Role.CONVOLUTION, 2: Role.BIAS},
    "ConvTranspose": {1: Role.CONVOLUTION, 2: Role.BIAS},
    "Gemm": {0: Role.LINEAR, 1: Role.LINEAR, 2: Role.BIAS},
    "MatMul": {0: Role.LINEAR, 1: Role.LINEAR},
}
ABSORBED = {1: "weight", 2: "bias"}


def bind(copy: onnx.ModelProto, module: fx.GraphModule, writable: Collection[str]) -> tuple[dict[str, Weight], list[Unbound]]:
    """Bind the floating-point initializers of a normalised copy to the tensors of the module converted from it.

    writable: the names that the submitted graph itself holds numbers under.
    """
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    floats = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)}
    readers: dict[str, list[tuple[NodeProto, int]]] = {name: [] for name in floats}
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in readers:
                readers[name].append((node, index))
    calls = {str(node.target): node for node in module.graph.nodes if node.op == "call_module"}
    held: dict[str, Tensor] = dict(module.state_dict())
    weights: dict[str, Weight] = {}
    unbound: list[Unbound] = []
    for name, array in floats.items():
        if not readers[name] or array.size == 0:
            continue
        bound = _bind_one(array, readers[name], calls, held) if name in writable else "it comes from inside a function, or is no tensor of its own"
        if isinstance(bound, Weight):
            weights[name] = bound
        else:
            unbound.append(Unbound(name=name, why=bound))
    return weights, unbound


def _bind_one(array: NDArray[Any], readers: list[tuple[NodeProto, int]], calls: dict[str, fx.Node], held: dict[str, Tensor]) -> Weight | str:
    """The weight, or why it cannot be bound."""
    value = torch.from_numpy(np.ascontiguousarray(array).copy())
    roles: list[Role] = []
    uses: list[Use] = []
    for node, index in readers:
        role = ROLES.get(node.op_type, {}).get(index)
        if role is None:
            return f"it is input {index} of {node.op_type}, which is no weight of a convolution or a linear layer"
        use = _use(node, index, calls[node.name], held)
        if use is None:
            return f"the converter does not keep input {index} of {node.op_type} as a tensor of its own"
        if not torch.equal(use.apply(value), held[use.path]):
            return f"the converter changed the numbers on the way into {node.op_type}"
        roles.append(role)
        uses.append(use)
    if len(set(roles)) > 1:
        return f"it is shared between a {roles[0]} and a {next(role for role in roles if role != roles[0])}"
    return Weight(value, roles[0], readers[0][0].op_type, tuple(uses))


def _use(node: NodeProto, index: int, call: fx.Node, held: dict[str, Tensor]) -> Use | None:
    """Where the module of `node` holds its input `index`."""
    passed = [argument for argument in (*call.args, *call.kwargs.values()) if isinstance(argument, fx.Node)]
    given = sum(bool(name) for name in node.input)
    if len(passed) == given:  # nothing was absorbed: the weight is a buffer that the graph reads
        position = sum(bool(name) for name in node.input[:index])
        source = passed[position]
        return Use(str(source.target)) if source.op == "get_attr" else None
    path = next((path for path in (f"{node.name}.{ABSORBED.get(index)}", f"{node.name}.1.{ABSORBED.get(index)}") if path in held), None)
    if path is None:
        return None
    if node.op_type != "Gemm":
        return Use(path)
    if index == 1:
        return Use(path, transposed=not _attribute(node, "transB", 0), factor=float(_attribute(node, "alpha", 1.0)))
    return Use(path, factor=float(_attribute(node, "beta", 1.0)))


def _attribute(node: NodeProto, name: str, default: float) -> float:
    return next((onnx.helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), default)
