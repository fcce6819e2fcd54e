"""The scan as a whole: whatever the bytes, a result or a typed refusal; and an error is no pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hostile
import numpy as np
import onnx
import pytest
import tiny
from onnx import helper

import pipeline.scan
from pipeline.errors import AuditError, ModelRefused
from pipeline.findings import Finding, Outcome
from pipeline.results import ScanResult
from pipeline.scan import CHECKS, scan


def test_a_plain_classifier_passes_every_check(folder: Path) -> None:
    result = scan(tiny.save(tiny.classifier(), folder))
    assert result.findings == []
    assert {check.name for check in result.checks} == {"file.opens", "file.interface", *CHECKS}
    assert {check.outcome for check in result.checks} == {Outcome.PASSED}


def samples() -> list[bytes]:
    models = [tiny.classifier(), hostile.functions(4), *(hostile.hidden(helper.make_tensor("k", 1, (2,), [1, 2]), place) for place in hostile.PLACES)]
    return [model.SerializeToString() for model in models]


def test_damaged_files_end_in_a_result_or_a_typed_error(folder: Path) -> None:
    random = np.random.default_rng(0)
    path = folder / "model.onnx"
    results, refused = 0, 0
    originals = samples()
    for row in range(800):
        content = bytearray(originals[row % len(originals)])
        for _ in range(random.integers(1, 4)):
            place = random.integers(len(content))
            match random.integers(4):
                case 0:
                    content[place] ^= 1 << random.integers(8)
                case 1:
                    content[place] = random.integers(256)
                case 2:
                    del content[place : place + random.integers(1, 8)]
                case _:
                    content[place:place] = random.bytes(random.integers(1, 8))
        path.write_bytes(content)
        try:
            result = scan(path)
        except ModelRefused as error:
            refused += 1
            assert str(error).isprintable()
        else:
            results += 1
            assert ScanResult.model_validate_json(result.model_dump_json()) == result
            assert all(text.isprintable() for text in (result.model.producer, result.model.input_name, *result.model.output_names, *result.model.operators))
    assert results > 100 and refused > 100  # both ends were tried


def test_no_name_comes_out_unprintable(folder: Path) -> None:
    evil = "\x1b]0;owned\x07\u202e\n\t\u2028<script>"
    model = tiny.classifier()
    model.producer_name = model.graph.name = model.doc_string = evil
    for message in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        message.name = evil + message.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [evil + name for name in names]
    model.graph.node[1].op_type = evil
    model.graph.initializer[0].raw_data = np.full((6, 3, 3, 3), np.nan, np.float32).tobytes()
    model.metadata_props.add(key=evil, value=evil * 100_000)
    result = scan(tiny.save(model, folder))
    assert len(result.findings) == 2

    def strings(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from (key, *strings(item))
        elif isinstance(value, list):
            for item in value:
                yield from strings(item)
        elif isinstance(value, str):
            yield value

    assert all(text.isprintable() for text in strings(result.model_dump(mode="json")))


def test_a_check_that_stumbles_has_not_passed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumbles(model: onnx.ModelProto, folder: Path) -> Iterator[Finding]:
        yield from ()
        raise KeyError("\x1b[31m")

    monkeypatch.setitem(pipeline.scan.CHECKS, "file.baggage", stumbles)
    result = scan(tiny.save(tiny.classifier(), folder))
    check = next(check for check in result.checks if check.name == "file.baggage")
    assert check.outcome == Outcome.ERRORED
    assert check.note.startswith("KeyError") and check.note.isprintable()


def test_a_refusal_inside_a_check_is_a_refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(model: onnx.ModelProto, folder: Path) -> Iterator[Finding]:
        raise ModelRefused("no")
        yield

    monkeypatch.setitem(pipeline.scan.CHECKS, "file.baggage", refuses)
    with pytest.raises(AuditError, match="no"):
        scan(tiny.save(tiny.classifier(), folder))
