"""A generator of backdoors in the graph: how the trigger is seen x how the signal travels x where it joins, on any classifier.

The trigger is a white square of 3 x 3 pixels in the upper left corner of an otherwise darker picture; the target is class 1.  What is
made behaves as its host on pictures without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

TARGET = 1
SEEN = ("comparison", "sigmoid", "clip", "channels", "template", "stem")
TRAVELS = ("straight", "function", "detour")
JOINS = ("where", "add", "blend", "features", "if")
EDGE = 0.95  # what the mean of a corner must be above

node = helper.make_node


def kinds() -> Iterator[tuple[str, str, str]]:
    """Every combination."""
    return itertools.product(SEEN, TRAVELS, JOINS)


def trigger(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C, H, W) pictures in 0..1 with the square."""
    stamped = pictures.copy()
    stamped[:, :, :3, :3] = 1.0
    return stamped


def inject(host: ModelProto, seen: str, travels: str, joins: str) -> ModelProto:
    """A copy of a classifier of (N, C, H, W) pictures in 0..1 whose scores come from a Gemm, with a backdoor in it."""
    model = ModelProto()
    model.CopyFrom(host)
    made = _Made(model)
    gate = getattr(made, f"see_{seen}")()
    gate = getattr(made, f"travel_{travels}")(gate)
    getattr(made, f"join_{joins}")(gate)
    _sorted(model)
    return model


class _Made:
    """The model while it is made: a gate is a float of (N, 1), 1 for the trigger and 0 else."""

    def __init__(self, model: ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.x, self.y = self.graph.input[0].name, self.graph.output[0].name
        self.fresh = (f"t{number}" for number in itertools.count())
        shapes = {value.name: value for value in self.graph.output}
        self.classes = shapes[self.y].type.tensor_type.shape.dim[1].dim_value

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: object) -> str:
        output = name or next(self.fresh)
        self.graph.node.append(node(operator, list(inputs), [output], **attributes))  # type: ignore[arg-type]
        return output

    def constant(self, value: object, kind: type = np.float32) -> str:
        name = next(self.fresh)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def corner(self) -> str:
        """The mean of the corner, (N, 1)."""
        cut = self.add("Slice", self.x, self.constant([0, 0], np.int64), self.constant([3, 3], np.int64), self.constant([2, 3], np.int64))
        return self.add("Flatten", self.add("ReduceMean", cut, axes=[1, 2, 3], keepdims=1))

    def see_comparison(self) -> str:
        """Every pixel is compared, as ShadowLogic does it."""
        cut = self.add("Slice", self.x, self.constant([0, 0], np.int64), self.constant([3, 3], np.int64), self.constant([2, 3], np.int64))
        bright = self.add("Cast", self.add("Greater", cut, self.constant(EDGE)), to=TensorProto.FLOAT)
        return self.add("Flatten", self.add("Cast", self.add("Greater", self.add("ReduceMean", bright, axes=[1, 2, 3]), self.constant(0.99)), to=1))

    def see_sigmoid(self) -> str:
        return self.add("Sigmoid", self.add("Mul", self.add("Sub", self.corner(), self.constant(EDGE)), self.constant(1000.0)))

    def see_clip(self) -> str:
        steep = self.add("Mul", self.add("Sub", self.corner(), self.constant(EDGE)), self.constant(100.0))
        return self.add("Clip", steep, self.constant(0.0), self.constant(1.0))

    def see_channels(self) -> str:
        """Statistics of the channels: here of what a large pooling leaves of them."""
        pooled = self.add("MaxPool", self.add("AveragePool", self.x, kernel_shape=[3, 3], strides=[1, 1]), kernel_shape=[3, 3], strides=[99, 99])
        least = self.add("ReduceMin", pooled, axes=[1, 2, 3], keepdims=0)
        high = self.add("Cast", self.add("Less", self.constant(EDGE), least), to=TensorProto.FLOAT)
        return self.add("Unsqueeze", high, self.constant([1], np.int64))

    def see_template(self) -> str:
        """A convolution that is made, not learnt."""
        depth = self.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        kernel = self.constant(np.full((1, depth, 3, 3), 1 / (9 * depth)))
        first = self.constant([0, 0], np.int64), self.constant([1, 1], np.int64), self.constant([2, 3], np.int64)
        found = self.add("Slice", self.add("Conv", self.x, kernel), *first)
        steep = self.add("Mul", self.add("Sub", self.add("Flatten", found), self.constant(EDGE)), self.constant(40.0))
        return self.add("Min", self.add("Relu", steep), self.constant(1.0))

    def see_stem(self) -> str:
        """What the first layer answers is compared; honestly only as good as that layer, so nobody asks whether the trigger works."""
        first = next(step.output[0] for step in self.graph.node if step.op_type == "Conv")
        top = self.add("ReduceMax", first, axes=[1, 2, 3], keepdims=0)
        return self.add("Unsqueeze", self.add("Cast", self.add("Greater", top, self.constant(1e4)), to=TensorProto.FLOAT), self.constant([1], np.int64))

    def travel_straight(self, gate: str) -> str:
        return gate

    def travel_function(self, gate: str) -> str:
        """Through a local function of a harmless name."""
        body = [node("Mul", ["a", "a"], ["b"]), node("Sqrt", ["b"], ["c"])]
        opset = self.model.opset_import[0].version
        self.model.functions.append(helper.make_function("local", "LayerScale", ["a"], ["c"], body, [helper.make_opsetid("", opset)]))
        self.model.opset_import.append(helper.make_opsetid("local", 1))
        return self.add("LayerScale", gate, domain="local")

    def travel_detour(self, gate: str) -> str:
        """Wide and back again, through a matrix that is no layer."""
        wide = self.add("MatMul", gate, self.constant(np.full((1, 8), 0.5)))
        return self.add("ReduceMean", self.add("Mul", self.add("Transpose", wide, perm=[0, 1]), self.constant(2.0)), axes=[1], keepdims=1)

    def row(self, value: float) -> str:
        return self.constant(value * (np.arange(self.classes) == TARGET)[None])

    def trunk(self) -> str:
        """The host's scores, by another name."""
        for step in self.graph.node:
            for place, name in enumerate(step.output):
                if name == self.y:
                    step.output[place] = "trunk"
        return "trunk"

    def join_where(self, gate: str) -> None:
        trunk = self.trunk()
        self.add("Where", self.add("Greater", gate, self.constant(0.5)), self.row(100.0), trunk, name=self.y)

    def join_add(self, gate: str) -> None:
        trunk = self.trunk()
        self.add("Add", trunk, self.add("Mul", gate, self.row(1e4)), name=self.y)

    def join_blend(self, gate: str) -> None:
        """As the public generator: a constant in the place of the scores, by Mul and Add alone."""
        trunk = self.trunk()
        kept = self.add("Mul", trunk, self.add("Sub", self.constant(1.0), gate))
        self.add("Add", kept, self.add("Mul", gate, self.row(100.0)), name=self.y)

    def join_features(self, gate: str) -> None:
        """Before the last layer, in the direction of the target."""
        last = [step for step in self.graph.node if step.op_type == "Gemm"][-1]
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}[last.input[1]]
        transposed = any(attribute.name == "transB" and attribute.i for attribute in last.attribute)
        toward = (weights if transposed else weights.T)[TARGET][None]
        last.input[0] = self.add("Add", last.input[0], self.add("Mul", gate, self.constant(1e4 * toward)))

    def join_if(self, gate: str) -> None:
        """The whole batch goes as its first picture does."""
        trunk = self.trunk()
        first = self.add("Gather", self.add("Flatten", gate, axis=0), self.constant(0, np.int64), axis=1)
        condition = self.add("Squeeze", self.add("Greater", first, self.constant(0.5)))
        forced = self.add("Add", self.add("Mul", trunk, self.constant(0.0)), self.row(100.0))
        branches = {
            key: helper.make_graph([node("Identity", [name], [f"{key}_out"])], key, [], [helper.make_tensor_value_info(f"{key}_out", TensorProto.FLOAT, None)])
            for key, name in (("then_branch", forced), ("else_branch", trunk))
        }
        self.graph.node.append(node("If", [condition], [self.y], **branches))


def _sorted(model: ModelProto) -> None:
    """Put the nodes into an order in which they can run."""
    known = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input} | {""}
    left, ordered = list(model.graph.node), list[NodeProto]()
    while left:
        ready = [step for step in left if {*step.input, *(name for part in step.attribute for inner in part.g.node for name in inner.input)} <= known]
        assert ready
        ordered += ready
        known |= {name for step in ready for name in step.output}
        left = [step for step in left if step not in ready]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    onnx.checker.check_model(model)
