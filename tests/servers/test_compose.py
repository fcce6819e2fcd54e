"""compose.yaml cannot be run here; what can be seen of it without an engine is held."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]


def test_every_secret_is_generated_and_none_has_a_default(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "compose-env", tmp_path / "scripts")
    assert subprocess.run([sys.executable, script], check=False).returncode == 0
    written = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    named = set(re.findall(r"\$\{(\w+)[^}]*\}", TEXT)) - {"BASE"}
    assert set(written) == named == set(re.findall(r"\$\{(\w+):\?\}", TEXT))
    assert len(set(written.values())) == len(written) and all(len(value) >= 44 for value in written.values())
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert subprocess.run([sys.executable, script], check=False).returncode == 2
    assert dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines()) == written


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_locked_up(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert ":" in service["image"] and not service["image"].endswith(":latest")
    assert "healthcheck" in service or name in {"databases", "prepare", "worker"}


def test_the_worker_reaches_the_servers_only() -> None:
    networks = yaml.safe_load(TEXT)["networks"]
    assert SERVICES["worker"]["networks"] == ["servers"] and networks["servers"]["internal"]


def test_what_a_service_waits_for_is_there() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            needs = "healthcheck" if how["condition"] == "service_healthy" else "entrypoint"
            assert needs in SERVICES[name]


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if service.get("entrypoint", [""])[0] in ("sh", "bash")])
def test_the_shell_understands_its_program(name: str) -> None:
    shell, (program,) = SERVICES[name]["entrypoint"][0], SERVICES[name]["command"]
    ended = subprocess.run([shell, "-n", "-c", program.replace("$$", "$")], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
