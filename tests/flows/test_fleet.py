"""Many models at once: what is taken in, what is not looked at again, and what is told when a verdict changes."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import tiny
import yaml
from conftest import Place
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Failed, Pending

import flows.fleet
from flows.cli import code_of
from pipeline.artifact import ModelArtifact
from pipeline.config import AuditSpec
from pipeline.errors import BadInput, SpecRefused
from pipeline.fleet import Member, bring, files_of, only_once, read_fleet, versions_of
from pipeline.inputs import Inputs, Job


@pytest.fixture
def vendors(here: Place, tiny_backdoored: tiny.Backdoored, tiny_clean: tiny.Backdoored) -> Place:
    """A folder with a fleet: two vendors, and a file that is no model."""
    for vendor, model in (("acme", tiny_clean.model), ("globex", tiny_backdoored.model)):
        (here.folder / vendor).mkdir()
        shutil.copy(model, here.folder / vendor / "model.onnx")
    (here.folder / "acme" / "broken.onnx").write_bytes(b"this is no model")
    trigger = tiny_backdoored.trigger.model_dump(mode="json", exclude_none=True)
    spec = {
        "input": tiny_backdoored.reading.model_dump(mode="json"),
        "data": {"images": str(tiny_backdoored.images)},
        "triggers": [trigger],
        "detect": {"when": "never"},
        "purify": {"when": "never"},
    }
    (here.folder / "audit.yaml").write_text(yaml.safe_dump(spec))
    (here.folder / "fleet.yaml").write_text(yaml.safe_dump({"models": [{"models": "*/*.onnx", "spec": "audit.yaml"}, {"models": "none/*.onnx"}]}))
    return here


def audited(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    models: dict[str, Any] = json.loads(done.stdout)["models"]
    return models


def test_a_fleet_is_audited_once(vendors: Place) -> None:
    first = vendors.command("fleet", "fleet.yaml", "--json", "--out", "reports", "--workers", "2")
    assert first.returncode == 1, first.stderr
    found = audited(first)
    assert {name: model["verdict"] for name, model in found.items()} == {
        "acme/broken": "REFUSED",
        "acme/model": "INCONCLUSIVE",
        "globex/model": "REJECT",
        str(vendors.folder / "none" / "*.onnx"): "FAILED",
    }
    assert found["acme/model"]["reasons"] == ["detect.absent"] and found["globex/model"]["before"] is None
    assert json.loads((vendors.folder / "reports" / "globex-model" / "report.json").read_text())["verdict"] == "REJECT"

    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{vendors.folder / 'mlflow.db'}")
    fleet_run = client.get_run(json.loads(first.stdout)["run_id"])
    assert fleet_run.info.status == "FINISHED" and fleet_run.data.metrics["models.reject"] == 1
    child = client.get_run(found["globex/model"]["run_id"])
    assert child.data.tags["mlflow.parentRunId"] == fleet_run.info.run_id and child.data.tags["audit.verdict"] == "REJECT"

    second = vendors.command("fleet", "fleet.yaml", "--json")
    again = audited(second)
    assert again["globex/model"]["unchanged"] and again["globex/model"]["run_id"] == found["globex/model"]["run_id"]
    assert not again["acme/model"]["unchanged"], "what is not settled is tried again"
    assert again["acme/model"]["run_id"] == found["acme/model"]["run_id"], "and it is the same audit"

    spec = yaml.safe_load((vendors.folder / "audit.yaml").read_text())
    (vendors.folder / "audit.yaml").write_text(yaml.safe_dump(spec | {"policy": {"max_asr": 1.0}}))
    third = audited(vendors.command("fleet", "fleet.yaml", "--json"))
    assert not third["globex/model"]["unchanged"] and (third["globex/model"]["before"], third["globex/model"]["verdict"]) == ("REJECT", "INCONCLUSIVE")


def test_a_fleet_that_is_wrong_is_refused(here: Place) -> None:
    (here.folder / "fleet.yaml").write_text("models: [{paths: x}]")
    done = here.command("fleet", "fleet.yaml")
    assert done.returncode == 2 and "models.0" in done.stderr, done.stderr


def test_a_password_in_mlflows_address_goes_into_no_parameters(here: Place) -> None:
    (here.folder / "fleet.yaml").write_text("models: [{models: '*.onnx'}]\n")
    done = here.command("fleet", "fleet.yaml", "--deployment", "audit-job/audit-job", "--tracking-uri", "https://me:secret@mlflow.example")
    assert done.returncode == 2 and "MLFLOW_TRACKING_PASSWORD" in done.stderr and "secret@" not in done.stdout + done.stderr


def test_a_run_that_a_worker_took_and_did_not_begin_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's states, and no server: what it would be asked for is counted."""
    asked: list[str] = []
    given_up: list[str] = []

    def start(name: str, job: Job, options: object, deployment: str, which: str) -> FlowRun:
        asked.append(which)
        slow = len(asked) <= (1 if name == "later" else flows.fleet.ATTEMPTS + 1)
        taken = Pending(timestamp=datetime.now(UTC) - timedelta(seconds=2 * flows.fleet.LOST))
        return FlowRun(flow_id=uuid4(), state=taken if slow else Failed(message="it began, and the model is none"))

    inputs = Inputs(calibration={}, holdout={}, triggers=[], shape=(8, 8, 3), calibrated=frozenset())
    job = Job(name="m", model=ModelArtifact(files={"model.onnx": f"sha256:{'0' * 64}"}), spec=AuditSpec(), inputs=inputs)
    options = flows.fleet.Options(tracking_uri="x", experiment="x", parent="x", out=None)
    monkeypatch.setattr("flows.fleet._start", start)
    monkeypatch.setattr("flows.fleet._states", dict)
    monkeypatch.setattr("flows.fleet._set_state", lambda run, state: given_up.append(state.type))
    monkeypatch.setattr("flows.fleet.LOOK", 0.0)
    [(_, line)] = flows.fleet._elsewhere({"later": job}, options, "d", since="s")
    assert line.reasons == ["it began, and the model is none"] and asked == ["s-1", "s-2"] and given_up == [StateType.CRASHED]
    asked.clear()
    [(_, line)] = flows.fleet._elsewhere({"never": job}, options, "d", since="s")
    assert (line.verdict, line.reasons) == ("FAILED", ["3 workers took it, and none began"]) and asked == ["s-1", "s-2", "s-3"]


def test_where_a_fleet_lies_is_where_its_paths_begin(folder: Path) -> None:
    (folder / "f.yaml").write_text("models: [{models: 'a/*.onnx', spec: s.yaml}, {models: 'models:/x'}, {models: 's3://b/*.onnx', data: d}]")
    fleet = read_fleet(folder / "f.yaml")
    assert fleet.name == "f" and fleet.models[0].models == str(folder / "a/*.onnx") and fleet.models[0].spec == folder / "s.yaml"
    assert fleet.models[1].registered and fleet.models[2].models == "s3://b/*.onnx" and fleet.models[2].data == folder / "d"
    (folder / "f.yaml").write_text("models: []")
    with pytest.raises(SpecRefused, match="models"):
        read_fleet(folder / "f.yaml")


def test_files_are_named_by_their_paths(folder: Path) -> None:
    for name in ("a/one.onnx", "a/b/two.onnx", "a/x.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "a" / "folder.onnx").mkdir()
    assert files_of(str(folder / "a/**/*.onnx"), folder) == {"a/b/two": str(folder / "a/b/two.onnx"), "a/one": str(folder / "a/one.onnx")}
    with pytest.raises(BadInput, match="no file matches"):
        files_of(str(folder / "none/*.onnx"), folder)
    with pytest.raises(BadInput, match="cannot be opened"):
        files_of("nowhere://x/*.onnx", folder)


def test_an_object_comes_with_its_external_data(folder: Path) -> None:
    import fsspec

    there = fsspec.filesystem("memory")
    for name in ("m.onnx", "m.onnx.data", "m.data", "mm.onnx"):
        there.pipe_file(f"/bucket/{name}", name.encode())
    assert bring("memory://bucket/m.onnx", folder) == folder / "m.onnx"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: name for name in ("m.onnx", "m.onnx.data", "m.data")}
    assert list(files_of("memory://bucket/*.onnx", folder)) == ["bucket/m", "bucket/mm"]


@pytest.mark.parametrize(("text", "expected"), [("models:/a", ("a", "latest")), ("models:/v-*@prod", ("v-*", "@prod")), ("models:/a/all", ("a", "all"))])
def test_versions_are_asked_for(text: str, expected: tuple[str, str]) -> None:
    assert versions_of(text) == expected


@pytest.mark.parametrize("text", ["models:/", "models:/a/3", "models:/a@", "models:/a/b/c"])
def test_what_asks_for_no_versions_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="models:/PATTERN"):
        versions_of(text)


def test_each_model_comes_once() -> None:
    members = [Member(name="a", where="/x/a.onnx", entry=0), Member(name="a", where="/x/a.onnx", entry=1), Member(name="a", where="/y/a.onnx", entry=1)]
    assert [(member.name, member.entry) for member in only_once(members)] == [("x/a", 0), ("y/a", 1)]


def test_an_exit_code_stands_for_each_verdict() -> None:
    assert [code_of(verdict, accept_repaired=False) for verdict in ("ACCEPT", "REPAIRED", "REJECT", "REFUSED", "INCONCLUSIVE", "FAILED")] == [0, 1, 1, 2, 3, 3]
    assert code_of("REPAIRED", accept_repaired=True) == 0
