"""A submitted graph with its gates looked at, held to a side, or cut out.

A gate is a value of the main graph, known by name; see pipeline/scan/bypass.py.  All of these are copies, and weights are never
touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

Constant = NDArray[np.generic]


def exposed(model: ModelProto, values: Iterable[str]) -> ModelProto:
    """With these values among its outputs."""
    copy = _copy(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in values if name not in known)
    return copy


def held(model: ModelProto, constants: Mapping[str, Constant]) -> ModelProto:
    """With these values at a constant for every picture, in the shape that they have: the gates still run, and no longer decide anything."""
    copy = _copy(model)
    taken = _names(copy)
    for name, constant in constants.items():
        after, free = _freed(copy, name, taken)
        limit = _fresh(taken, f"{name}_held")
        copy.graph.initializer.append(numpy_helper.from_array(constant, limit))
        for step in reversed(_hold(free, limit, name, constant, _fresh(taken, f"{name}_low"))):
            copy.graph.node.insert(after, step)
    return copy


def cut(model: ModelProto, constants: Mapping[str, Constant]) -> tuple[ModelProto, int]:
    """With these values as constants in the file, and without the nodes and initializers that only they needed; and how many nodes those are.

    constants: with as many axes as the values have, of length 1.  The other nodes stay as they are, in their order.
    """
    copy = _copy(model)
    taken = _names(copy)
    for name, constant in constants.items():
        _freed(copy, name, taken)
        copy.graph.initializer.append(numpy_helper.from_array(constant, name))
    needed, kept = {output.name for output in copy.graph.output}, list[NodeProto]()
    for node in reversed(copy.graph.node):
        if needed & set(filter(None, node.output)):
            kept.append(node)
            needed |= set(_read(node))
    gone = len(copy.graph.node) - len(kept)
    initializers = [tensor for tensor in copy.graph.initializer if tensor.name in needed]
    unused = {tensor.name for tensor in copy.graph.initializer} - needed
    inputs = [value for value in copy.graph.input if value.name not in unused]
    for field, left in ((copy.graph.node, kept[::-1]), (copy.graph.initializer, initializers), (copy.graph.input, inputs)):
        del field[:]
        field.extend(left)
    return copy, gone


def _hold(free: str, limit: str, name: str, constant: Constant, low: str) -> list[NodeProto]:
    """Nodes that make `name`, as large as `free` and equal to `limit`."""
    if constant.dtype == np.bool_:
        return [helper.make_node("Or" if constant else "And", [free, limit], [name])]
    return [helper.make_node("Max", [free, limit], [low]), helper.make_node("Min", [low, limit], [name])]


def _freed(model: ModelProto, name: str, taken: set[str]) -> tuple[int, str]:
    """Call what makes a value's content by another name: the place behind the node that does, and that name.  Raises KeyError."""
    for row, node in enumerate(model.graph.node):
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = free = _fresh(taken, f"{name}_free")
                return row + 1, free
    raise KeyError(f"no node of the main graph makes {name!r}")


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _read(node: NodeProto) -> Iterable[str]:
    """The names that a node reads, its subgraphs included; more than it reads from outside, since inner names are among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from _read_in(graph)


def _read_in(graph: GraphProto) -> Iterable[str]:
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from _read(node)


def _names(model: ModelProto) -> set[str]:
    """Every name of the main graph and what is nested in it."""
    graph = model.graph
    own = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    return own | {name for node in graph.node for name in (*node.output, *_read(node))}


def _fresh(taken: set[str], name: str) -> str:
    """A name that nothing has."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
