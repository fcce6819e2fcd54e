"""Tensors that are not what they declare, and numbers that are none."""

from __future__ import annotations

from pathlib import Path

import hostile
import numpy as np
import onnx
import pytest
import tiny
from hostile import KERNEL
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ModelRefused
from pipeline.findings import Outcome, Severity
from pipeline.scan import scan
from pipeline.scan.weights import check_finite

FLOAT = TensorProto.FLOAT
HUGE = 2**40


def raw(dims: tuple[int, ...], content: bytes = b"", kind: int = FLOAT) -> TensorProto:
    return TensorProto(name="W", data_type=kind, dims=dims, raw_data=content)


REFUSED: dict[str, tuple[TensorProto, str]] = {
    "a negative dimension": (raw((4, -3), bytes(48)), "negative dimension"),
    "two negative dimensions": (raw((-4, -3), bytes(48)), "negative dimension"),
    "less raw data than declared": (raw(KERNEL.shape, KERNEL.tobytes()[:-1]), "declares 432 bytes and 431 are stored"),
    "more raw data than declared": (raw(KERNEL.shape, KERNEL.tobytes() + b"x"), "declares 432 bytes and 433 are stored"),
    "a terabyte of nothing": (raw((HUGE,), b""), "more than 8 GiB"),
    "an overflowing product": (raw((2**62,) * 6, b""), "more than 8 GiB"),
    "a product beyond floats": (raw((2**62,) * 40, b""), "more than 8 GiB"),
    "float_data too short": (TensorProto(name="W", data_type=FLOAT, dims=(2, 2), float_data=[1.0]), "declares 16 bytes and 4 are stored"),
    "no data at all": (TensorProto(name="W", data_type=FLOAT, dims=(1000, 1000)), "declares 4000000 bytes and 0 are stored"),
    "half floats too short": (TensorProto(name="W", data_type=TensorProto.FLOAT16, dims=(4,), int32_data=[1, 2, 3]), "declares 8 bytes and 6 are stored"),
    "an unknown type": (raw((1,), b"1234", kind=999), "unknown type 999"),
    "an undefined type": (raw((1,), b"1234", kind=0), "unknown type 0"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("place", ["initializer", "Constant", "subgraph", "function", "default of a function's attribute"])
def test_tensors_that_lie_are_refused(name: str, place: str, folder: Path) -> None:
    tensor, reason = REFUSED[name]
    with pytest.raises(ModelRefused, match=reason):
        scan(tiny.save(hostile.hidden(tensor, place), folder))


HONEST = {
    "raw": numpy_helper.from_array(KERNEL, "W"),
    "empty": raw((0, 3)),
    "a scalar": raw((), bytes(4)),
    "float_data": helper.make_tensor("W", FLOAT, (2, 2), [1.0, 2.0, 3.0, 4.0]),
    "half floats": helper.make_tensor("W", TensorProto.FLOAT16, (3,), [1.0, 2.0, 3.0]),
    "bfloat16": helper.make_tensor("W", TensorProto.BFLOAT16, (3,), [1.0, 2.0, 3.0]),
    "doubles": helper.make_tensor("W", TensorProto.DOUBLE, (3,), [1.0, 2.0, 3.0]),
    "complex": helper.make_tensor("W", TensorProto.COMPLEX64, (2,), [1 + 2j, 3 + 4j]),
    "bytes": helper.make_tensor("W", TensorProto.INT8, (3,), [1, 2, 3]),
    "booleans": helper.make_tensor("W", TensorProto.BOOL, (3,), [True, False, True]),
    "four bits": helper.make_tensor("W", TensorProto.INT4, (3,), [1, 2, 3]),
    "strings": helper.make_tensor("W", TensorProto.STRING, (2,), [b"a", b"b"]),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("place", ["initializer", "Constant"])
def test_honest_tensors_pass(name: str, place: str, folder: Path) -> None:
    result = scan(tiny.save(hostile.hidden(HONEST[name], place), folder))
    assert result.findings == []
    assert all(check.outcome == Outcome.PASSED for check in result.checks)


def test_many_tensors_together(folder: Path) -> None:
    model = tiny.classifier()
    for row in range(5):
        model.graph.initializer.append(TensorProto(name=f"t{row}", data_type=TensorProto.STRING, dims=(2**30,)))
    scan(tiny.save(model, folder))  # strings are stored one by one, and declare nothing
    model.graph.initializer[-1].CopyFrom(raw((2**31 + 1,)))
    with pytest.raises(ModelRefused, match="more than 8 GiB"):
        scan(tiny.save(model, folder))


@pytest.mark.parametrize("dims", [(HUGE,), (2**62,) * 40, (2**20, 2**20)], ids=str)
@pytest.mark.parametrize("attribute", [False, True])
def test_a_sparse_tensor_is_as_large_as_what_it_stands_for(dims: tuple[int, ...], attribute: bool, folder: Path) -> None:
    """Regression: only the few stored values counted, and the first runtime to fill it in ran out of memory."""
    sparse = onnx.SparseTensorProto(
        values=helper.make_tensor("s", FLOAT, (1,), [1.0]), indices=helper.make_tensor("i", TensorProto.INT64, (1,), [0]), dims=dims
    )
    small = onnx.SparseTensorProto()
    small.CopyFrom(sparse)
    small.dims[:] = [100]
    for one, refused in ((small, False), (sparse, True)):
        model = tiny.classifier()
        if attribute:
            model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], sparse_value=one))
        else:
            model.graph.sparse_initializer.append(one)
        path = tiny.save(model, folder)
        if refused:
            with pytest.raises(ModelRefused, match="sparse"):
                scan(path)
        else:
            assert scan(path).findings == []


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"length": "431"}, "declares 432 bytes and 431 are stored"),
        ({"offset": "100"}, "ends after its file"),
        ({"offset": "-4"}, "no number"),
        ({"length": "-1"}, "no number"),
        ({"offset": "1_0"}, "no number"),
        ({"offset": " 4"}, "no number"),
        ({"offset": "\N{ARABIC-INDIC DIGIT FOUR}"}, "no number"),
        ({"offset": "0x10"}, "no number"),
        ({"length": "1e3"}, "no number"),
        ({"length": ""}, "no number"),
        ({"offset": "9" * 5000}, "no number"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_external_data_that_lies_is_refused(entries: dict[str, str], reason: str, folder: Path) -> None:
    (folder / "w.bin").write_bytes(KERNEL.tobytes())
    path = tiny.save(hostile.with_tensor(hostile.external("W", "w.bin", **entries)), folder)
    with pytest.raises(ModelRefused, match=reason):
        scan(path)


def test_external_data_with_offsets_passes(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(64) + KERNEL.tobytes() + bytes(5))
    path = tiny.save(hostile.with_tensor(hostile.external("W", "w.bin", offset="64")), folder)
    assert scan(path).findings == []


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("external", [False, True])
def test_numbers_that_are_none_are_found(kind: type, bad: float, external: bool, folder: Path) -> None:
    model = tiny.classifier()
    kernel = numpy_helper.to_array(model.graph.initializer[0]).astype(kind)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "W\x1b[31m"))
    assert scan(tiny.save(model, folder, external=external)).findings == []
    kernel = kernel.copy()
    kernel[0, 0, :2, 0] = bad
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "W\x1b[31m"))
    result = scan(tiny.save(model, folder, external=external))
    (finding,) = result.findings
    assert (finding.rule, finding.severity, finding.message) == ("file.non-finite-weights", Severity.HIGH, "2 of 162 values are NaN or infinite")
    assert finding.where.isprintable()
    assert {check.name: check.outcome for check in result.checks}["file.finite-weights"] == Outcome.FAILED


def test_infinite_bounds_and_masks_are_no_finding(tmp_path: Path) -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    nodes = [
        helper.make_node("Gemm", ["x", "W"], ["g"]),
        helper.make_node("Add", ["g", "mask"], ["a"]),
        helper.make_node("Max", ["a", "least"], ["y"]),
    ]
    weights = {"W": tiny.values(4, 4), "mask": mask, "least": np.array(-np.inf, np.float32)}
    assert list(check_finite(tiny.model(nodes, weights, shape=("N", 4)), tmp_path)) == []
    weights["W"][0, 0] = np.inf
    (finding,) = check_finite(tiny.model(nodes, weights, shape=("N", 4)), tmp_path)
    assert finding.where == "W"
