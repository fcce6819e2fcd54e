"""Whether the stored numbers are what the file says they are, and finite."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pipeline.errors import ModelRefused
from pipeline.findings import Finding, Severity, printable
from pipeline.scan.interface import FLOATS
from pipeline.scan.walk import tensors

MOST_BYTES = 8 * 2**30  # of all tensors together, as declared


def check_sizes(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Refuse a model whose tensors declare more, or other, than what is stored (CWE-400, CWE-190)."""
    total = 0
    for tensor in tensors(model):
        name = printable(tensor.name, limit=80)
        if any(dim < 0 for dim in tensor.dims):
            raise ModelRefused(f"tensor {name!r} has a negative dimension: {list(tensor.dims)[:8]}")
        declared = prod(tensor.dims) * _item_size(tensor)
        total += declared
        if total > MOST_BYTES:
            raise ModelRefused(f"the tensors of the model declare more than {MOST_BYTES >> 30} GiB")
        stored = _stored_bytes(tensor, folder)
        if stored is not None and stored != declared:
            raise ModelRefused(f"tensor {name!r} declares {declared} bytes and {stored} are stored")
    yield from ()


def check_finite(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Weights that are NaN or infinite: a broken training run, or a model that answers what it likes."""
    for tensor in tensors(model):
        if tensor.data_type not in FLOATS:
            continue
        values = numpy_helper.to_array(tensor, base_dir=str(folder))
        broken = int(values.size - np.count_nonzero(np.isfinite(values.astype(np.float64, copy=False))))
        if broken:
            yield Finding(
                rule="file.non-finite-weights",
                severity=Severity.HIGH,
                message=f"{broken} of {values.size} values are NaN or infinite",
                where=tensor.name,
            )


def _item_size(tensor: TensorProto) -> float:
    if tensor.data_type == TensorProto.STRING:
        return 0
    try:
        return float(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        raise ModelRefused(f"tensor {printable(tensor.name, limit=80)!r} has the unknown type {tensor.data_type}") from None


def _stored_bytes(tensor: TensorProto, folder: Path) -> int | None:
    """Bytes of the raw or external data of a tensor; None where it is stored otherwise, which the parser has bounded."""
    if tensor.data_location == TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        size = (folder / entries["location"]).stat().st_size
        try:
            offset, length = int(entries.get("offset", 0)), int(entries["length"]) if "length" in entries else None
        except ValueError:
            raise ModelRefused(f"the external data of {printable(tensor.name, limit=80)!r} has an offset or length that is no number") from None
        if offset < 0 or offset + (length or 0) > size:
            raise ModelRefused(f"the external data of {printable(tensor.name, limit=80)!r} ends after its file")
        return size - offset if length is None else length
    if tensor.HasField("raw_data") and helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize and tensor.data_type not in _PACKED:
        return len(tensor.raw_data)
    return None


_PACKED = frozenset(number for name, number in TensorProto.DataType.items() if name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2", "STRING"))
