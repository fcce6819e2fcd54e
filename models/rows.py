"""Rows of a benchmark, in a CSV that a killed run goes on from.  A row is a dataclass of texts, whole numbers and floats."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import BadInput

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


def load(kind: type[R], path: Path) -> list[R]:
    """The rows of earlier runs in their order, but for half lines that killed ones left.

    Raises BadInput when the file has other columns than these rows, as one of another version has: who goes on from it would write over it.
    """
    if not path.exists():
        return []
    types = {field.name: {"int": int, "float": float, "str": str}[str(field.type)] for field in fields(kind)}
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        if lines.fieldnames and set(lines.fieldnames) != set(types):
            raise BadInput(f"{path} holds rows of another version, with other columns; it is left as it is: name another file")
        complete = [line for line in lines if set(line) == set(types) and None not in line.values()]
    return [kind(**{name: types[name](value) for name, value in line.items()}) for line in complete]


def append(path: Path, row: DataclassInstance) -> None:
    """Add a row to a file that has its heading."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, [field.name for field in fields(row)]).writerow(asdict(row))


def to_csv(kind: type[R], rows: Iterable[R]) -> bytes:
    """The rows as they lie in a file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(kind)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()
