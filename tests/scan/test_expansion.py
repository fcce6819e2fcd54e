"""Function bombs: counted, never written out."""

from __future__ import annotations

import time
from pathlib import Path

import hostile
import onnx
import pytest
import tiny
from onnx import helper

from pipeline.errors import ModelRefused
from pipeline.scan import scan
from pipeline.scan.expansion import MOST_NODES, check_expansion

node = helper.make_node


def refused_quickly(model: onnx.ModelProto, folder: Path, reason: str) -> None:
    path = tiny.save(model, folder)
    started = time.monotonic()
    with pytest.raises(ModelRefused, match=reason):
        scan(path)
    assert time.monotonic() - started < 2


def test_thirty_functions_that_double(folder: Path) -> None:
    model = hostile.functions(30)
    assert model.ByteSize() < 6000
    refused_quickly(model, folder, "expands to more than")


@pytest.mark.parametrize("n", [1200, 5000])
def test_more_nodes_than_a_float_can_count(n: int, folder: Path) -> None:
    """Regression: 2^1200 has no float, and naming it was an OverflowError."""
    refused_quickly(hostile.functions(n), folder, "expands to more than")


def test_a_bomb_whose_innermost_function_is_empty(folder: Path) -> None:
    """Regression: nothing, called 2^30 times, was counted as nothing."""
    refused_quickly(hostile.functions(30, first=[]), folder, "expands to more than")


def test_a_bomb_behind_an_overload(folder: Path) -> None:
    """Regression: functions were told apart by domain and name alone, so that the last overload hid the others."""
    model = hostile.functions(30)
    decoy = model.functions.add()
    decoy.CopyFrom(model.functions[0])
    decoy.name, decoy.overload = "F29", "decoy"
    refused_quickly(model, folder, "expands to more than")


def test_a_bomb_inside_a_subgraph(folder: Path) -> None:
    model = hostile.functions(30)
    call = model.graph.node.pop(0)
    branch = helper.make_graph([call], "branch", [], [helper.make_tensor_value_info("unused", 1, None)])
    model.graph.node.insert(0, node("If", ["which"], ["u"], then_branch=branch, else_branch=branch))
    refused_quickly(model, folder, "expands to more than")


def test_functions_in_a_circle(folder: Path) -> None:
    model = hostile.functions(3)
    model.functions[0].node.append(node("F2", ["a"], ["b"], domain="local"))
    refused_quickly(model, folder, "in a circle")


def test_a_function_that_calls_itself_from_a_branch(folder: Path) -> None:
    model = hostile.functions(1)
    branch = helper.make_graph([node("F0", ["a"], ["b"], domain="local")], "branch", [], [helper.make_tensor_value_info("b", 1, None)])
    model.functions[0].node.append(node("If", ["a"], ["c"], then_branch=branch, else_branch=branch))
    refused_quickly(model, folder, "in a circle")


def test_a_function_defined_twice(folder: Path) -> None:
    """Regression: the last definition was counted, whichever a runtime takes."""
    model = hostile.functions(30)
    model.functions.add().CopyFrom(model.functions[0])
    model.functions[-1].name = "F29"
    refused_quickly(model, folder, "twice")


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_function_that_calls_itself_a_standard_operator(domain: str, folder: Path) -> None:
    """Regression: `ai.onnx` and the empty domain are one to a runtime and were two to the count."""
    model = hostile.functions(2)
    model.functions[0].domain = domain
    refused_quickly(model, folder, "among the standard operators")


def test_functions_that_stay_small_pass(folder: Path) -> None:
    model = hostile.functions(8)
    check_expansion(model)
    assert all(check.outcome == "passed" for check in scan(tiny.save(model, folder)).checks)


@pytest.mark.parametrize(("more", "passes"), [(0, True), (1, False)])
def test_the_limit_is_exact(more: int, passes: bool) -> None:
    model = tiny.model([])
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "F", ["a"], ["o"], [node("Relu", ["a"], ["o"])] * 999, imports))
    model.graph.node.extend([node("F", ["x"], ["y"], domain="local")] * (MOST_NODES // 1000))
    model.graph.node.extend([node("Relu", ["x"], ["z"])] * more)
    if passes:
        check_expansion(model)
    else:
        with pytest.raises(ModelRefused):
            check_expansion(model)
