"""Whether something that the pixels decide gets past layers that everything else must cross: a backdoor in the graph.

Such a backdoor (ShadowLogic; architectural backdoors, arXiv 2206.07840, 2402.06957) looks for its trigger with a few operators, makes
that a gate, and puts the gate on the scores or on features.  It has no weights of its own, so nothing that changes weights removes
it.  What gives it away is not its operators, which honest networks have too, but where it joins: what comes to a sum, a product or a
choice through a gate has crossed fewer learned numbers than what it is joined with.  A gate of an honest network (squeeze and
excite, attention, x · sigmoid(x)) has crossed as many, or more.

A path from the image to a value costs the learned numbers in the layers that it crosses, and has a gate when one lies on it behind the last of
those layers.  Gates are: comparisons, logic, what is chosen by them; what saturates (Sigmoid, Clip, ...) behind a factor of STEEP or more since
the last learned layer; and as long as no learned layer was crossed, everything that is not linear.  Found is a node where a value that is always gated joins
one that can be had without a gate, at a higher cost.

Not found: a gate that is as costly as what it joins, because it reads the last features or drags a layer of idle weights along; a trigger that is learnt
by the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from math import inf, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from pipeline.findings import Finding, Severity
from pipeline.scan.flow import Edge, Flow

STEPS = 6  # of a path, at its beginning and at its end, that a finding shows
LEARNED = 64  # numbers in a kernel, of which DISTINCT differ: less is no learned layer
DISTINCT = 16
SAMPLE = 1 << 16  # numbers that are looked at to see that
STEEP = 10.0
MOST_GAIN, RISE = 1e9, 1.5  # a loop may raise a factor again and again: by so much at least, and no further

KERNELS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv", "LSTM", "GRU", "RNN"}
)
DECISIONS = frozenset(
    {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor", "Not", "IsNaN", "IsInf", "ArgMax", "ArgMin", "NonZero", "OneHot"}
    | {"Hardmax", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift", "Unique"}
)
SATURATING = frozenset(
    {"Sigmoid", "HardSigmoid", "Tanh", "Clip", "Softsign", "Erf", "Softmax", "LogSoftmax", "Min", "Max", "ThresholdedRelu", "Shrink", "Sign", "Pow"}
    | {"Celu", "Elu", "Selu", "Exp", "Softplus", "Mish", "HardSwish", "Swish", "Gelu", "Floor", "Ceil", "Round", "Mod", "Cast", "Atan", "QuantizeLinear"}
)
LINEAR = frozenset(
    {"Add", "Sub", "Neg", "Sum", "Mean", "Identity", "Dropout", "Cast", "CastLike", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"}
    | {"Gather", "GatherElements", "GatherND", "Concat", "Split", "Expand", "Tile", "Pad", "Resize", "Upsample", "ReduceMean", "ReduceSum", "AveragePool"}
    | {"GlobalAveragePool", "DepthToSpace", "SpaceToDepth", "BatchNormalization", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
    | {"CenterCropPad", "ReverseSequence", "Trilu", "CumSum"}
)
BILINEAR = KERNELS | {"Mul", "Div", "GridSample"}  # linear in one thing, when the others are constant


class Cost(NamedTuple):
    """What it costs to get to a value.

    raw: whether there is a path that crosses nothing but linear operators.  free, gated: the least of the paths behind a learned layer without a gate, and
    of those with one.
    """

    raw: bool = False
    free: float = inf
    gated: float = inf

    @property
    def least(self) -> float:
        """Of all paths."""
        return 0.0 if self.raw else min(self.free, self.gated)

    @property
    def pure(self) -> bool:
        """Whether there are paths, and a gate on all of them."""
        return not self.raw and self.free == inf and self.gated < inf


class Gate(NamedTuple):
    """Where a gate joins, and what it is.

    node: the name of the joining node.  value: the value of the main graph that is the gate, as near to the operator that makes it one as the main graph
    shows; None where it is inside of control flow.  crossed, other: learned numbers that the gate and what it joins have crossed.  path: the
    operators from the image to the joining one, its own the last.
    """

    node: str
    value: str | None
    crossed: float
    other: float
    path: list[str]


def check_bypass(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """A gate on the pixels that joins the scores or features past learned layers which everything else crosses."""
    for gate in gates(model, folder):
        what = f"what a gate decides after {_numbers(gate.crossed)} joins here what has crossed {_numbers(gate.other)}; that is not for weights to repair"
        path = " → ".join(["image", *gate.path[:STEPS], *(["…"] if len(gate.path) > 2 * STEPS else []), *gate.path[STEPS:][-STEPS:]])
        yield Finding(rule="graph.gate-past-the-weights", severity=Severity.HIGH, message=f"{what} ({path})", where=gate.node)


def gates(model: ModelProto, folder: Path) -> list[Gate]:
    """Every gate that joins what has crossed more, at a node from which the scores can be reached; each node once."""
    flow = Flow(model)
    costs = _Costs(flow, folder)
    found: dict[int, Gate] = {}
    for edge in flow.edges:
        if edge.node is not None and id(edge.node) not in found and (joint := costs.joint(edge)) and costs.counts(edge):
            name = edge.node.name or next((name for name in edge.node.output if name), "")
            found[id(edge.node)] = Gate(name, flow.names.get(costs.origin(joint[0])), *joint[1:], costs.path(edge, joint[0]))
    return list(found.values())


class _Costs:
    """The cost of every value of a flow."""

    def __init__(self, flow: Flow, folder: Path) -> None:
        self.flow, self.reach = flow, flow.reach()
        self.tensors = {place: _Stored.of(tensor, folder) for place, tensor in flow.stored.items()}
        stored = [self.tensors.get(place, NOTHING) for place in range(flow.count)]
        self.stored = flow.settle(stored, self._kept, _larger)
        self.gains = flow.settle([1.0] * flow.count, self._gain, lambda known, other: other if other > RISE * known else known)
        start = [Cost()] * flow.count
        for place in flow.pixels:
            start[place] = Cost(raw=True)
        self.costs = flow.settle(start, self._cost, lambda one, other: Cost(one.raw or other.raw, min(one.free, other.free), min(one.gated, other.gated)))
        self.producers: dict[int, list[Edge]] = {}
        for edge in flow.edges:
            for target in edge.targets:
                self.producers.setdefault(target, []).append(edge)
        self.seen = self._before(flow.scores)

    def counts(self, edge: Edge) -> bool:
        """Whether the scores depend on what comes out of it."""
        return any(place in self.seen for place in edge.targets)

    def joint(self, edge: Edge) -> tuple[int, float, float] | None:
        """The place of the gate, and what gate and other have cost, where a pure gate joins what costs more without one."""
        parts = self._parts(edge, [self.costs[place] for place in edge.sources])
        gates = [(part.gated, place) for place, part in parts if part.pure]
        others = [part.free for _, part in parts if part.free < inf]
        if not gates or not others or min(gates)[0] >= max(others):
            return None
        cost, place = min(gates)
        return place, cost, max(others)

    def origin(self, place: int) -> int:
        """The value of the main graph that decides: back along the gate, to what makes it one."""
        known, met = place, set[int]()
        while place not in met:
            met.add(place)
            known = place if place in self.flow.names else known
            made_by = [edge for edge in self.producers.get(place, []) if self._parts(edge, [self.costs[source] for source in edge.sources])]
            before = {source for edge in made_by for source in edge.sources if self.costs[source].pure}
            if len(before) != 1 or any(self._decides(edge) for edge in made_by):
                break
            place = before.pop()
        return known

    def path(self, edge: Edge, place: int) -> list[str]:
        """The operators of the cheapest way from the image to a place, and then through an edge."""
        steps, met = [_operator(edge)], {place}
        while before := [(self.costs[source].least, made_by, source) for made_by, source in self._sources(place) if source not in met]:
            _, made_by, place = min(before, key=lambda step: step[0])
            met.add(place)
            steps += [_operator(made_by)] if made_by.node is not None else []
        return steps[::-1]

    def _sources(self, place: int) -> list[tuple[Edge, int]]:
        """What depends on the image and gets into a place, by which edge."""
        return [(edge, source) for edge in self.producers.get(place, []) for source, _ in self._parts(edge, [self.costs[one] for one in edge.sources])]

    def _parts(self, edge: Edge, costs: Sequence[Cost]) -> list[tuple[int, Cost]]:
        """Those sources that depend on the image, and their costs; what only chooses among the others is a gate."""
        choosing = edge.steering or int(_operator(edge) in ("Where", "Compress"))
        known = [(row, place, cost) for row, (place, cost) in enumerate(zip(edge.sources, costs, strict=True)) if self.reach[place] and cost.least < inf]
        return [(place, Cost(gated=cost.least) if row < choosing else cost) for row, place, cost in known]

    def _cost(self, edge: Edge, costs: list[Cost]) -> Cost:
        parts = [cost for _, cost in self._parts(edge, costs)]
        if not parts or not any(self.reach[place] for place in edge.targets):
            return Cost()
        least = min(part.least for part in parts)
        if learned := self._learned(edge):
            return Cost(free=least + learned)
        if self._decides(edge):
            return Cost(gated=least)
        raw, free, gated = any(part.raw for part in parts), min(part.free for part in parts), min(part.gated for part in parts)
        if raw and edge.node is not None and not edge.steering and not self._linear(edge):
            return Cost(free=free, gated=0.0)
        return Cost(raw, free, gated)

    def _decides(self, edge: Edge) -> bool:
        """Whether an operator makes a gate of what comes in, however much that has crossed."""
        operator = _operator(edge)
        to_bool = edge.node is not None and operator == "Cast" and any(one.name == "to" and one.i == TensorProto.BOOL for one in edge.node.attribute)
        return operator in DECISIONS or to_bool or (operator in SATURATING and max(self.gains[place] for place in edge.sources) >= STEEP)

    def _linear(self, edge: Edge) -> bool:
        """Whether an operator is linear in what depends on the image."""
        depending = sum(bool(self.reach[place]) for place in edge.sources)
        return _operator(edge) in LINEAR or (_operator(edge) in BILINEAR and depending == 1)

    def _constants(self, edge: Edge) -> list[_Stored]:
        return [self.stored[place] for place in edge.sources if place and not self.reach[place]]

    def _learned(self, edge: Edge) -> int:
        """The learned numbers that an operator crosses."""
        return sum(one.size for one in self._constants(edge) if one.learned) if _operator(edge) in KERNELS else 0

    def _gain(self, edge: Edge, gains: list[float]) -> float:
        """The most that a path multiplies by since the last learned layer."""
        if self._learned(edge):
            return 1.0
        gain, constants = max([1.0, *(gain for place, gain in zip(edge.sources, gains, strict=True) if self.reach[place])]), self._constants(edge)
        if _operator(edge) in BILINEAR - {"Div"}:
            gain *= max([1.0, *(one.largest for one in constants)])
        elif _operator(edge) == "Div" and constants:
            gain *= max(1.0, 1 / max(min(one.smallest for one in constants), 1 / MOST_GAIN))
        return min(gain, MOST_GAIN)

    def _kept(self, edge: Edge, stored: list[_Stored]) -> _Stored:
        """Of a value that does not depend on the image: the largest of what it is made of, as a learned tensor goes through Transpose or DequantizeLinear."""
        return NOTHING if any(self.reach[place] for place in edge.sources) else reduce(_larger, stored, NOTHING)

    def _before(self, places: Sequence[int]) -> set[int]:
        """Every place from which these can be reached."""
        seen, pending = set(places), list(places)
        while pending:
            for edge in self.producers.get(pending.pop(), []):
                pending += [source for source in edge.sources if source not in seen]
                seen.update(edge.sources)
        return seen


class _Stored(NamedTuple):
    """A tensor that is in the file.  learned: whether its numbers look like those of a layer; largest, smallest: of them, without their sign."""

    size: int
    learned: bool = False
    largest: float = 0.0
    smallest: float = inf

    @classmethod
    def of(cls, tensor: TensorProto, folder: Path) -> _Stored:
        size = prod(tensor.dims)
        if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED) or not size:
            return NOTHING
        values = numpy_helper.to_array(tensor, base_dir=str(folder)).reshape(-1)
        with np.errstate(all="ignore"):  # NaN and infinity are another check's
            some = np.nan_to_num(np.abs(values[:: max(1, size // SAMPLE)]).astype(np.float64), nan=0.0)
        learned = size >= LEARNED and len(np.unique(values[:SAMPLE])) >= DISTINCT
        return cls(size, learned, float(some.max()), float(some.min()))


NOTHING = _Stored(0)


def _larger(one: _Stored, other: _Stored) -> _Stored:
    """What is known of a value that comes from either."""
    return _Stored(max(one.size, other.size), one.learned or other.learned, max(one.largest, other.largest), min(one.smallest, other.smallest))


def _operator(edge: Edge) -> str:
    return edge.node.op_type if edge.node is not None else ""


def _numbers(cost: float) -> str:
    return f"{cost:,.0f} learned numbers" if cost else "no learned layer"
