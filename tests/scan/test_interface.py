"""Which models can be audited at all, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tiny
from onnx import TensorProto, helper

from pipeline.errors import ModelRefused
from pipeline.scan import scan
from pipeline.scan.interface import check_interface, facts

node = helper.make_node
Change = Callable[[onnx.ModelProto], object]


def string_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING


def map_output(model: onnx.ModelProto) -> None:
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)))
    model.graph.output[0].type.CopyFrom(kind)


def foreign_in_a_function(model: onnx.ModelProto) -> None:
    body = [node("Attention", ["a"], ["o"], domain="com.microsoft")]
    model.functions.append(helper.make_function("local", "F", ["a"], ["o"], body, [helper.make_opsetid("com.microsoft", 1)]))


REFUSED: dict[str, tuple[Change, str]] = {
    "two inputs": (lambda model: model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.FLOAT, [2])), "2 inputs"),
    "no input": (lambda model: model.graph.ClearField("input"), "0 inputs"),
    "integers in": (lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.UINT8), "a uint8 tensor"),
    "an input without a type": (lambda model: model.graph.input[0].ClearField("type"), "of no type"),
    "an input of one axis": (
        lambda model: model.graph.input[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=[{"dim_value": 3}])),
        "a batch of pictures",
    ),
    "strings out": (string_output, "a string tensor"),
    "a map out": (map_output, "a sequence"),
    "nothing out": (lambda model: model.graph.ClearField("output"), "answers nothing"),
    "a custom domain": (lambda model: setattr(model.graph.node[1], "domain", "com.vendor"), "custom domain 'com.vendor'"),
    "a custom domain in a function": (foreign_in_a_function, "custom domain 'com.microsoft'"),
    "classical machine learning": (lambda model: setattr(model.graph.node[4], "domain", "ai.onnx.ml"), "classical machine-learning pipeline"),
    "an opset of the future": (lambda model: setattr(model.opset_import[0], "version", 9999), "opset 9999"),
    "an opset below 1": (lambda model: setattr(model.opset_import[0], "version", -1), "opset -1"),
    "no opset": (lambda model: setattr(model.opset_import[0], "domain", "com.vendor"), "opset 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str, folder: Path) -> None:
    change, reason = REFUSED[name]
    model = tiny.classifier()
    check_interface(model)  # the benign twin
    change(model)
    with pytest.raises(ModelRefused, match=reason):
        scan(tiny.save(model, folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.graph.node[1], "domain", "\x1b[31mvendor"),
        lambda model: setattr(model.graph.node[1], "domain", "ai.onnx.ml\x1b[31m"),
        lambda model: (setattr(model.graph.node[1], "domain", "ai.onnx.ml"), setattr(model.graph.node[1], "op_type", "\x1b]0;title\x07")),
        lambda model: model.graph.input.append(helper.make_tensor_value_info("\u202eoot\n", TensorProto.FLOAT, [2])),
    ],
)
def test_refusals_are_printable(change: Change) -> None:
    model = tiny.classifier()
    change(model)
    with pytest.raises(ModelRefused) as caught:
        check_interface(model)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("alias", ["", "ai.onnx"])
def test_both_names_of_the_standard_operators(alias: str) -> None:
    model = tiny.classifier()
    model.opset_import[0].domain = alias
    for each in model.graph.node:
        each.domain = alias
    check_interface(model)


def test_weights_listed_as_inputs_are_no_inputs() -> None:
    model = tiny.classifier()
    model.graph.input.extend(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer)
    check_interface(model)
    assert facts(model, sha256="0", size=1).input_name == "x"


def test_local_functions_are_no_custom_operators() -> None:
    model = tiny.classifier()
    model.functions.append(helper.make_function("local", "F", ["a"], ["o"], [node("Relu", ["a"], ["o"])], [helper.make_opsetid("", 17)]))
    model.graph.node.append(node("F", ["y"], ["z"], domain="local"))
    check_interface(model)
    model.graph.node[-1].overload = "other"
    with pytest.raises(ModelRefused, match="custom domain 'local'"):
        check_interface(model)


def test_facts(folder: Path) -> None:
    model = tiny.classifier(shape=(1, 3, 8, "width"))
    model.producer_name, model.producer_version = "torch\x1b[31m", "2"
    model.graph.node.append(node("Constant", [], ["k"], value=helper.make_tensor("", TensorProto.FLOAT, [5], [0.0] * 5)))
    found = scan(tiny.save(model, folder)).model
    assert found.producer.isprintable() and found.producer.endswith(" 2")
    assert found.opset == 17
    assert found.parameters == 6 * 27 + 6 + 24 + 4 + 5
    assert found.nodes == 6
    assert found.operators == {"Constant": 1, "Conv": 1, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1, "Relu": 1}
    assert found.input_shape == [1, 3, 8, None]
    assert (found.output_names, found.output_shapes) == (["y"], [[1, 4]])
    assert found.bytes == (folder / "model.onnx").stat().st_size
