"""Gates exposed, held and cut out: on copies, with every other node and weight as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.convert.cut import cut, exposed, held

node = helper.make_node


def gated(*, kind: type = np.float32, captured: bool = False) -> onnx.ModelProto:
    """A classifier whose scores get 9 added to class 1 where a pixel is above 0.99; the gate `g` is a float, or a boolean."""
    model = tiny.classifier()
    model.graph.node[-1].output[0] = "scores"
    boolean = kind == np.bool_
    steps = [node("ReduceMax", ["x"], ["top"], axes=[1, 2, 3], keepdims=0), node("Unsqueeze", ["top", "one"], ["t"]),
             node("Greater", ["t", "edge"], ["g" if boolean else "bright"])]  # fmt: skip
    steps += [] if boolean else [node("Cast", ["bright"], ["g"], to=1)]
    steps += [node("Cast", ["g"], ["h"], to=1), node("Mul", ["h", "row"], ["m"])]
    if captured:
        branch = {
            key: helper.make_graph([node("Add", ["scores", "m"], [f"{key}_y"])], key, [], [helper.make_tensor_value_info(f"{key}_y", 1, None)])
            for key in ("then_branch", "else_branch")
        }
        steps += [node("If", ["always"], ["y"], **branch)]
    else:
        steps += [node("Add", ["scores", "m"], ["y"])]
    model.graph.node.extend(steps)
    for name, value in {"edge": np.float32(0.99), "one": np.array([1], np.int64), "row": np.float32([[0, 9, 0, 0]]), "always": np.array(True)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model)
    return model


def answers(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[Any]:
    return list(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x}))


X = np.random.default_rng(0).random((5, 3, 8, 8)).astype(np.float32) * np.array([1, 0.9, 1, 0.9, 0.9], np.float32).reshape(5, 1, 1, 1)
X[0, 0, 0, 0] = X[2, 0, 0, 0] = 1.0
PLAIN = answers(tiny.classifier(), X)[0]
ROW = np.float32([0, 9, 0, 0])


def test_a_value_is_exposed() -> None:
    submitted = gated()
    scores, gate = answers(exposed(submitted, ["g", "y"]), X)
    assert gate.ravel().tolist() == [1, 0, 1, 0, 0] and len(submitted.graph.output) == 1
    np.testing.assert_allclose(scores, answers(submitted, X)[0])


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.bool_])
@pytest.mark.parametrize("side", [0, 1])
def test_a_gate_is_held(kind: type, side: int, captured: bool) -> None:
    submitted = gated(kind=kind, captured=captured)
    before = submitted.SerializeToString()
    constant = np.full((1, 1), side).astype(kind)
    expected = PLAIN + side * ROW
    np.testing.assert_allclose(answers(held(submitted, {"g": constant}), X)[0], expected, rtol=1e-5)
    made, removed = cut(submitted, {"g": constant})
    np.testing.assert_allclose(answers(made, X)[0], expected, rtol=1e-5)
    assert removed == (3 if kind == np.bool_ else 4) and "ReduceMax" not in {step.op_type for step in made.graph.node}
    assert submitted.SerializeToString() == before, "the submitted model stays as it is"


def test_what_others_need_stays() -> None:
    """And what nobody needs any more goes, with its weights; the rest is where and what it was."""
    submitted = gated()
    made, _ = cut(submitted, {"g": np.zeros((1, 1), np.float32)})
    onnx.checker.check_model(made, full_check=True)
    names = {tensor.name for tensor in made.graph.initializer}
    assert {"W", "b", "F", "fb", "row", "g"} <= names and not {"edge", "one"} & names
    kept = [step.SerializeToString() for step in submitted.graph.node]
    assert [step.SerializeToString() for step in made.graph.node] == [one for one in kept if one in {step.SerializeToString() for step in made.graph.node}]


def test_names_are_made_that_nothing_has() -> None:
    submitted = gated()
    submitted.graph.node.append(node("Identity", ["y"], ["g_free"]))
    submitted.graph.initializer.append(numpy_helper.from_array(np.float32(1), "g_held"))
    made = held(submitted, {"g": np.ones((1, 1), np.float32)})
    onnx.checker.check_model(made)
    np.testing.assert_allclose(answers(made, X)[0], PLAIN + ROW, rtol=1e-5)


def test_a_value_that_no_node_makes() -> None:
    with pytest.raises(KeyError, match="no node of the main graph makes 'x'"):
        held(gated(), {"x": np.ones((1, 1), np.float32)})
