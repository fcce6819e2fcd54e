"""Files known by their content: the store, and the submitted model in it.

A stage takes files and makes files.  Between stages a file is a digest, `sha256:<hex>`, and its bytes lie in the store, so that
the bytes scanned are the bytes converted, measured and written, and that one audit can use what another has made, on this machine
or, with a shared folder or bucket behind the store, on another.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict

from pipeline.errors import BadInput, Defect, StageFailed

PREFIX = "sha256:"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ModelArtifact(BaseModel):
    """A model file and its external data, each known by digest.

    files: path relative to the model's folder -> `sha256:<hex>`.  The model itself is `model.onnx`, whatever it was called.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, str]

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file (external data apart), in hex."""
        return self.files["model.onnx"].removeprefix(PREFIX)

    @property
    def digest(self) -> str:
        """SHA-256 over the whole artifact: equal to `sha256` when there is no external data."""
        if len(self.files) == 1:
            return self.sha256
        return hashlib.sha256("\n".join(f"{name}\0{self.files[name]}" for name in sorted(self.files)).encode()).hexdigest()


class Shared:
    """Objects that several machines have in common, wherever fsspec can reach: `s3://BUCKET/FOLDER`, a mounted folder.

    Nothing in it is believed: what comes from it is hashed by whoever asked.  Raises BadInput for an address that nothing here can open, StageFailed where
    the other side does not answer.
    """

    def __init__(self, address: str) -> None:
        self.files, self.folder = opened(address)

    def send(self, path: Path, name: str) -> None:
        """Put a file there under a name; half of one, which a killed process left, is put there again."""
        with answering("take", name[:12]):
            if self._size(name) != path.stat().st_size:
                self.files.makedirs(self.folder, exist_ok=True)
                self.files.put_file(str(path), f"{self.folder}/{name}")

    def fetch(self, name: str, path: Path) -> bool:
        """Write what has a name to `path`; False when there is no such thing."""
        with answering("give", name[:12]):
            try:
                self.files.get_file(f"{self.folder}/{name}", str(path))
            except FileNotFoundError:
                return False
        return True

    def has(self, name: str) -> bool:
        """Whether something has that name."""
        with answering("say whether it has", name[:12]):
            return self._size(name) is not None

    def _size(self, name: str) -> int | None:
        try:
            return int(self.files.info(f"{self.folder}/{name}")["size"])
        except FileNotFoundError:
            return None


def opened(address: str) -> tuple[Any, str]:
    """The file system that an address is in, and the path there.  Raises BadInput when nothing here can open it."""
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise BadInput(f"{address} cannot be opened ({error}); for a bucket install onnx-audit[s3]") from error
    return found


@contextmanager
def answering(what: str, name: str) -> Iterator[None]:
    """Turn whatever a file system raises into StageFailed, which says what it did not do."""
    try:
        yield
    except Exception as error:  # botocore's errors, and those of every other file system, have no common base
        raise StageFailed(f"the store out there did not {what} {name} ({type(error).__name__}: {error})") from error


class Store:
    """Bytes by digest, in a folder that may be deleted at any time between audits.

    `objects/` holds the bytes, `results/` the answers of finished stages, `scratch/` what running stages are writing.  With a shared store behind it, what is
    kept here is kept there too, and what is not here is fetched from there.
    """

    def __init__(self, folder: Path | None = None, *, shared: Shared | None = None) -> None:
        """Use `folder`; without it $ONNX_AUDIT_HOME, else the user's cache folder, and behind either what $ONNX_AUDIT_STORE names, if it is set."""
        chosen = folder or os.environ.get("ONNX_AUDIT_HOME") or user_cache_path("onnx-audit")
        self.folder = Path(chosen).expanduser().absolute()
        address = os.environ.get("ONNX_AUDIT_STORE") if folder is None else None
        self.shared = shared or (Shared(address) if address else None)

    @property
    def results(self) -> Path:
        """Where the answers of finished stages are kept."""
        return self.folder / "results"

    def put(self, path: Path) -> str:
        """Keep a copy of a file, and return its digest."""
        with self._new() as temporary:
            shutil.copyfile(path, temporary)
            digest = sha256(temporary)  # of the copy: the original may change under us
            self._keep(temporary, digest)
        if self.shared is not None:
            self.shared.send(self._object(digest), digest)
        return PREFIX + digest

    def path(self, digest: str) -> Path:
        """Where the bytes of a digest lie.  Raises Defect when they are gone or altered."""
        wanted = _hex(digest)
        path = self._object(wanted)
        if not path.is_file() and self.shared is not None:
            self._fetch(wanted)
        if not path.is_file() or sha256(path) != wanted:
            raise Defect(f"the store at {self.folder} has lost or altered {digest}; delete that folder and run the audit again")
        return path

    def holds(self, value: Any) -> bool:
        """Whether the bytes of every digest in a JSON value are here, or can be had."""
        return all(self._object(name).is_file() or (self.shared is not None and self.shared.has(name)) for name in map(_hex, digests(value)))

    def _object(self, name: str) -> Path:
        return self.folder / "objects" / name

    def _fetch(self, name: str) -> None:
        assert self.shared is not None
        with self._new() as temporary:
            if not self.shared.fetch(name, temporary):
                return
            if sha256(temporary) != name:
                raise StageFailed(f"the shared store has altered {name}, or holds half of it; delete that object and run the audit again")
            self._keep(temporary, name)

    @contextmanager
    def _new(self) -> Iterator[Path]:
        """A name for a file that is gone afterwards, unless it was kept."""
        temporary = self._made("objects") / f".new-{uuid4().hex}"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _keep(self, temporary: Path, name: str) -> None:
        temporary.chmod(0o444)
        temporary.replace(self._object(name))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of one's own that is gone afterwards; what a killed process left behind is swept first.

        Its owner holds a lock on it, which the kernel lets go when the owner dies, in another container as well.
        """
        parent = self._made("scratch")
        with ExitStack() as held:
            with _locked(parent):
                for leftover in parent.iterdir():
                    with suppress(OSError), _locked(leftover, wait=False):
                        shutil.rmtree(leftover, ignore_errors=True)
                folder = held.enter_context(tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True))
                held.enter_context(_locked(Path(folder)))
            yield Path(folder)

    def _made(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder.  Raises OSError when another holds it and nobody waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _hex(digest: str) -> str:
    return digest.removeprefix(PREFIX)


def is_digest(value: str) -> bool:
    """Whether a string is `sha256:` and 64 hex digits, whole."""
    return re.fullmatch(PREFIX + "[0-9a-f]{64}", value) is not None


def digests(value: Any) -> Iterator[str]:
    """Every digest inside a JSON value."""
    if isinstance(value, str):
        if is_digest(value):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from digests(item)
    elif isinstance(value, list):
        for item in value:
            yield from digests(item)
