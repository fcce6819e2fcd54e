"""Everything inside a model, wherever it hides: subgraphs, functions, attributes, sparse tensors, training graphs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

Body = GraphProto | FunctionProto


def bodies(model: ModelProto) -> Iterator[Body]:
    """Every graph and function body: the main graph first, then what is nested in it, functions, training graphs."""
    pending: deque[Body] = deque([model.graph, *model.functions])
    for training in model.training_info:
        pending += [training.initialization, training.algorithm]
    while pending:
        body = pending.popleft()
        yield body
        pending += nested(body)


def nested(body: Body) -> Iterator[GraphProto]:
    """The graphs right inside a body: bodies of If, Loop and Scan, and those that a function's attributes default to."""
    for attribute in _attributes(body):
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
        for attribute in _attributes(body):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for sparse in sparse_tensors(model):
        yield from (sparse.values, sparse.indices)


def sparse_tensors(model: ModelProto) -> Iterator[SparseTensorProto]:
    """Every sparse tensor; `dims` of one are those of the dense tensor that it stands for."""
    for body in bodies(model):
        if isinstance(body, GraphProto):
            yield from body.sparse_initializer
        for attribute in _attributes(body):
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor
            yield from attribute.sparse_tensors


def texts(message: Message) -> Iterator[tuple[str, str | bytes]]:
    """Every string of a message, all that is in it included, with its field's name.  Bytes are what is not UTF-8."""
    for field, value in message.ListFields():
        values: Iterable[object] = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from ((field.name, text) for text in values)  # type: ignore[misc]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in values:
                yield from texts(inner)


def _attributes(body: Body) -> Iterator[AttributeProto]:
    if isinstance(body, FunctionProto):
        yield from body.attribute_proto
    for node in body.node:
        yield from node.attribute
