"""A team's day on real servers: versions are reviewed, fleets audited by workers, schedules fire, runs are cancelled, messages sent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny
import yaml

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds: these machines are shared


@dataclass(frozen=True)
class Team:
    """The servers, and a folder to work in."""

    env: dict[str, str]
    folder: Path

    def run(self, *command: str | Path, timeout: float = PATIENCE, **env: str) -> subprocess.CompletedProcess[str]:
        """A command as somebody of the team types it."""
        return subprocess.run(
            [sys.executable, "-m", *map(str, command)], cwd=self.folder, env=self.env | env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def must(self, *command: str | Path, **env: str) -> str:
        done = self.run(*command, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def api(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """Prefect's API, as its UI uses it."""
        import httpx

        user, password = self.env["PREFECT_API_AUTH_STRING"].split(":", 1)
        answer = httpx.request(method, f"{self.env['PREFECT_API_URL']}{path}", json=body, auth=(user, password), timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker as on a machine of its own: with a store that nobody else has."""
        own = {"ONNX_AUDIT_HOME": str(self.folder / f"home-{name}"), "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_LEVEL": "INFO"}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", "audits", "--limit", "1", "--name", name],
                env=self.env | own,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            kill(process)

    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.env["MLFLOW_TRACKING_URI"])


def kill(process: subprocess.Popen[bytes]) -> None:
    """A worker and what it has started, as when the machine loses power."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until(happens: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """Wait for something, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happens():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


@pytest.fixture(scope="module")
def team(servers: dict[str, str], servers_folder: Path, tiny_backdoored: tiny.Backdoored, tiny_clean: tiny.Backdoored) -> Iterator[Team]:
    """The servers with what docs/operations.md puts on them, a spec, and MLflow's own client told where they are."""
    folder = servers_folder / "team"
    folder.mkdir()
    team = Team(servers | {"ONNX_AUDIT_HOME": str(folder / "home"), "COLUMNS": "160"}, folder)
    trigger = tiny_backdoored.trigger.model_dump(mode="json", exclude_none=True)
    spec = {"input": tiny_backdoored.reading.model_dump(mode="json"), "data": {"images": str(tiny_backdoored.images)}, "purify": {"images": 80}}
    quick = spec | {"triggers": [trigger], "detect": {"when": "never"}, "purify": {"when": "never"}}
    (folder / "audit.yaml").write_text(yaml.safe_dump(spec))
    (folder / "quick.yaml").write_text(yaml.safe_dump(quick))
    (folder / "told.yaml").write_text(yaml.safe_dump(quick | {"purify": {"images": 80}, "policy": {"max_accuracy_drop": 0.1}}))
    (folder / "catalogue.yaml").write_text("'quick-*': quick.yaml\n'*': audit.yaml\n")
    shutil.copy(tiny_backdoored.model, folder / "backdoored.onnx")
    shutil.copy(tiny_clean.model, folder / "clean.onnx")
    team.must("prefect", "--no-prompt", "work-pool", "create", "audits", "--type", "process")
    where = {"ONNX_AUDIT_FLEET": str(folder / "fleet.yaml"), "ONNX_AUDIT_CATALOGUE": str(folder / "catalogue.yaml")}
    team.must("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", ROOT / "prefect.yaml", **where)
    before = {name: os.environ.get(name) for name in servers if name.startswith(("MLFLOW_", "AWS_"))}
    os.environ.update({name: servers[name] for name in before})
    yield team
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def register(team: Team, name: str, model: Path | onnx.ModelProto) -> str:
    import mlflow.onnx

    from pipeline.tracking import experiment_of

    with mlflow.start_run(experiment_id=experiment_of(team.mlflow(), "vendor")):
        info = mlflow.onnx.log_model(onnx.load(model) if isinstance(model, Path) else model, name="classifier", registered_model_name=name)
    return str(info.registered_model_version)


def another(model: Path, to: Path, name: str) -> Path:
    """The same network in a file of other bytes."""
    proto = onnx.load(model)
    proto.producer_version = name
    to.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, to / f"{name}.onnx")
    return to / f"{name}.onnx"


@pytest.mark.timeout(600)
def test_versions_are_reviewed_and_told(team: Team) -> None:
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["f"]), onnx.helper.make_node("ReduceSum", ["f"], ["y"], keepdims=0)]
    strange = tiny.model(nodes, shape=("N", 3, 12, 12), outputs={"y": ()})
    backdoored, clean, other = (register(team, "shapes", model) for model in (team.folder / "backdoored.onnx", team.folder / "clean.onnx", strange))
    client = team.mlflow()
    client.update_model_version("shapes", backdoored, "What the vendor says of it.")

    def review(version: str) -> tuple[int, dict[str, Any]]:
        spec = "audit.yaml" if version == clean else "told.yaml"  # what is told of need not be searched for, and ACCEPT needs the search
        done = team.run("flows", "review", f"shapes/{version}", "--spec", spec, "--approve", "champion", "--json")
        return done.returncode, json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}

    code, found = review(backdoored)
    assert (code, found.get("verdict"), found.get("reused")) == (1, "REPAIRED", False), found
    version = client.get_model_version("shapes", backdoored)
    assert version.tags["audit.verdict"] == "REPAIRED" and version.tags["audit.repaired_version"] == found["repaired"]
    assert version.description.startswith("What the vendor says of it.") and "REPAIRED" in version.description and "| rate |" in version.description
    repaired = client.get_model_version("shapes", found["repaired"])
    assert repaired.tags["audit.parent"] == backdoored and found["aliases"] == {"audited": repaired.version}
    import mlflow

    fetched = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/shapes/{repaired.version}", dst_path=str(team.folder / "fetched"))
    assert Path(fetched, "model.onnx").read_bytes() != (team.folder / "backdoored.onnx").read_bytes()
    assert review(clean)[0] == 0 and str(client.get_model_version_by_alias("shapes", "champion").version) == clean
    assert review(other)[0] == 2 and client.get_model_version("shapes", other).tags["audit.verdict"] == "REFUSED"
    assert str(client.get_model_version_by_alias("shapes", "champion").version) == clean, "an alias moves only when the verdict allows"

    def written() -> dict[str, Any]:
        return {one.version: (dict(one.tags), one.description, one.last_updated_timestamp) for one in client.search_model_versions("name='shapes'")}

    before, runs = written(), team.api("/flow_runs/count", {})
    for number, expected in ((backdoored, 1), (clean, 0)):
        code, again = review(number)
        assert code == expected and again["reused"] is True, again
    assert written() == before, "a second review changes nothing"
    assert team.api("/flow_runs/count", {}) == runs + 2, "and starts no audit: the two reviews are all that ran"

    tags = client.get_model_version("shapes", backdoored).tags
    client.set_model_version_tag("shapes", backdoored, "audit.verdict", "ACCEPT")  # as a vendor might
    code, again = review(backdoored)
    assert (code, again["verdict"], again["reused"]) == (1, "REPAIRED", False), "no tag is believed that no run of ours bears out"
    assert client.get_model_version("shapes", backdoored).tags == tags, "and what was forged is written over"


@pytest.mark.timeout(600)
def test_a_fleet_survives_its_workers(team: Team) -> None:
    """Six models on two workers as on two machines, one of which loses power: none is lost, and none is audited twice."""
    for number in range(4):
        another(team.folder / "backdoored.onnx", team.folder / "vendors", f"v{number}")
    import fsspec

    bucket = fsspec.filesystem("s3")
    bucket.put_file(str(another(team.folder / "clean.onnx", team.folder / "upload", "bucket")), "onnx-audit/vendors/bucket.onnx")
    register(team, "quick-registered", team.folder / "clean.onnx")
    models = [{"models": text, "spec": "quick.yaml"} for text in ("vendors/*.onnx", "s3://onnx-audit/vendors/*.onnx", "models:/quick-reg*")]
    (team.folder / "fleet.yaml").write_text(yaml.safe_dump({"models": models}))
    watch = yaml.safe_load((ROOT / "automations.yaml").read_text())
    watch["automations"][0]["trigger"]["within"] = 40  # the least that goes with a heartbeat every 30 seconds
    (team.folder / "automations.yaml").write_text(yaml.safe_dump(watch))
    team.must("prefect", "automation", "create", "--from-file", "automations.yaml")

    with team.worker("one") as one, team.worker("two"):
        fleet = subprocess.Popen(
            [sys.executable, "-m", "flows", "fleet", "fleet.yaml", "--deployment", "audit-job/audit-job", "--json"],
            cwd=team.folder,
            env=team.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: "Task run 'scan'" in (team.folder / "one.log").read_text(), "an audit on the first worker")
        kill(one)
        out, err = fleet.communicate(timeout=PATIENCE)
    assert fleet.returncode == 1, err
    found = json.loads(out)["models"]
    assert {name: model["verdict"] for name, model in found.items()} == {
        **{f"vendors/v{number}": "REJECT" for number in range(4)},
        "onnx-audit/vendors/bucket": "INCONCLUSIVE",
        "quick-registered": "INCONCLUSIVE",
    }
    client = team.mlflow()
    experiment = client.get_experiment_by_name("onnx-audit").experiment_id
    parent = json.loads(out)["run_id"]
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert sorted(run.info.run_id for run in runs) == sorted(model["run_id"] for model in found.values()), "one record a model"
    states = [run["state_name"] for run in team.api("/flow_runs/filter", {"flows": {"name": {"any_": ["audit-job"]}}})]
    assert states.count("Completed") == 6 and states.count("Crashed") == 1, states


def test_a_schedule_fires_and_a_cancelled_run_ends(team: Team) -> None:
    fleet = {"models": [{"models": "vendors/v0.onnx", "spec": "quick.yaml"}]}
    another(team.folder / "backdoored.onnx", team.folder / "vendors", "v0")
    (team.folder / "scheduled.yaml").write_text(yaml.safe_dump(fleet))
    [nightly] = team.api("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    given = {"fleet": str(team.folder / "scheduled.yaml"), "deployment": None}
    team.api(f"/deployments/{nightly['id']}", {"parameters": given}, method="PATCH")
    schedule = {"schedule": {"interval": 5}, "active": True}
    [made] = team.api(f"/deployments/{nightly['id']}/schedules", [schedule])
    with team.worker("three"):

        def fired() -> Any:
            wanted = {"deployments": {"id": {"any_": [nightly["id"]]}}, "flow_runs": {"state": {"name": {"any_": ["Completed"]}}}}
            return team.api("/flow_runs/filter", wanted)

        [run, *_] = until(fired, "a scheduled fleet")
        assert run["auto_scheduled"] is True
        team.api(f"/deployments/{nightly['id']}/schedules/{made['id']}", method="DELETE")
        artifacts = team.api("/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        assert "fleet-scheduled" in {artifact["key"] for artifact in artifacts}

        [audit] = team.api("/deployments/filter", {"deployments": {"name": {"any_": ["audit"]}}})
        long = {"model": str(team.folder / "backdoored.onnx"), "spec": str(team.folder / "audit.yaml"), "out": str(team.folder / "long"), "seed": 7}
        begun = team.api(f"/deployments/{audit['id']}/create_flow_run", {"parameters": long})
        until(lambda: stages("detect"), "the search", seconds=PATIENCE)
        team.api(f"/flow_runs/{begun['id']}/set_state", {"state": {"type": "CANCELLING"}})
        until(lambda: not stages("detect"), "the end of the child", seconds=10)
        until(lambda: team.api(f"/flow_runs/{begun['id']}", method="GET")["state_type"] == "CANCELLED", "the cancellation", seconds=30)


def stages(name: str) -> list[int]:
    """The processes of a stage."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"pipeline.stages" in words and name.encode() in words:
                found.append(int(entry.name))
    return found


def test_a_registered_version_is_reviewed_by_itself(team: Team) -> None:
    """MLflow tells the hook, the hook starts a review, a worker makes it, and a verdict that is new is told to a webhook of the team's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hook = subprocess.Popen(
        [sys.executable, "-m", "flows", "hook", "--port", str(port), "--catalogue", str(team.folder / "catalogue.yaml")],
        env=team.env | {"ONNX_AUDIT_HOOK_SECRET": "of the hook"},
        cwd=team.folder,
    )
    client = team.mlflow()
    try:
        with team.worker("four"):
            until(lambda: answers(port), "the hook")
            client.create_webhook("onnx-audit", f"http://127.0.0.1:{port}/mlflow", ["model_version.created"], secret="of the hook")
            version = register(team, "quick-hooked", team.folder / "backdoored.onnx")
            until(lambda: client.get_model_version("quick-hooked", version).tags.get("audit.verdict") == "REJECT", "the review")
    finally:
        hook.terminate()
        assert hook.wait(30) in (0, 130)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
