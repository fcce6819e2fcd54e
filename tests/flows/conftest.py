"""What the end-to-end tests share: one store and one Prefect server, both real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from flows.server import TemporaryServer

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server as a user would have one."""
    server = TemporaryServer(tmp_path_factory.mktemp("prefect"))
    yield server.wait()
    server.stop()


@dataclass(frozen=True)
class Place:
    """A working folder, and the environment of a command in it."""

    folder: Path
    env: dict[str, str]

    def command(self, *arguments: str | Path, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """Run `onnx-audit` as a person would."""
        return subprocess.run(self.line(*arguments), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """The same, in the background and in a process group of its own, as a shell starts a job."""
        return subprocess.Popen(
            self.line(*arguments), cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    @staticmethod
    def line(*arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "flows", *map(str, arguments)]


def place(folder: Path, home: Path, **settings: str) -> Place:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "ONNX_AUDIT_"))}
    return Place(folder, kept | {"ONNX_AUDIT_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "160"} | settings)


@pytest.fixture
def here(tmp_path: Path, prefect_url: str) -> Place:
    """A fresh working folder and a fresh store, with a Prefect server."""
    (tmp_path / "work").mkdir()
    return place(tmp_path / "work", tmp_path / "home", PREFECT_API_URL=prefect_url)


@pytest.fixture(scope="session")
def spec(tiny_backdoored: tiny.Backdoored) -> Path:
    """An audit.yaml that names the tiny model's trigger and images."""
    return written(tiny_backdoored, "audit.yaml", {})


@pytest.fixture(scope="session")
def told(tiny_backdoored: tiny.Backdoored) -> Path:
    """The same without the search for other triggers, which costs more than all the rest."""
    return written(tiny_backdoored, "told.yaml", {"detect": {"when": "never"}})


def written(model: tiny.Backdoored, name: str, more: dict[str, Any]) -> Path:
    path = model.model.parent / name
    content = {
        "input": model.reading.model_dump(mode="json"),
        "data": {"images": model.images.name},
        "triggers": [model.trigger.model_dump(mode="json", exclude_none=True)],
        "purify": {"images": 80},
        "policy": {"max_accuracy_drop": 0.1},
    }
    path.write_text(yaml.safe_dump(content | more))
    return path
