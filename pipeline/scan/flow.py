"""A model as numbered places, one for each value in it, and edges between them, so that something can be followed from one to the next.

Subgraphs see the names around them; a function is entered once, its inputs being what all of its calls give it.  So the work grows with
the size of the file, and not with what it expands to.
"""

from __future__ import annotations

from collections import ChainMap, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import TypeVar

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from pipeline.scan.interface import real_inputs
from pipeline.scan.walk import Body

V = TypeVar("V")


class Reach(IntEnum):
    """What of a value depends on the numbers in the image: nothing; its numbers; its shape too."""

    NOTHING = 0
    NUMBERS = 1
    SHAPE = 2


Names = ChainMap[str, int]
ABSENT = 0  # the place of inputs that are left out

# operator -> the inputs whose numbers fix the shape of what it answers
SHAPED_BY: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "Compress": (1,), "ConstantOfShape": (0,), "DFT": (1,),
    "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "MaxUnpool": (2,), "MelWeightMatrix": (0, 1), "NonMaxSuppression": (0, 1, 2, 3, 4),
    "NonZero": (0,), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3), "SequenceAt": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,), "Tile": (1, 2), "TopK": (1,), "Unique": (0,), "Unsqueeze": (1,),
    "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}  # fmt: skip


@dataclass(frozen=True)
class Edge:
    """What is in the sources gets into the targets.

    node: the operator that they go through; None where values are only handed on, into a body and out of it.  steering: how many of
    the sources, the first ones, decide which of the others comes through, or how often.
    """

    node: NodeProto | None
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    steering: int = 0


@dataclass(frozen=True)
class Steered:
    """A node of control flow, the places whose numbers steer it, and those whose shapes do."""

    node: NodeProto
    numbers: list[int]
    shapes: list[int]


@dataclass(frozen=True)
class _Inside:
    """The values that go into a body and come out of it."""

    given: list[int]
    answered: list[int]


class Flow:
    """Every value of a model, and the edges between them.

    pixels, scores: the places of the model's input and of its outputs.  stored: the tensors in initializers and Constant nodes, by place.
    names: what the values of the main graph are called, by place.
    """

    def __init__(self, model: ModelProto) -> None:
        self.count = 1
        self.edges: list[Edge] = []
        self.leaving: list[list[Edge]] = [[]]
        self.steered: list[Steered] = []
        self.stored: dict[int, TensorProto] = {}
        self.functions = {(function.domain, function.name, function.overload): function for function in model.functions}
        self.entered: dict[tuple[str, str, str], _Inside] = {}
        names: Names = ChainMap({value.name: self._place() for value in real_inputs(model)})
        self.pixels = list(names.values())
        self._follow(model.graph, names)
        self.scores = [names.get(value.name, ABSENT) for value in model.graph.output]
        self.names = {place: name for name, place in names.items()}

    def settle(self, values: list[V], rule: Callable[[Edge, list[V]], V], join: Callable[[V, V], V]) -> list[V]:
        """The values of all places once every edge holds: each is joined with what `rule` makes of the sources of each edge that leads to it.

        `join` must only ever move a value one way, and not for ever.
        """
        pending, waiting = deque(self.edges), set(map(id, self.edges))
        while pending:
            edge = pending.popleft()
            waiting.discard(id(edge))
            found = rule(edge, [values[place] for place in edge.sources])
            for target in edge.targets:
                joined = join(values[target], found)
                if joined != values[target]:
                    values[target] = joined
                    fresh = [after for after in self.leaving[target] if id(after) not in waiting]
                    pending += fresh
                    waiting.update(map(id, fresh))
        return values

    def reach(self) -> list[Reach]:
        """How far the numbers in the image reach into each place."""
        start = [Reach.NOTHING] * self.count
        for place in self.pixels:
            start[place] = Reach.NUMBERS
        return self.settle(start, _reach, max)

    def _place(self) -> int:
        self.count += 1
        self.leaving.append([])
        return self.count - 1

    def _edge(self, node: NodeProto | None, sources: Sequence[int], targets: Sequence[int], *, steering: int = 0) -> None:
        edge = Edge(node, tuple(sources), tuple(targets), steering)
        self.edges.append(edge)
        for place in set(edge.sources):
            self.leaving[place].append(edge)

    def _copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=False):
            self._edge(None, [source], [target])

    def _follow(self, body: Body, names: Names) -> None:
        own = names.maps[0]
        if isinstance(body, GraphProto):
            for tensor in body.initializer:
                if tensor.name not in own:
                    own[tensor.name] = self._place()
                    self.stored[own[tensor.name]] = tensor
        for name in chain.from_iterable(node.output for node in body.node):
            if name and (own.get(name, ABSENT) == ABSENT or own[name] in self.stored):
                own[name] = self._place()
        for node in body.node:
            inputs = [names.get(name, ABSENT) for name in node.input]
            outputs = [own[name] if name else self._place() for name in node.output]
            self._node(node, inputs, outputs, names)

    def _node(self, node: NodeProto, inputs: list[int], outputs: list[int], names: Names) -> None:
        graphs = [self._graph(attribute.g, names) for attribute in node.attribute if attribute.HasField("g")]
        function = self.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            inside = self._call(function)
            self._copy(inputs, inside.given)
            self._copy(inside.answered, outputs)
        elif graphs and node.op_type in FLOW:
            FLOW[node.op_type](self, node, inputs, outputs, graphs)
            return
        elif node.op_type in FLOW:  # its body comes from the caller of a function: it is taken to do its worst
            self.steered.append(Steered(node, inputs, []))
        for graph in graphs:  # of an operator that we do not know, or of a function: what goes in anywhere may come out anywhere
            self._edge(None, inputs, graph.given)
            self._edge(None, graph.answered, outputs)
        if function is None:
            self._edge(node, inputs, outputs)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.stored[outputs[0]] = attribute.t

    def _call(self, function: FunctionProto) -> _Inside:
        key = (function.domain, function.name, function.overload)
        if key not in self.entered:
            names: Names = ChainMap({name: self._place() for name in function.input})
            given = [names[name] for name in function.input]
            self._follow(function, names)
            self.entered[key] = _Inside(given, [names.get(name, ABSENT) for name in function.output])
        return self.entered[key]

    def _graph(self, graph: GraphProto, outer: Names) -> _Inside:
        names = outer.new_child({value.name: self._place() for value in graph.input})
        given = [names[value.name] for value in graph.input]
        self._follow(graph, names)
        return _Inside(given, [names.get(value.name, ABSENT) for value in graph.output])

    def _if(self, node: NodeProto, inputs: list[int], outputs: list[int], branches: list[_Inside]) -> None:
        self.steered.append(Steered(node, inputs[:1], []))
        for row, output in enumerate(outputs):
            answered = [branch.answered[row] for branch in branches if row < len(branch.answered)]
            self._edge(node, [*inputs[:1], *answered], [output], steering=len(inputs[:1]))

    def _loop(self, node: NodeProto, inputs: list[int], outputs: list[int], bodies: list[_Inside]) -> None:
        """Inputs: trip count, condition, carried; body: iteration, condition, carried -> condition, carried, scanned; outputs: carried, scanned."""
        body = bodies[0]
        steering = [*inputs[:2], *body.answered[:1]]
        self.steered.append(Steered(node, steering, []))
        self._copy(inputs[2:], body.given[2:])
        self._copy(body.answered, body.given[1:])
        self._copy(inputs[2:], outputs)
        for answered, output in zip(body.answered[1:], outputs, strict=False):
            self._edge(node, [*steering, answered], [output], steering=len(steering))

    def _scan(self, node: NodeProto, inputs: list[int], outputs: list[int], bodies: list[_Inside]) -> None:
        """Inputs: states, scanned (before them, in opset 8, lengths); body: states, elements -> states, scanned; outputs: the same."""
        body = bodies[0]
        scanned = next((attribute.i for attribute in node.attribute if attribute.name == "num_scan_inputs"), 0)
        states = max(len(body.given) - scanned, 0)
        lengths, inputs = inputs[: -len(body.given)], inputs[-len(body.given) :]
        self.steered.append(Steered(node, lengths, inputs[states:]))
        self._copy(inputs, body.given)
        self._copy(body.answered[:states], body.given)
        self._copy(inputs[:states], outputs)
        for answered, output in zip(body.answered, outputs, strict=False):
            self._edge(node, [*lengths, answered], [output], steering=len(lengths))


FLOW: dict[str, Callable[[Flow, NodeProto, list[int], list[int], list[_Inside]], None]] = {"If": Flow._if, "Loop": Flow._loop, "Scan": Flow._scan}


def _reach(edge: Edge, sources: list[Reach]) -> Reach:
    """How far the pixels get through an edge."""
    operator = edge.node.op_type if edge.node is not None else ""
    furthest = max(sources, default=Reach.NOTHING)
    if edge.steering:
        return Reach.SHAPE if any(sources[: edge.steering]) else furthest
    if operator in ("Shape", "Size", "SequenceLength"):
        return Reach.NUMBERS if Reach.SHAPE in sources else Reach.NOTHING
    if operator in ("EyeLike", "RandomNormalLike", "RandomUniformLike"):
        return Reach.SHAPE if Reach.SHAPE in sources else Reach.NOTHING
    shaping = SHAPED_BY.get(operator, ())
    return Reach.SHAPE if any(sources[index] for index in shaping if index < len(sources)) else furthest
