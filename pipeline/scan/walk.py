"""Everything inside a model, wherever it hides: subgraphs, functions, attributes, sparse tensors, training graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

Body = GraphProto | FunctionProto


def bodies(model: ModelProto) -> Iterator[Body]:
    """Every graph and function body: the main graph first, then what is nested in it, functions, training graphs."""
    pending: list[Body] = [model.graph, *model.functions]
    for training in model.training_info:
        pending += [training.initialization, training.algorithm]
    while pending:
        body = pending.pop(0)
        yield body
        for node in body.node:
            pending += subgraphs(node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes: bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of every body."""
    for body in bodies(model):
        yield from body.node


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that holds data."""
    for body in bodies(model):
        if isinstance(body, GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        else:
            yield from _attribute_tensors(body.attribute_proto)
        for node in body.node:
            yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in ([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []) + list(attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
