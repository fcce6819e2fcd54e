"""Whether the pixels decide what runs: followed through arithmetic, shapes, subgraphs and functions, with a benign twin for each."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper

from pipeline.findings import Severity
from pipeline.scan import scan
from pipeline.scan.control_flow import check_control_flow
from pipeline.scan.flow import SHAPED_BY

node = helper.make_node
HERE = Path()
RULE = "graph.data-dependent-control-flow"


def info(name: str, kind: int = TensorProto.FLOAT, shape: tuple[int, ...] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [info(name) for name in inputs], [info(name) for name in outputs])


def branches(name: str, *, condition: str, then: str = "Relu") -> onnx.NodeProto:
    """An If between Relu and Abs of `x`."""
    bodies = {f"{key}_branch": graph([node(operator, ["x"], [f"{name}_{key}"])], [], [f"{name}_{key}"]) for key, operator in (("then", then), ("else", "Abs"))}
    return node("If", [condition], [f"{name}_out"], name=name, **bodies)


def constant(name: str, value: object, kind: type = np.float32) -> onnx.NodeProto:
    return node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(value, kind)))


def found(*nodes: onnx.NodeProto, functions: list[onnx.FunctionProto] | None = None) -> list[str]:
    """Where something is found in a model of these nodes and a classifier."""
    model = tiny.classifier()
    model.graph.node.extend(nodes)
    model.functions.extend(functions or [])
    return [finding.where for finding in check_control_flow(model, HERE)]


OF_PIXELS = [node("ReduceMax", ["x"], ["top"], keepdims=0), constant("one", 1), node("Greater", ["top", "one"], ["which"])]
OF_SHAPE = [
    node("Shape", ["x"], ["s"]), constant("zero", 0, np.int64), node("Gather", ["s", "zero"], ["n"]), constant("one", 1, np.int64),
    node("Equal", ["n", "one"], ["which"]),
]  # fmt: skip
OF_NOTHING = [constant("which", True, np.bool_)]


@pytest.mark.parametrize(("before", "expected"), [(OF_PIXELS, ["gate"]), (OF_SHAPE, []), (OF_NOTHING, [])], ids=["pixels", "shape", "constant"])
def test_an_if(before: list[onnx.NodeProto], expected: list[str]) -> None:
    assert found(*before, branches("gate", condition="which")) == expected
    assert found(branches("gate", condition="which"), *reversed(before)) == expected  # onnxruntime sorts nodes by itself


@pytest.mark.parametrize(
    "before",
    [
        [node("NonZero", ["x"], ["z"])],
        [node("Compress", ["x", "x"], ["z"])],
        [node("Unique", ["x"], ["z"])],
        [node("ReduceSum", ["x"], ["t"]), node("Range", ["zero", "t", "zero"], ["z"])],
        [node("ReduceSum", ["x"], ["t"]), node("ConstantOfShape", ["t"], ["z"])],
        [node("ReduceSum", ["x"], ["t"]), node("Slice", ["zero", "zero", "t"], ["z"])],
        [node("NonZero", ["x"], ["t"]), node("EyeLike", ["t"], ["z"])],
    ],
    ids=lambda nodes: nodes[-1].op_type,
)
def test_a_shape_that_the_pixels_make_is_no_shape_arithmetic(before: list[onnx.NodeProto]) -> None:
    end = [node("Shape", ["z"], ["which"]), branches("gate", condition="which")]
    assert found(constant("zero", 0), *before, *end) == ["gate"]


@pytest.mark.parametrize("operator", ["Relu", "ConstantOfShape", "EyeLike", "Reshape"])
def test_shapes_that_the_pixels_do_not_make(operator: str) -> None:
    before = [node("Shape", ["x"], ["s"]), node(operator, {"ConstantOfShape": ["s"], "Reshape": ["x", "s"]}.get(operator, ["x"]), ["z"])]
    assert found(*before, node("Size", ["z"], ["which"]), branches("gate", condition="which")) == []


def test_every_operator_of_the_table_is_one() -> None:
    for name, inputs in SHAPED_BY.items():
        assert max(inputs) < max(onnx.defs.get_schema(name).max_input, 3), name


def loop(*, trips: str = "", condition: str = "", goes_on: str = "yes") -> onnx.NodeProto:
    body = graph([node("Relu", ["v"], ["w"]), constant("yes", True, np.bool_), node("Equal", ["v", "v"], ["same"])], ["i", "c", "v"], [goes_on, "w", "w"])
    return node("Loop", [trips, condition, "x"], ["looped", "stacked"], name="loop", body=body)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([constant("n", 3, np.int64), loop(trips="n")], []),
        ([*OF_SHAPE, loop(trips="n")], []),
        ([*OF_SHAPE, loop(condition="which")], []),
        ([*OF_PIXELS, loop(trips="top")], ["loop"]),
        ([*OF_PIXELS, loop(condition="which")], ["loop"]),
        ([constant("n", 3, np.int64), loop(trips="n", goes_on="same")], ["loop"]),
    ],
    ids=["constant", "trips of shape", "condition of shape", "trips of pixels", "condition of pixels", "goes on as it likes"],
)
def test_a_loop(steps: list[onnx.NodeProto], expected: list[str]) -> None:
    assert found(*steps) == expected


def test_what_is_carried_reaches_the_next_round() -> None:
    """The pixels come into `a`, and are in `d` only three rounds later: `d` steers an If inside."""
    gate = branches("inner", condition="d")
    shift = [node("Identity", [old], [new]) for old, new in (("a", "b2"), ("b", "c2"), ("c", "d2"))]
    body = graph(
        [gate, *shift, constant("yes", True, np.bool_), node("Identity", ["a"], ["a2"])], ["i", "go", "a", "b", "c", "d"], ["yes", "a2", "b2", "c2", "d2"]
    )
    outputs = ["ya", "yb", "yc", "yd"]
    assert found(constant("n", 3, np.int64), constant("k", 0), node("Loop", ["n", "", "x", "k", "k", "k"], outputs, name="outer", body=body)) == ["inner"]
    assert found(constant("n", 3, np.int64), constant("k", 0), node("Loop", ["n", "", "k", "k", "k", "k"], outputs, name="outer", body=body)) == []


@pytest.mark.parametrize(("scanned", "expected"), [("x", []), ("z", ["scan"])])
def test_a_scan_is_as_long_as_what_it_reads(scanned: str, expected: list[str]) -> None:
    body = graph([node("Add", ["s", "e"], ["s2"]), node("Relu", ["e"], ["o"])], ["s", "e"], ["s2", "o"])
    scan_node = node("Scan", ["k", scanned], ["state", "seen"], name="scan", body=body, num_scan_inputs=1)
    assert found(constant("k", 0), node("NonZero", ["x"], ["z"]), scan_node) == expected


def test_an_if_inside_a_branch_sees_the_outer_names() -> None:
    inner = graph([branches("inner", condition="which")], [], ["inner_out"])
    outer = node("If", ["always"], ["o"], name="outer", then_branch=inner, else_branch=graph([node("Abs", ["x"], ["a"])], [], ["a"]))
    assert found(constant("always", True, np.bool_), *OF_PIXELS, outer) == ["inner"]
    assert found(constant("always", True, np.bool_), *OF_SHAPE, outer) == []


def test_a_name_of_its_own_hides_the_outer_one() -> None:
    hidden = graph([constant("which", True, np.bool_), branches("inner", condition="which")], [], ["inner_out"])
    outer = node("If", ["always"], ["o"], name="outer", then_branch=hidden, else_branch=graph([node("Abs", ["x"], ["a"])], [], ["a"]))
    assert found(constant("always", True, np.bool_), *OF_PIXELS, outer) == []


def function(name: str, inputs: list[str], outputs: list[str], nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("local", name, inputs, outputs, nodes, [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)])


@pytest.mark.parametrize(("given", "expected"), [("x", ["gate"]), ("k", [])])
def test_through_functions(given: str, expected: list[str]) -> None:
    judge = function("Judge", ["a"], ["w"], [node("ReduceMax", ["a"], ["m"]), node("Cast", ["m"], ["w"], to=TensorProto.BOOL)])
    gate = function(
        "Gate", ["x", "b"], ["o"], [node("Judge", ["b"], ["c"], domain="local"), branches("gate", condition="c"), node("Relu", ["gate_out"], ["o"])]
    )
    call = node("Gate", ["x", given], ["out"], domain="local")
    assert found(constant("k", 1), call, functions=[judge, gate]) == expected


def test_a_condition_that_was_decided_by_an_if_on_pixels() -> None:
    choice = node(
        "If",
        ["which"],
        ["w"],
        name="first",
        then_branch=graph([constant("t", True, np.bool_)], [], ["t"]),
        else_branch=graph([constant("f", False, np.bool_)], [], ["f"]),
    )
    assert found(*OF_PIXELS, choice, branches("second", condition="w")) == ["first", "second"]


def test_a_body_from_elsewhere_is_taken_to_do_its_worst() -> None:
    bare = function("Bare", ["c"], ["o"], [node("If", ["c"], ["o"], name="bare")])
    assert found(*OF_PIXELS, node("Bare", ["which"], ["out"], domain="local"), functions=[bare]) == ["bare"]
    assert found(*OF_SHAPE, node("Bare", ["which"], ["out"], domain="local"), functions=[bare]) == []


def test_weights_listed_as_inputs_are_no_pixels() -> None:
    model = tiny.classifier()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "which"))
    model.graph.input.append(info("which", TensorProto.BOOL, ()))
    model.graph.node.append(branches("gate", condition="which"))
    assert list(check_control_flow(model, HERE)) == []


def test_the_finding(folder: Path) -> None:
    model = tiny.classifier()
    model.graph.node.extend([*OF_PIXELS, branches("ga\x1b[31mte", condition="which")])
    result = scan(tiny.save(model, folder))
    (finding,) = result.findings
    assert (finding.rule, finding.severity) == (RULE, Severity.HIGH)
    assert finding.where.isprintable() and finding.where.startswith("ga")
    assert result.refusal is not None and finding.where in result.refusal and result.refusal.isprintable()
    assert scan(tiny.save(tiny.classifier(), folder)).refusal is None


def test_a_file_that_expands_without_end_is_followed_once() -> None:
    """2^40 calls, and a Loop that hands each of 200 values on: the work grows with the file."""
    functions = [function("F0", ["a"], ["b"], [node("Relu", ["a"], ["b"])])]
    functions += [
        function(f"F{i}", ["a"], ["c"], [node(f"F{i - 1}", ["a"], ["b"], domain="local"), node(f"F{i - 1}", ["b"], ["c"], domain="local")])
        for i in range(1, 40)
    ]
    names = [f"v{i}" for i in range(200)]
    body = graph(
        [constant("yes", True, np.bool_), *(node("Relu", [a], [f"n{b}"]) for a, b in pairwise(names))],
        ["i", "c", *names],
        ["yes", "v0", *(f"n{b}" for b in names[1:])],
    )
    deep = node("Loop", ["n", "", "x", *["k"] * 199], [f"o{i}" for i in range(200)], name="loop", body=body)
    steps = [constant("n", 3, np.int64), constant("k", 0), node("F39", ["x"], ["f"], domain="local"), deep, branches("gate", condition="o199")]
    assert found(*steps, functions=functions) == ["gate"]
