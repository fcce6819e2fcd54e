"""What an audit was made with."""

from __future__ import annotations

import importlib.metadata
import subprocess
from functools import cache
from pathlib import Path

PACKAGES = ("onnx", "onnx-ir", "onnx2torch", "torch", "onnxruntime-gpu", "onnxruntime", "numpy", "prefect", "mlflow")


@cache
def version() -> str:
    """The version of onnx-audit."""
    try:
        return importlib.metadata.version("onnx-audit")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"  # run from a source tree that was not installed


@cache
def packages() -> dict[str, str]:
    """The installed versions of what the figures depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def made_with() -> str:
    """Version, commit and packages on one line: another of any of them may answer otherwise."""
    return " ".join([version(), git() or "", *(f"{name}={number}" for name, number in packages().items())])


@cache
def git() -> str | None:
    """The commit of the checkout that this runs from, with `+dirty` when it was changed; None when it is no checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        dirty = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+dirty" if dirty else "")
