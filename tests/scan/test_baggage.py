"""What no classifier needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tiny
from onnx import helper

from pipeline.findings import Severity
from pipeline.scan import scan
from pipeline.scan.baggage import MOST_TEXT

LONG = "A" * (MOST_TEXT + 1)
PLACES: dict[str, Callable[[onnx.ModelProto, str], object]] = {
    "metadata": lambda model, text: model.metadata_props.add(key="k", value=text),
    "a metadata key": lambda model, text: model.metadata_props.add(key=text, value=""),
    "the model's note": lambda model, text: setattr(model, "doc_string", text),
    "the graph's note": lambda model, text: setattr(model.graph, "doc_string", text),
    "the graph's metadata": lambda model, text: model.graph.metadata_props.add(key="k", value=text),
    "a node's note": lambda model, text: setattr(model.graph.node[0], "doc_string", text),
    "a weight's note": lambda model, text: setattr(model.graph.initializer[0], "doc_string", text),
    "an input's note": lambda model, text: setattr(model.graph.input[0], "doc_string", text),
    "an attribute's note": lambda model, text: setattr(model.graph.node[0].attribute[0], "doc_string", text),
    "a function's note": lambda model, text: model.functions.add(name="F", domain="local", doc_string=text),
}


@pytest.mark.parametrize("place", PLACES)
def test_megabytes_of_text_are_remarked_wherever_they_lie(place: str, folder: Path) -> None:
    for text, rules in (("a page of notes\n" * 100, []), (LONG, ["file.oversized-text"])):
        model = tiny.classifier()
        PLACES[place](model, text)
        assert [finding.rule for finding in scan(tiny.save(model, folder)).findings] == rules


def test_training_graphs_are_remarked(folder: Path) -> None:
    model = tiny.classifier()
    model.training_info.add().algorithm.node.append(helper.make_node("Relu", ["x"], ["z"]))
    (finding,) = scan(tiny.save(model, folder)).findings
    assert (finding.rule, finding.severity) == ("file.training-info", Severity.MEDIUM)
