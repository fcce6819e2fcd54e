"""The jobs in docs/ci are YAML, name options that there are, and lock the container up as docs/container.md does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.cli import app

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "docs" / "ci").glob("*.yml"))
LOCKS = sorted(
    set(re.findall(r"--(?:read-only|tmpfs /tmp|network none|cap-drop ALL|security-opt no-new-privileges)", (ROOT / "docs" / "container.md").read_text()))
)


def texts(value: Any) -> list[str]:
    """Every text in a YAML value."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


def command(job: Path) -> str:
    """The `docker run` of a job, as a shell has it, without what follows it."""
    (script,) = [text for text in texts(yaml.safe_load(job.read_text())) if "docker run" in text]
    return script.split("docker run", 1)[1].replace("\\\n", " ").split("||")[0]


def options(name: str) -> set[str]:
    group: Any = typer.main.get_command(app)
    return {option for parameter in group.commands[name].params for option in parameter.opts}


def test_there_are_two() -> None:
    assert [job.name for job in JOBS] == ["github.yml", "gitlab-ci.yml"]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_option_exists(job: Path) -> None:
    words = shlex.split(command(job))
    ours = words[words.index("run") :]
    assert {word for word in ours if word.startswith("-")} - options(ours[0]) == set()
    assert {"--spec", "--out"} <= set(ours)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_the_container_is_locked_up(job: Path) -> None:
    assert len(LOCKS) == 5
    assert [lock for lock in LOCKS if lock not in command(job)] == []
    assert "--user" in command(job)
    assert "/vendor:/audit/vendor:ro" in command(job)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_the_exit_code_is_that_of_the_audit(job: Path) -> None:
    script = "\n".join(texts(yaml.safe_load(job.read_text())))
    assert "|| code=$?" in script and script.index('exit "$code"') > script.index("docker run")


def test_both_keep_what_the_audit_leaves() -> None:
    github, gitlab = (yaml.safe_load(job.read_text()) for job in JOBS)
    steps = {step["uses"].split("@")[0]: step for step in github["jobs"]["audit"]["steps"] if "uses" in step}
    assert steps["github/codeql-action/upload-sarif"]["with"]["sarif_file"] == "audit/model/report.sarif"
    assert all("!cancelled()" in step["if"] for name, step in steps.items() if "upload" in name)
    assert github["permissions"]["security-events"] == "write"
    kept = gitlab["onnx-audit"]["artifacts"]
    assert (kept["when"], kept["reports"]["junit"]) == ("always", "audit/model/junit.xml")
