"""Whether the stored numbers are what the file says they are, and finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pipeline.errors import ModelRefused
from pipeline.findings import Finding, Severity, printable
from pipeline.scan.interface import FLOATS
from pipeline.scan.walk import sparse_tensors, tensors

MOST_BYTES = 8 * 2**30  # of all tensors together, as declared


def check_sizes(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Refuse a model whose tensors declare more, or other, than what is stored (CWE-400, CWE-190)."""
    total = 0
    for tensor in tensors(model):
        name = printable(tensor.name, limit=80)
        declared = _declared_bytes(tensor.dims, tensor)
        total += declared
        if total > MOST_BYTES:
            raise ModelRefused(f"the tensors of the model declare more than {MOST_BYTES >> 30} GiB")
        stored = _stored_bytes(tensor, folder)
        if stored is not None and stored != declared:
            raise ModelRefused(f"tensor {name!r} declares {declared} bytes and {stored} are stored")
    for sparse in sparse_tensors(model):
        total += _declared_bytes(sparse.dims, sparse.values)
        if total > MOST_BYTES:
            raise ModelRefused(f"the sparse tensors of the model declare more than {MOST_BYTES >> 30} GiB when they are filled in")
    yield from ()


def check_finite(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """Weights that are NaN or infinite: a broken training run, or a model that answers what it likes.

    Infinities among nothing but zeros are no weights but a bound of Clip or an attention mask, and no finding.
    """
    for tensor in tensors(model):
        if tensor.data_type not in FLOATS:
            continue
        values = numpy_helper.to_array(tensor, base_dir=str(folder))
        finite = np.isfinite(values)
        broken = int(values.size - np.count_nonzero(finite))
        if broken and (np.isnan(values).any() or values[finite].any()):
            yield Finding(
                rule="file.non-finite-weights",
                severity=Severity.HIGH,
                message=f"{broken} of {values.size} values are NaN or infinite",
                where=tensor.name,
            )


def _declared_bytes(dims: Sequence[int], tensor: TensorProto) -> int:
    """Bytes of `dims` entries of the tensor's type."""
    name = printable(tensor.name, limit=80)
    if any(dim < 0 for dim in dims):
        raise ModelRefused(f"tensor {name!r} has a negative dimension: {list(dims)[:8]}")
    if tensor.data_type == TensorProto.STRING:
        return 0
    try:
        return prod(dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError, ValueError):
        raise ModelRefused(f"tensor {name!r} has the unknown type {tensor.data_type}") from None


def _stored_bytes(tensor: TensorProto, folder: Path) -> int | None:
    """Bytes that the stored numbers of a tensor take in memory; None for strings and for types with several numbers a byte."""
    if tensor.data_type in _PACKED:
        return None
    if tensor.data_location == TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        size = (folder / entries["location"]).stat().st_size
        offset = _number(entries.get("offset", "0"), tensor)
        length = _number(entries.get("length", str(max(size - offset, 0))), tensor)
        if offset + length > size:
            raise ModelRefused(f"the external data of {printable(tensor.name, limit=80)!r} ends after its file")
        return length
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    numbers = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    return (numbers // 2 if kind.kind == "c" else numbers) * kind.itemsize


def _number(text: str, tensor: TensorProto) -> int:
    """What every runtime reads alike."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ModelRefused(f"the external data of {printable(tensor.name, limit=80)!r} has an offset or length that is no number")
    return int(text)


_PACKED = frozenset(number for name, number in TensorProto.DataType.items() if name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2", "STRING"))
