"""Write back changes what it says, and nothing else: the proof is tried on files that break the promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from pipeline.convert.write_back import differences, weights_of, write_back
from pipeline.errors import Defect, StageFailed

W = tiny.values(6, 3, 3, 3)


def altered(path: Path, change: Callable[[onnx.ModelProto], object], name: str = "altered.onnx") -> Path:
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    (path.parent / name).write_bytes(model.SerializeToString())
    return path.parent / name


def test_other_values(folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder)
    before = path.read_bytes()
    files, changes = write_back(path, ["model.onnx"], {"W": W * 0.05, "F": tiny.values(4, 6)}, folder / "out")
    assert path.read_bytes() == before
    (change,) = changes
    assert (change.name, change.operator, change.parameters, change.zeroed) == ("W", "Conv", W.size, 1.0)
    assert change.relative_change == pytest.approx(0.95)
    written = weights_of(onnx.load(str(files["model.onnx"])))
    assert np.array_equal(numpy_helper.to_array(written["W"]), W * np.float32(0.05))
    assert differences(path, files["model.onnx"]) == ["W"]


@pytest.mark.parametrize("value", [W[:5], W.T, np.full_like(W, np.nan), np.full_like(W, np.inf)], ids=["short", "transposed", "nan", "inf"])
def test_values_that_do_not_fit_are_refused(value: np.ndarray, folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder)
    with pytest.raises(StageFailed, match=r"\(6, 3, 3, 3\)"):
        write_back(path, ["model.onnx"], {"W": value}, folder / "out")


def test_a_name_that_is_not_there_is_refused_in_printable_words(folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder)
    with pytest.raises(StageFailed, match="to write to") as caught:
        write_back(path, ["model.onnx"], {"\x1b[31m": W}, folder / "out")
    assert str(caught.value).isprintable()


def test_values_too_large_for_the_stored_type_are_refused(folder: Path) -> None:
    model = tiny.classifier()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(W.astype(np.float16), "W"))
    path = tiny.save(model, folder)
    with pytest.raises(StageFailed, match="not finite in float16"):
        write_back(path, ["model.onnx"], {"W": np.full_like(W, 1e6)}, folder / "out")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("raw", [True, False])
def test_numbers_stay_where_the_vendor_kept_them(kind: type, raw: bool, folder: Path) -> None:
    model = tiny.classifier()
    numbers = W.astype(kind)
    tensor = numpy_helper.from_array(numbers, "W")
    if not raw:
        tensor = helper.make_tensor("W", tensor.data_type, W.shape, numbers.ravel().tolist())
    model.graph.initializer[0].CopyFrom(tensor)
    path = tiny.save(model, folder)
    files, _ = write_back(path, ["model.onnx"], {"W": W * 2}, folder / "out")
    written = weights_of(onnx.load(str(files["model.onnx"])))["W"]
    assert np.array_equal(numpy_helper.to_array(written), (W * 2).astype(kind))
    assert written.data_type == tensor.data_type
    if kind is not np.float16:  # whose numbers lie in int32_data when they are not raw
        assert written.HasField("raw_data") == raw


def test_metadata_and_what_nobody_knows_stay(folder: Path) -> None:
    model = tiny.classifier()
    helper.set_model_props(model, {"vendor": "\N{SNOWMAN}"})
    model.doc_string = "as submitted"
    path = tiny.save(model, folder)
    path.write_bytes(path.read_bytes() + b"\xfa\x3f\x05extra")  # field 1023, which onnx does not have
    files, _ = write_back(path, ["model.onnx"], {"W": W * 2}, folder / "out")
    written = files["model.onnx"].read_bytes()
    assert b"extra" in written
    assert onnx.load_model_from_string(written).metadata_props[0].value == "\N{SNOWMAN}"


TAMPERINGS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "a node's attribute": lambda model: model.graph.node[0].attribute[0].ints.__setitem__(0, 2),
    "an operator": lambda model: setattr(model.graph.node[1], "op_type", "Elu"),
    "one more node": lambda model: model.graph.node.append(helper.make_node("Identity", ["y"], ["z"])),
    "metadata": lambda model: helper.set_model_props(model, {"a": "b"}),
    "the opset": lambda model: setattr(model.opset_import[0], "version", 16),
    "the batch axis": lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1),
    "a weight's name": lambda model: setattr(model.graph.initializer[0], "name", "V"),
    "a weight's note": lambda model: setattr(model.graph.initializer[0], "doc_string", "V"),
    "one weight more": lambda model: model.graph.initializer.append(numpy_helper.from_array(W, "more")),
    "two weights' order": lambda model: model.graph.initializer.reverse(),
    "a field that onnx does not have": lambda model: model.MergeFromString(b"\xfa\x3f\x05extra"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_any_other_change_is_a_defect(name: str, folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder)
    assert differences(path, altered(path, lambda model: None)) == []
    with pytest.raises(Defect):
        differences(path, altered(path, TAMPERINGS[name]))


@pytest.mark.parametrize("shape", [(6, 27), (3, 6, 3, 3)])
def test_another_shape_is_a_defect(shape: tuple[int, ...], folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder)
    with pytest.raises(Defect):
        differences(path, altered(path, lambda model: model.graph.initializer[0].CopyFrom(numpy_helper.from_array(W.reshape(shape), "W"))))


def test_a_second_changed_weight_is_named(folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder)
    other = altered(path, lambda model: model.graph.initializer[1].CopyFrom(numpy_helper.from_array(tiny.values(6, seed=4), "b")))
    assert differences(path, other) == ["b"]


def test_write_back_catches_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tiny.classifier(), folder)

    def clumsy(tensor: TensorProto, value: np.ndarray, folder: Path) -> None:
        tensor.raw_data = (value * 2).tobytes()

    monkeypatch.setattr("pipeline.convert.write_back._replace", clumsy)
    with pytest.raises(Defect, match="other values"):
        write_back(path, ["model.onnx"], {"W": W * 3}, folder / "out")
    monkeypatch.setattr("pipeline.convert.write_back._replace", lambda *_: None)
    with pytest.raises(Defect, match="was to change"):
        write_back(path, ["model.onnx"], {"W": W * 3}, folder / "out")


def test_external_data_alone_is_rewritten(folder: Path) -> None:
    path = tiny.save(tiny.classifier(), folder, external=True)
    before = (folder / "model.bin").read_bytes()
    files, changes = write_back(path, ["model.onnx", "model.bin"], {"b": tiny.values(6, seed=2)}, folder / "out")
    assert [change.name for change in changes] == ["b"]
    assert files["model.onnx"].read_bytes() == path.read_bytes()
    after = files["model.bin"].read_bytes()
    assert len(after) == len(before)
    assert 0 < sum(one != other for one, other in zip(before, after, strict=True)) <= 6 * 4
    assert (folder / "model.bin").read_bytes() == before


def test_external_tensors_that_share_bytes_cannot_part(folder: Path) -> None:
    """Regression: the second write overwrote the first, both names were announced, and the proof held."""
    nodes = [helper.make_node("Conv", ["x", "A"], ["a"]), helper.make_node("Conv", ["x", "B"], ["b"]), helper.make_node("Add", ["a", "b"], ["c"]),
             helper.make_node("GlobalAveragePool", ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]  # fmt: skip
    kernel = tiny.values(4, 3, 3, 3)
    path = tiny.save(tiny.model(nodes, {"A": kernel, "B": kernel}), folder, external=True)

    def tie(model: onnx.ModelProto) -> None:
        for entry in model.graph.initializer[1].external_data:
            if entry.key == "offset":
                entry.value = "0"

    tied = altered(path, tie, "model.onnx")
    with pytest.raises(StageFailed, match="shares its bytes"):
        write_back(tied, ["model.onnx", "model.bin"], {"A": kernel * 2, "B": kernel * 3}, folder / "out")
    assert write_back(tied, ["model.onnx", "model.bin"], {"A": kernel, "B": kernel}, folder / "out")[1] == []
