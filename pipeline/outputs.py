"""The folder that an audit leaves behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.artifact import ModelArtifact, Store, atomic_write
from pipeline.errors import BadInput

PENDING = "record.json"  # what the tracking server has not taken yet


class Outputs:
    """Files in `folder`, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @staticmethod
    def beside(model: Path, sha256: str) -> Outputs:
        """The default: `audits/NAME-DIGEST` in the working folder."""
        return Outputs(Path("audits") / f"{plain_name(model.stem)}-{sha256[:8]}")

    def check(self) -> None:
        """Raise BadInput when nothing can be written there, before hours are spent."""
        existing = next(parent for parent in (self.folder, *self.folder.parents) if parent.exists())
        if not existing.is_dir():
            raise BadInput(f"--out {self.folder} cannot be a folder: {existing} is a file")
        try:
            probe = existing / f".onnx-audit-{id(self)}"
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise BadInput(f"--out {self.folder} cannot be written to: {error.strerror}") from error

    def write(self, name: str, content: bytes) -> Path:
        """Write bytes."""
        path = self.folder / name
        atomic_write(path, content)
        return path

    def keep(self, name: str, digest: str, store: Store) -> Path:
        """Copy a file out of the store."""
        return self.write(name, store.path(digest).read_bytes())

    def keep_model(self, artifact: ModelArtifact, store: Store) -> str:
        """Copy a model out of the store: as `purified.onnx`, or with its external data as `purified/model.onnx`.  Returns its name."""
        if len(artifact.files) == 1:
            self.keep("purified.onnx", artifact.files["model.onnx"], store)
            return "purified.onnx"
        for name, digest in artifact.files.items():
            self.keep(f"purified/{name}", digest, store)
        return "purified/model.onnx"

    def discard(self, *names: str) -> None:
        """Remove files and folders that an earlier audit left here."""
        for name in names:
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON value."""
        return self.write(name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def plain_name(text: str) -> str:
    """`text` as the name of a file or folder: letters, digits, `.`, `_` and `-`, 60 at most, and never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:60].strip("-.") or "model"


def absolute(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A record request with the paths that its files have now."""
    given = {name: str(folder / request[name]) for name in ("model", "input_example") if request[name]}
    return {**request, **given, "artifacts": {name: str(folder / path) for name, path in request["artifacts"].items()}}
