"""A team's servers, as scripts/servers starts them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def servers_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/servers as a person would."""
    return subprocess.run([sys.executable, ROOT / "scripts" / "servers", *arguments], capture_output=True, text=True, timeout=180, check=False)


def environment(folder: Path) -> dict[str, str]:
    """What FOLDER/env sets."""
    lines = (shlex.split(line) for line in (folder / "env").read_text().splitlines())
    return dict(assignment.split("=", 1) for _, assignment in lines)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder whose servers run.  Not below pytest's own, which PostgreSQL's user may not enter."""
    for package in ("moto", "psycopg2", "flask_wtf", "boto3", "s3fs"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[servers]'")
    there = list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb")
    if not there and not (os.geteuid() == 0 and shutil.which("apt-get")):
        pytest.skip("PostgreSQL is not installed, and only root can install it")
    with tempfile.TemporaryDirectory(prefix="onnx-audit-servers-") as name:
        try:
            ended = servers_script("up", name)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            yield Path(name)
        finally:
            servers_script("down", name)


@pytest.fixture(scope="session")
def servers(servers_folder: Path) -> dict[str, str]:
    """The environment of a client of those servers: everything else that could point elsewhere is left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "ONNX_AUDIT_", "AWS_"))}
    (servers_folder / "client" / "another").mkdir(parents=True)
    own = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(servers_folder / "client"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return kept | own | environment(servers_folder)
