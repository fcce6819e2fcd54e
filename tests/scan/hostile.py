"""Files as an attacker would write them, and what goes with each."""

from __future__ import annotations

import numpy as np
import onnx
import tiny
from onnx import TensorProto, helper, numpy_helper

node = helper.make_node
KERNEL = tiny.values(4, 3, 3, 3)


def external(name: str, location: str, *, size: int = KERNEL.nbytes, dims: tuple[int, ...] = KERNEL.shape, **entries: str) -> TensorProto:
    """A float tensor whose numbers lie at `location`."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": str(size), **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_tensor(tensor: TensorProto) -> onnx.ModelProto:
    """A convolution whose kernel `W` is `tensor`."""
    nodes = [node("Conv", ["x", "W"], ["c"]), node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["y"])]
    model = tiny.model(nodes)
    model.graph.initializer.append(tensor)
    return model


def _branch(tensor: TensorProto | None = None) -> onnx.GraphProto:
    body = [node("Identity", ["x"], ["o"])]
    graph = helper.make_graph(body, "branch", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)])
    if tensor is not None:
        graph.initializer.append(tensor)
    return graph


def hidden(tensor: TensorProto, place: str) -> onnx.ModelProto:
    """A working classifier that holds one more tensor, in a place where nobody looks."""
    model = tiny.classifier()
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "Constant":
        model.graph.node.insert(0, node("Constant", [], ["unused"], value=tensor))
    elif place == "list of tensors":
        model.graph.node[0].attribute.append(helper.make_attribute("extra", [tensor]))
    elif place == "subgraph":
        model.graph.node.insert(0, node("If", ["which"], ["unused"], then_branch=_branch(tensor), else_branch=_branch()))
    elif place == "subgraph of a subgraph":
        inner = _branch()
        inner.node.insert(0, node("If", ["which"], ["deep"], then_branch=_branch(tensor), else_branch=_branch()))
        model.graph.node.insert(0, node("If", ["which"], ["unused"], then_branch=inner, else_branch=_branch()))
    elif place == "function":
        body = [node("Constant", [], ["k"], value=tensor), node("Identity", ["a"], ["o"])]
        model.functions.append(helper.make_function("local", "F", ["a"], ["o"], body, [helper.make_opsetid("", 17)]))
    elif place == "default of a function's attribute":
        function = helper.make_function("local", "F", ["a"], ["o"], [node("Identity", ["a"], ["o"])], [helper.make_opsetid("", 17)])
        function.attribute_proto.append(helper.make_attribute("value", tensor))
        model.functions.append(function)
    elif place == "graph that a function's attribute defaults to":
        function = helper.make_function("local", "F", ["a"], ["o"], [node("Identity", ["a"], ["o"])], [helper.make_opsetid("", 17)])
        function.attribute_proto.append(helper.make_attribute("body", _branch(tensor)))
        model.functions.append(function)
    elif place == "sparse initializer":
        indices = numpy_helper.from_array(np.arange(int(np.prod(tensor.dims)), dtype=np.int64), "indices")
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, indices=indices, dims=[10**4]))
    elif place == "training graph":
        model.training_info.add().algorithm.CopyFrom(_branch(tensor))
    else:
        raise ValueError(place)
    return model


PLACES = [
    "initializer", "Constant", "list of tensors", "subgraph", "subgraph of a subgraph", "function", "default of a function's attribute",
    "graph that a function's attribute defaults to", "sparse initializer", "training graph",
]  # fmt: skip


def functions(n: int, *, calls: int = 2, first: list[onnx.NodeProto] | None = None, overload: str = "") -> onnx.ModelProto:
    """A chain of `n` functions, each calling the one before `calls` times."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    made = [helper.make_function("local", "F0", ["a"], ["a0"], [node("Relu", ["a"], ["a0"])] if first is None else first, imports)]
    for level in range(1, n):
        names = ["a", *(f"a{row}" for row in range(calls))]
        body = [node(f"F{level - 1}", [names[row]], [names[row + 1]], domain="local") for row in range(calls)]
        made.append(helper.make_function("local", f"F{level}", ["a"], [names[-1]], body, imports))
    model = tiny.classifier()
    model.graph.node.insert(0, node(f"F{n - 1}", ["x"], ["unused"], domain="local"))
    model.functions.extend(made)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model
