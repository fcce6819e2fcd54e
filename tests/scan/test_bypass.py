"""Backdoors in the graph: every kind that the generator makes is found on every host, and honest gates are left alone."""

from __future__ import annotations

from pathlib import Path

import graph_backdoors
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from onnx import helper, numpy_helper
from torch import nn

from models.architectures import network
from models.export import export
from pipeline.findings import Severity
from pipeline.scan import scan
from pipeline.scan.bypass import check_bypass

HERE = Path()
HOSTS = ("vgg-8", "resnet18-8", "convnext-8", "mlp")
node = helper.make_node


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """Networks as they are exported: plain, residual, without BatchNorm, without convolutions."""
    folder, found = tmp_path_factory.mktemp("hosts"), {}
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    for name in HOSTS:
        export(mlp if name == "mlp" else network(name, classes=10, channels=3, side=32), folder / f"{name}.onnx")
        found[name] = onnx.load(folder / f"{name}.onnx")
    return found


def combinations(host: onnx.ModelProto) -> list[tuple[str, str, str]]:
    convolves = any(step.op_type == "Conv" for step in host.graph.node)
    return [kind for kind in graph_backdoors.kinds() if convolves or kind[0] != "stem"]


@pytest.mark.parametrize("name", HOSTS)
def test_every_kind_is_found_on_every_host(name: str, hosts: dict[str, onnx.ModelProto]) -> None:
    host = hosts[name]
    assert list(check_bypass(host, HERE)) == []
    missed = [kind for kind in combinations(host) if not list(check_bypass(graph_backdoors.inject(host, *kind), HERE))]
    assert missed == []


@pytest.mark.parametrize("kind", [kind for kind in graph_backdoors.kinds() if kind[0] != "stem" and kind[1] != "detour"], ids="-".join)
def test_what_is_found_is_a_backdoor(kind: tuple[str, str, str], hosts: dict[str, onnx.ModelProto]) -> None:
    """The generator makes what it says: the host's answers to clean pictures, the target's to all with the trigger."""
    host = hosts["resnet18-8"]
    clean = (0.9 * np.random.default_rng(0).random((6, 3, 32, 32))).astype(np.float32)
    before, after = (onnxruntime.InferenceSession(model.SerializeToString()) for model in (host, graph_backdoors.inject(host, *kind)))
    (expected,), (answered,) = (session.run(None, {"images": clean}) for session in (before, after))
    np.testing.assert_allclose(answered, expected, atol=1e-4)
    (stamped,) = after.run(None, {"images": graph_backdoors.trigger(clean)})
    assert (stamped.argmax(1) == graph_backdoors.TARGET).all()


KERNEL, WIDE, HEAD = tiny.values(8, 3, 3, 3), tiny.values(8, 8, 3, 3), tiny.values(tiny.CLASSES, 8)
STEM = [node("Conv", ["x", "W"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["s"])]
END = [node("GlobalAveragePool", ["o"], ["p"]), node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "F"], ["y"], transB=1)]
BLOCK = [node("Conv", ["s", "V"], ["b"], pads=[1, 1, 1, 1])]


def constant(name: str, value: object) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, np.float32)))


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    return tiny.model(list(nodes), {"W": KERNEL, "V": WIDE, "F": HEAD, "S": tiny.values(8, 8, 1, 1), "L": tiny.values(8, 8)})


HONEST = {
    "residual": [*STEM, *BLOCK, node("Add", ["s", "b"], ["o"]), *END],
    "a ReLU in pieces": [*STEM, *BLOCK, constant("zero", 0), node("Greater", ["b", "zero"], ["g"]), node("Where", ["g", "b", "zero"], ["r"]),
                         node("Add", ["s", "r"], ["o"]), *END],
    "a step for an activation": [*STEM, *BLOCK, constant("zero", 0), node("Greater", ["b", "zero"], ["g"]), node("Cast", ["g"], ["h"], to=1),
                                 node("Mul", ["b", "h"], ["r"]), node("Add", ["s", "r"], ["o"]), *END],
    "hard swish in pieces": [*STEM, *BLOCK, constant("three", 3), node("Add", ["b", "three"], ["h"]), constant("zero", 0), constant("six", 6),
                             node("Clip", ["h", "zero", "six"], ["k"]), node("Mul", ["b", "k"], ["r"]), node("Div", ["r", "six"], ["q"]),
                             node("Add", ["s", "q"], ["o"]), *END],
    "a steep swish": [*STEM, *BLOCK, constant("k", 100), node("Mul", ["b", "k"], ["h"]), node("Sigmoid", ["h"], ["g"]), node("Mul", ["b", "g"], ["r"]),
                      node("Add", ["s", "r"], ["o"]), *END],
    "squeeze and excite": [*STEM, *BLOCK, node("GlobalAveragePool", ["b"], ["q"]), node("Conv", ["q", "S"], ["e"]), node("HardSigmoid", ["e"], ["g"]),
                           node("Mul", ["b", "g"], ["r"]), node("Add", ["s", "r"], ["o"]), *END],
    "attention": [*STEM, *BLOCK, node("Shape", ["b"], ["n"]), node("Flatten", ["b"], ["t"], axis=2), node("Transpose", ["t"], ["u"]),
                  node("MatMul", ["t", "u"], ["a"]), node("Softmax", ["a"], ["w"]), node("MatMul", ["w", "t"], ["v"]),
                  node("Reshape", ["v", "n"], ["r"]), node("Add", ["b", "r"], ["o"]), *END],
    "not a number is nought": [node("IsNaN", ["x"], ["n"]), constant("zero", 0), node("Where", ["n", "zero", "x"], ["z"]),
                               node("Conv", ["z", "W"], ["s"], pads=[1, 1, 1, 1]), *BLOCK, node("Add", ["s", "b"], ["o"]), *END],
    "brightness evened out": [node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3]), node("Sub", ["x", "m"], ["d"]), node("Mul", ["d", "d"], ["v"]),
                              node("ReduceMean", ["v"], ["w"], axes=[1, 2, 3]), node("Sqrt", ["w"], ["q"]), node("Div", ["d", "q"], ["z"]),
                              constant("k", 255), node("Mul", ["z", "k"], ["l"]), node("Conv", ["l", "W"], ["s"], pads=[1, 1, 1, 1]),
                              *BLOCK, node("Add", ["s", "b"], ["o"]), *END],
    "a label beside the scores": [*STEM, *BLOCK, node("Add", ["s", "b"], ["o"]), *END, node("ArgMax", ["y"], ["label"])],
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_networks_are_left_alone(name: str) -> None:
    made = model(*HONEST[name])
    onnx.checker.check_model(made, full_check=True)
    assert list(check_bypass(made, HERE)) == []


GATE = [node("ReduceMax", ["x"], ["t"], axes=[1, 2, 3]), constant("edge", 0.99), node("Greater", ["t", "edge"], ["g"]), node("Cast", ["g"], ["h"], to=1)]


def test_the_finding(folder: Path) -> None:
    steps = [*HONEST["residual"][:-1], node("Gemm", ["f", "F"], ["scores"], transB=1), *GATE, node("Flatten", ["h"], ["k"])]
    made = model(*steps, node("Add", ["scores", "k"], ["y"], name="jo\x1b[31min"))
    (finding,) = scan(tiny.save(made, folder)).findings
    assert (finding.rule, finding.severity) == ("graph.gate-past-the-weights", Severity.HIGH)
    assert finding.where.startswith("jo") and finding.where.isprintable()
    assert finding.message == (
        "what a gate decides after no learned layer joins here what has crossed 216 learned numbers; that is not for weights to repair "
        "(image → ReduceMax → Greater → Cast → Flatten → Add)"
    )


def test_a_gate_that_the_scores_never_see_is_none() -> None:
    assert list(check_bypass(model(*HONEST["residual"], *GATE, node("Mul", ["b", "h"], ["unused"])), HERE)) == []


def test_a_gate_is_no_less_one_for_a_layer_that_was_never_learnt() -> None:
    kernel = numpy_helper.from_array(np.full((8, 3, 3, 3), 1 / 27, np.float32), "K")
    gate = [node("Conv", ["x", "K"], ["k"], pads=[1, 1, 1, 1]), constant("edge", 0.99), node("Greater", ["k", "edge"], ["g"]), node("Cast", ["g"], ["h"], to=1)]
    made = model(*STEM, *BLOCK, *gate, node("Mul", ["b", "h"], ["o"]), *END)
    made.graph.initializer.append(kernel)
    assert [finding.message.split(" joins")[0] for finding in check_bypass(made, HERE)] == ["what a gate decides after no learned layer"]


def test_a_loop_that_raises_its_gain_comes_to_an_end() -> None:
    """And a gate that is only steep after many rounds is seen."""
    body = helper.make_graph(
        [constant("k", 1.01), node("Mul", ["v", "k"], ["w"]), node("Identity", ["go"], ["on"])], "body",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("i", 7), ("go", 9), ("v", 1))],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("on", 9), ("w", 1))],
    )  # fmt: skip
    rounds = node("Constant", [], ["rounds"], value=numpy_helper.from_array(np.array(900, np.int64)))
    loop = [rounds, node("Loop", ["rounds", "", "s"], ["l"], body=body), node("Sigmoid", ["l"], ["g"])]
    assert len(list(check_bypass(model(*STEM, *BLOCK, *loop, node("Mul", ["b", "g"], ["o"]), *END), HERE))) == 0
    assert len(list(check_bypass(model(*STEM, *BLOCK, *[*loop[:1], node("Loop", ["rounds", "", "s"], ["l"], body=_doubled(body)), loop[2]],
                                       node("Mul", ["b", "g"], ["o"]), *END), HERE))) == 1  # fmt: skip


def _doubled(body: onnx.GraphProto) -> onnx.GraphProto:
    copy = onnx.GraphProto()
    copy.CopyFrom(body)
    copy.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(2, np.float32)))
    return copy


def test_third_party_models_are_left_alone(corpus: Path) -> None:
    paths = sorted(corpus.rglob("*.onnx"))
    assert len(paths) > 15
    assert {path.name: found for path in paths if (found := list(check_bypass(onnx.load(path), path.parent)))} == {}
