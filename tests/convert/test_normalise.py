"""The copy for the converter: what it keeps, what it cuts off, what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from forms import FORMS
from onnx import helper

from pipeline.convert.normalise import normalise
from pipeline.convert.to_torch import convert
from pipeline.errors import ConversionFailed
from pipeline.scan import scan

node = helper.make_node


def test_the_file_is_left_alone_and_names_do_not_reach_the_copy(folder: Path) -> None:
    model = tiny.classifier()
    for row, each in enumerate(model.graph.node):
        each.name = f"import os; os.system('true') # {row}"
    path = tiny.save(model, folder)
    before = path.read_bytes()
    copy, head = normalise(path)
    assert path.read_bytes() == before
    assert head is None
    assert [each.name for each in copy.graph.node] == ["n0", "n1", "n2", "n3", "n4"]
    assert {tensor.name for tensor in copy.graph.initializer} == {"W", "b", "F", "fb"}


@pytest.mark.parametrize(("name", "head"), [("Softmax", "Softmax"), ("Softmax of opset 11", "Softmax"), ("LogSoftmax", "LogSoftmax"), ("conv", None)])
def test_a_head_over_the_classes_is_cut(name: str, head: str | None, folder: Path) -> None:
    copy, cut = normalise(tiny.save(FORMS[name].model, folder))
    assert cut == head
    assert copy.graph.node[-1].op_type == "Gemm"


def test_a_softmax_over_something_else_stays(folder: Path) -> None:
    nodes = [node("Conv", ["x", "W"], ["c"]), node("GlobalAveragePool", ["c"], ["p"]), node("Softmax", ["p"], ["y"], axis=2)]
    copy, cut = normalise(tiny.save(tiny.model(nodes, {"W": tiny.values(4, 3, 3, 3)}, outputs={"y": ("N", 4, 1, 1)}), folder))
    assert cut is None
    assert copy.graph.node[-1].op_type == "Softmax"


def test_the_output_that_is_asked_for(folder: Path) -> None:
    path = tiny.save(FORMS["two outputs"].model, folder)
    assert [value.name for value in normalise(path)[0].graph.output] == ["y"]
    assert [value.name for value in normalise(path, output="f")[0].graph.output] == ["f"]
    with pytest.raises(ConversionFailed, match="no output 'nothing'"):
        normalise(path, output="nothing")


def test_what_cannot_be_converted_is_said_in_printable_words(folder: Path) -> None:
    odd = tiny.model([node("Conv", ["x", "W"], ["c"]), node("Sh\x1b[31mape", ["c"], ["y"])], {"W": tiny.values(4, 3, 3, 3)})
    path = tiny.save(odd, folder)
    with pytest.raises(ConversionFailed) as caught:
        convert(path, tiny.READING, scan(path).model)
    assert str(caught.value).isprintable()


def test_external_data_that_is_gone(folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder, external=True)
    (folder / "model.bin").unlink()
    with pytest.raises(ConversionFailed):
        normalise(path)


def test_external_data_is_taken_in(folder: Path) -> None:
    copy, _ = normalise(tiny.save(tiny.classifier(), folder, external=True))
    assert all(np.frombuffer(tensor.raw_data, np.float32).size == np.prod(tensor.dims) for tensor in copy.graph.initializer)
