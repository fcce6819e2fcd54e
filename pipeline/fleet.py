"""fleet.yaml: which models are audited together, and by which specs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field

from pipeline.artifact import answering, opened
from pipeline.config import Section, parse
from pipeline.errors import BadInput
from pipeline.findings import printable
from pipeline.results import Value

REGISTRY = "models:/"


class Entry(Section):
    """Models that have a spec in common.

    models: a path with `*` and `**`; the same in a bucket or another place that fsspec knows, `s3://BUCKET/vendors/**/*.onnx`; or `models:/PATTERN`, the
    latest version of every registered model whose name the pattern matches, `models:/PATTERN@ALIAS`, `models:/PATTERN/all`.
    spec: the audit.yaml of all of them; None: the defaults.  data: their images; None: those of the spec.  Paths are relative to fleet.yaml.
    """

    models: Annotated[str, Field(min_length=1)]
    spec: Path | None = None
    data: Path | None = None

    @property
    def registered(self) -> bool:
        """Whether its models are in the registry."""
        return self.models.startswith(REGISTRY)


class Fleet(Section):
    """One fleet.yaml.  name: what its records are found by; None: the file's name without `.yaml`."""

    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    models: Annotated[list[Entry], Field(min_length=1)]


class Member(Value):
    """A model of a fleet.  name: the same in every run, and no two have one.  where: a path, an address, or NAME/VERSION.  entry: its place in the fleet."""

    name: str
    where: str
    entry: int


def read_fleet(path: Path) -> Fleet:
    """Read a fleet.yaml; paths in it become absolute.  Raises SpecRefused, naming the key."""
    fleet, home = parse(path, Fleet, keys="`name` and `models`"), path.parent.absolute()
    entries = []
    for entry in fleet.models:
        paths = {key: home / value.expanduser() for key, value in (("spec", entry.spec), ("data", entry.data)) if value is not None}
        local = {} if "://" in entry.models or entry.registered else {"models": str(home / Path(entry.models).expanduser())}
        entries.append(entry.model_copy(update=paths | local))
    return Fleet(name=fleet.name or path.stem, models=entries)


def files_of(pattern: str, home: Path) -> dict[str, str]:
    """name -> path or address of the files that a pattern matches; a name is the path, below `home` where it is there, without `.onnx`.

    Raises BadInput when nothing matches, or nothing here can open the address.
    """
    files, path = opened(pattern)
    with answering("list", pattern):
        found = sorted(name for name in files.glob(path) if files.isfile(name))
    if not found:
        raise BadInput(f"no file matches {pattern}")
    if "://" in pattern:
        return {_named(PurePosixPath(name)): files.unstrip_protocol(name) for name in found}
    return {_named(Path(name).relative_to(home) if Path(name).is_relative_to(home) else Path(name)): name for name in found}


def bring(address: str, folder: Path) -> Path:
    """Copy an object, and those beside it that begin with its name (external data: `model.onnx.data`, `model.data`), into a folder."""
    files, path = opened(address)
    name = PurePosixPath(path).name
    stem = name.removesuffix(".onnx") + "."
    with answering("give", address):
        beside = (other for other in files.ls(str(PurePosixPath(path).parent), detail=False) if PurePosixPath(other).name.startswith(stem))
        for other in {path, *beside}:
            files.get_file(other, str(folder / PurePosixPath(other).name))
    return folder / name


def versions_of(pattern: str) -> tuple[str, str]:
    """What `models:/PATTERN`, `models:/PATTERN@ALIAS` or `models:/PATTERN/all` asks for: a pattern of names, and `latest`, `all` or `@ALIAS`."""
    text = pattern.removeprefix(REGISTRY)
    match = re.fullmatch(r"(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<which>all|latest))?", text)
    if match is None:
        raise BadInput(f"{printable(pattern)} asks for no versions: give models:/PATTERN, models:/PATTERN@ALIAS or models:/PATTERN/all")
    return match["name"], f"@{match['alias']}" if match["alias"] else match["which"] or "latest"


def only_once(members: list[Member]) -> list[Member]:
    """Each model once, by the first entry that has it; two of one name keep apart by where they are."""
    first = {member.where: member for member in reversed(members)}
    kept = [member for member in members if first[member.where] is member]
    often = Counter(member.name for member in kept)
    return [member if often[member.name] == 1 else member.model_copy(update={"name": _named(PurePosixPath(member.where))}) for member in kept]


def _named(path: Path | PurePosixPath) -> str:
    return printable(str(path).removesuffix(".onnx").lstrip("/"))
