"""Taking a file in: what is no model, and external data that points where it must not."""

from __future__ import annotations

import os
from pathlib import Path

import hostile
import numpy as np
import onnx
import pytest
import tiny
from onnx import numpy_helper

from pipeline.errors import ModelRefused
from pipeline.scan import scan
from pipeline.scan.intake import open_model, take_in

NOT_MODELS = {
    "empty": b"",
    "text": b"This is not a model.\n" * 100,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "an archive": b"PK\x03\x04" + bytes(64),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "zeros": bytes(1000),
    "a protobuf of no kind": b"\x08\x01",
}


@pytest.fixture
def outside(folder: Path) -> Path:
    """A folder for the vendor's files, below one with a secret."""
    (folder / "secret.bin").write_bytes(hostile.KERNEL.tobytes())
    vendor = folder / "vendor"
    vendor.mkdir()
    return vendor


def take(model: onnx.ModelProto, vendor: Path) -> dict[str, Path]:
    path = tiny.save(model, vendor, name="classifier.onnx")
    copies = vendor.parent / "copies"
    copies.mkdir(exist_ok=True)
    return take_in(path, copies)


@pytest.mark.parametrize("content", NOT_MODELS.values(), ids=NOT_MODELS)
def test_what_is_no_model_is_refused(content: bytes, folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelRefused, match="no ONNX model"):
        open_model(path)
    with pytest.raises(ModelRefused, match="no ONNX model"):
        scan(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, folder: Path) -> None:
    content = tiny.classifier().SerializeToString()
    path = folder / "model.onnx"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelRefused):
        scan(path)


@pytest.mark.parametrize("name", ["W", "y", "Conv"])
def test_names_that_are_no_text_are_refused(name: str, folder: Path) -> None:
    """Regression: such a name arrives as bytes, and sorting it among others is a TypeError."""
    content = tiny.classifier().SerializeToString()
    assert name.encode() in content
    path = folder / "model.onnx"
    path.write_bytes(content.replace(name.encode(), b"\xff" * len(name)))
    with pytest.raises(ModelRefused, match="not UTF-8"):
        scan(path)


def test_a_model_without_external_data_is_copied(outside: Path) -> None:
    copies = take(tiny.classifier(), outside)
    assert list(copies) == ["model.onnx"]
    assert copies["model.onnx"].read_bytes() == (outside / "classifier.onnx").read_bytes()


@pytest.mark.parametrize("location", ["weights.bin", "data/deep/weights.bin", "odd name \N{SNOWMAN}.bin", "sub/model.onnx"])
@pytest.mark.parametrize("place", hostile.PLACES)
def test_good_external_data_is_copied_wherever_it_is_named(location: str, place: str, outside: Path) -> None:
    (outside / location).parent.mkdir(parents=True, exist_ok=True)
    (outside / location).write_bytes(hostile.KERNEL.tobytes())
    copies = take(hostile.hidden(hostile.external("extra", location), place), outside)
    assert set(copies) == {"model.onnx", location}
    assert copies[location].read_bytes() == hostile.KERNEL.tobytes()
    assert {check.outcome for check in scan(copies["model.onnx"]).checks} <= {"passed", "failed"}


BAD_LOCATIONS = [
    "/etc/passwd", "../secret.bin", "data/../../secret.bin", "data/../weights.bin", "./weights.bin", "data//weights.bin", "..", ".", "data", "..\\secret.bin",
    "model.onnx", "model.onnx/weights.bin", "weights.bin\0", "missing.bin", "weights.bin/deeper", "x" * 5000, "*/_ORT_MEM_ADDR_/*", "a\x1b[31m",
    "~/weights.bin",
]  # fmt: skip


@pytest.mark.parametrize("location", BAD_LOCATIONS, ids=lambda text: repr(text)[:40])
def test_bad_locations_are_refused_in_printable_words(location: str, outside: Path) -> None:
    (outside / "data").mkdir()
    (outside / "weights.bin").write_bytes(hostile.KERNEL.tobytes())
    (outside / "data" / "weights.bin").write_bytes(hostile.KERNEL.tobytes())
    (outside / "model.onnx").mkdir()
    (outside / "model.onnx" / "weights.bin").write_bytes(hostile.KERNEL.tobytes())
    (outside / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (outside / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(hostile.KERNEL.tobytes())
    with pytest.raises(ModelRefused) as caught:
        take(hostile.with_tensor(hostile.external("W", location)), outside)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("place", hostile.PLACES)
def test_a_bad_location_is_found_wherever_it_hides(place: str, outside: Path) -> None:
    with pytest.raises(ModelRefused, match="relative path below"):
        take(hostile.hidden(hostile.external("extra", "../secret.bin"), place), outside)


@pytest.mark.parametrize("place", ["file", "folder", "dangling"])
def test_symbolic_links_are_not_followed(place: str, outside: Path) -> None:
    target = {"file": outside.parent / "secret.bin", "folder": outside.parent, "dangling": outside / "nowhere"}[place]
    (outside / "link").symlink_to(target)
    with pytest.raises(ModelRefused, match="symbolic link"):
        take(hostile.with_tensor(hostile.external("W", "link/secret.bin" if place == "folder" else "link")), outside)


@pytest.mark.parametrize("location", ["weights.bin", "sub/model.onnx", "sub/\x1b[31m.bin"])
def test_hard_links_are_not_read(location: str, outside: Path) -> None:
    """Regression: a link called model.onnx in a sub-folder was read, and a name with escapes was printed."""
    (outside / "sub").mkdir()
    os.link(outside.parent / "secret.bin", outside / location)
    with pytest.raises(ModelRefused, match="hard link") as caught:
        take(hostile.with_tensor(hostile.external("W", location)), outside)
    assert str(caught.value).isprintable()


def test_devices_and_pipes_are_not_read(outside: Path) -> None:
    os.mkfifo(outside / "pipe")
    with pytest.raises(ModelRefused):
        take(hostile.with_tensor(hostile.external("W", "pipe")), outside)
    with pytest.raises(ModelRefused, match="not a plain file"):
        take_in(Path("/dev/zero"), outside)
    with pytest.raises(ModelRefused, match="Is a directory"):
        take_in(outside, outside.parent)
    with pytest.raises(ModelRefused, match="cannot be opened"):
        take_in(outside / "missing.onnx", outside.parent)


@pytest.mark.parametrize("entries", [{"basepath": "/etc"}, {"checksum": "0", "note": "x"}, {"location": ""}], ids=str)
def test_odd_keys_are_refused(entries: dict[str, str], outside: Path) -> None:
    (outside / "weights.bin").write_bytes(hostile.KERNEL.tobytes())
    with pytest.raises(ModelRefused, match="location, offset, length and checksum"):
        take(hostile.with_tensor(hostile.external("W", **{"location": "weights.bin", **entries})), outside)


def test_a_location_given_twice_is_refused(outside: Path) -> None:
    (outside / "weights.bin").write_bytes(hostile.KERNEL.tobytes())
    tensor = hostile.external("W", "weights.bin")
    tensor.external_data.add(key="location", value="../secret.bin")
    with pytest.raises(ModelRefused, match="once each"):
        take(hostile.with_tensor(tensor), outside)


def test_the_copies_are_what_is_scanned(outside: Path) -> None:
    """The vendor's files may change after they were taken in."""
    (outside / "weights.bin").write_bytes(hostile.KERNEL.tobytes())
    copies = take(hostile.with_tensor(hostile.external("W", "weights.bin")), outside)
    (outside / "weights.bin").write_bytes(np.full_like(hostile.KERNEL, np.nan).tobytes())
    assert scan(copies["model.onnx"]).findings == []
    tensor = onnx.load(str(copies["model.onnx"])).graph.initializer[0]
    assert np.array_equal(numpy_helper.to_array(tensor), hostile.KERNEL)
