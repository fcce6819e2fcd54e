"""Take the submitted file in: open it, and copy it and its external data to where nobody else writes.

What is audited afterwards is the copy, so that the bytes scanned are the bytes converted, measured and written.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError

from pipeline.errors import ModelRefused
from pipeline.findings import printable
from pipeline.scan.walk import tensors, texts

EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
MEMORY = "_ORT_MEM_ADDR_"  # in a location, it makes onnxruntime take the offset for an address in its own memory


def open_model(path: Path) -> onnx.ModelProto:
    """Parse a file without its external data.  Raises ModelRefused when it is no ONNX model."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise ModelRefused("the file is no ONNX model: it is not a protobuf of that kind, or it is truncated") from error
    if model.ir_version < 3 or not model.opset_import or not model.graph.node:
        raise ModelRefused("the file is no ONNX model: it has no graph, no opset, or an IR version below 3")
    if any(isinstance(text, bytes) for _, text in texts(model)):
        raise ModelRefused("the file is no ONNX model: a name or another text in it is not UTF-8")
    return model


def take_in(source: Path, folder: Path) -> dict[str, Path]:
    """Copy the model to `folder`/model.onnx, and each external file to the path it is known by.

    Returns the copies by their path in the artifact.  Raises ModelRefused when external data points anywhere but to a plain
    file below the model's own folder (CWE-22, CWE-59).
    """
    copies = {"model.onnx": folder / "model.onnx"}
    _copy(source, copies["model.onnx"], links=True)
    for location in sorted(_locations(open_model(copies["model.onnx"]))):
        path = _inside(source.parent, location)
        copies[location] = folder / location
        copies[location].parent.mkdir(parents=True, exist_ok=True)
        _copy(path, copies[location], links=False)
    return copies


def _locations(model: onnx.ModelProto) -> set[str]:
    found = set()
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = printable(tensor.name, limit=80)
        if len(entries) != len(tensor.external_data) or not entries.keys() <= EXTERNAL_KEYS or not entries.get("location"):
            raise ModelRefused(
                f"the external data of {name!r} is described by {printable(sorted(entries))}; location, offset, length and checksum are known, once each"
            )
        found.add(entries["location"])
    return found


def _inside(folder: Path, location: str) -> Path:
    """The plain file that an external location names."""
    shown = printable(location, limit=120)
    pure = PurePosixPath(location)
    plain = not pure.is_absolute() and ".." not in pure.parts and "\\" not in location and "\0" not in location and str(pure) == location
    if not plain or pure.parts[:1] == ("model.onnx",) or MEMORY in location:
        raise ModelRefused(f"external data lies at {shown!r}; a relative path below the model's folder is expected")
    path = folder
    try:
        for part in pure.parts:
            path = path / part
            if path.is_symlink():
                raise ModelRefused(f"external data at {shown!r} goes through a symbolic link, which is not followed")
        found = path.is_file()
    except OSError as error:
        raise ModelRefused(f"external data at {shown!r} cannot be looked for: {error.strerror}") from error
    if not found:
        raise ModelRefused(f"external data is missing: no file {shown!r} beside the model")
    return path


def _copy(source: Path, target: Path, *, links: bool) -> None:
    """Copy a plain file, refusing symbolic links and devices also when they appear at the last moment.  links: whether it may have hard links."""
    shown = printable(source.name, limit=120)
    try:
        opened = open(source, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))  # noqa: SIM115
    except OSError as error:
        raise ModelRefused(f"{shown} cannot be opened as a plain file: {error.strerror}") from error
    with opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ModelRefused(f"{shown} is not a plain file")
        if status.st_nlink > 1 and not links:
            raise ModelRefused(f"external data {shown} is a hard link to a file known elsewhere, which is not read")
        with target.open("wb") as copy:
            shutil.copyfileobj(opened, copy)
