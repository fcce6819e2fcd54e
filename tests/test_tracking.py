"""The MLflow record: a real SQLite store, a real server, and a dead one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from onnx import TensorProto, helper, numpy_helper

from pipeline import tracking
from pipeline.artifact import sha256
from pipeline.errors import RecordFailed
from pipeline.results import Step
from pipeline.tracking import RecordRequest, RecordResult, absolute_tracking_uri, record

KEY = "5f" * 32
IMAGES = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)


def classifier() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.random.default_rng(1).normal(size=(48, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weights]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def predict(model: Path | bytes) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"])
    scores: np.ndarray[Any, Any] = session.run(None, {"x": IMAGES})[0]
    return scores


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    onnx.save(classifier(), folder / "5f5f")
    np.save(folder / "example.npy", IMAGES)
    (folder / "report.json").write_text("{}")
    (folder / "report.json").chmod(0o444)  # as the store keeps its files
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    return absolute_tracking_uri(None, tmp_path_factory.mktemp("work #1"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tracking.connect(f"sqlite:///{folder}/mlflow.db")  # the server would take 6 s for it
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail((folder / "log").read_text())
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(params=["local", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except OSError:
        return False


def asked(uri: str, files: Path, **changes: object) -> RecordRequest:
    values = {
        "tracking_uri": uri,
        "experiment": "onnx-audit",
        "audit_key": KEY,
        "run_name": "vendor.onnx",
        "params": {"method": "awm", "seed": "0"},
        "metrics": {"submitted.asr": 0.98, "purified.asr": 0.01},
        "history": [Step(step=step, metrics={"loss": 1 / (step + 1), "mask_mean": 0.9}) for step in range(600)],
        "tags": {"verdict": "REPAIRED"},
        "artifacts": {"report.json": str(files / "report.json"), "plots/asr.png": str(files / "example.npy")},
        "model": str(files / "5f5f"),
        "input_example": str(files / "example.npy"),
        "description": "# Repaired\nby AWM",
    }
    return RecordRequest.model_validate(values | changes)


def logged_models(run: Run) -> list[str]:
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def steps(uri: str, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def test_an_audit_has_one_run_with_all_of_it(uri: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = record(asked(uri, files))
    again = record(asked(uri, files))

    assert (first.reused, again.reused) == (False, True)
    assert again.run_id == first.run_id
    client = MlflowClient(uri)
    [run] = client.search_runs([first.experiment_id], f"tags.`audit.key` = '{KEY}'")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "vendor.onnx"
    assert run.data.params == {"method": "awm", "seed": "0"}
    assert run.data.metrics["purified.asr"] == 0.01
    assert steps(uri, run.info.run_id, "loss") == list(range(600))
    assert steps(uri, run.info.run_id, "purified.asr") == [0]
    assert run.data.tags["verdict"] == "REPAIRED"
    assert run.data.tags["mlflow.note.content"] == "# Repaired\nby AWM"
    assert {info.path for info in client.list_artifacts(run.info.run_id)} >= {"report.json", "plots"}
    assert [info.path for info in client.list_artifacts(run.info.run_id, "plots")] == ["plots/asr.png"]

    digest = sha256(files / "5f5f")
    assert (run.data.tags["record.purified_sha256"], run.data.tags["record.stored_sha256"]) == (digest, digest)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model_uri = f"models:/{logged_models(run)[0]}"
    stored = mlflow.onnx.load_model(model_uri)
    np.testing.assert_array_equal(predict(stored.SerializeToString()), predict(files / "5f5f"))
    served = mlflow.pyfunc.load_model(model_uri)
    np.testing.assert_array_equal(served.predict(IMAGES)["y"], predict(files / "5f5f"))
    np.testing.assert_array_equal(mlflow.models.Model.load(model_uri).load_input_example(), IMAGES)
    assert [(spec.shape, spec.type) for spec in served.metadata.signature.inputs] == [((-1, 3, 4, 4), np.float32)]
    assert [(spec.name, spec.shape) for spec in served.metadata.signature.outputs] == [("y", (-1, 3))]
    requirements = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=str(tmp_path)), "requirements.txt").read_text()
    assert requirements.count("onnxruntime") == 1
    assert first.ui == (None if uri.startswith("sqlite") else f"{uri}/#/experiments/{first.experiment_id}/runs/{first.run_id}")


def test_what_else_this_process_does_with_mlflow_is_left_alone(local: str, files: Path, tmp_path: Path) -> None:
    other = tracking.connect(f"sqlite:///{tmp_path}/other.db")
    stack = contextlib.ExitStack()
    with pytest.MonkeyPatch.context() as patch, stack:
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")  # set_experiment sets it
        patch.chdir(tmp_path)
        mlflow.set_tracking_uri(other.tracking_uri)
        stack.callback(mlflow.set_tracking_uri, None)
        patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
        experiment = mlflow.set_experiment("theirs").experiment_id
        with mlflow.start_run() as theirs:
            result = record(asked(local, files, audit_key="a4" * 32))
            mlflow.log_param("still", "theirs")
            assert mlflow.get_tracking_uri() == other.tracking_uri
    assert len(logged_models(MlflowClient(local).get_run(result.run_id))) == 1
    [run] = other.search_runs([experiment])
    assert (run.info.run_id, run.data.params, logged_models(run)) == (theirs.info.run_id, {"still": "theirs"}, [])


def test_a_run_that_was_left_is_carried_on(uri: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    key = "a1" * 32
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_log_file", die)  # the metrics are written, the files are not
        with pytest.raises(KeyboardInterrupt):
            record(asked(uri, files, audit_key=key))
    client = MlflowClient(uri)
    experiment = tracking.experiment_of(client, "onnx-audit")
    [left] = client.search_runs([experiment], f"tags.`audit.key` = '{key}'")
    assert left.info.status == "RUNNING"

    result = record(asked(uri, files, audit_key=key))
    assert (result.run_id, result.reused) == (left.info.run_id, False)
    [run] = client.search_runs([experiment], f"tags.`audit.key` = '{key}'")
    assert run.info.status == "FINISHED"
    assert steps(uri, run.info.run_id, "loss") == list(range(600))
    assert len(logged_models(run)) == 1


def test_a_run_that_failed_half_way_is_carried_on(local: str, files: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"no model")
    key = "a2" * 32
    with pytest.raises(RecordFailed, match="the report is on disk"):
        record(asked(local, files, audit_key=key, model=str(broken)))
    result = record(asked(local, files, audit_key=key))
    run = MlflowClient(local).get_run(result.run_id)
    assert (run.info.status, len(logged_models(run))) == ("FINISHED", 1)
    assert steps(local, run.info.run_id, "loss") == list(range(600))


def test_of_two_at_once_the_first_is_kept(local: str, files: Path) -> None:
    client, request = MlflowClient(local), asked(local, files, audit_key="a3" * 32)
    experiment = tracking.experiment_of(client, request.experiment)
    first = tracking._create(client, experiment, request)
    second = tracking._create(client, experiment, request)  # it had looked before the first was there
    assert second.info.run_id == first.info.run_id
    assert len(client.search_runs([experiment], f"tags.`audit.key` = '{request.audit_key}'")) == 1


def test_hostile_text_is_made_fit(local: str, files: Path) -> None:
    long = "x" * 20_000
    tags = {"../../etc/passwd": "a", "a\nb<script>": "c\x1b[31md\u202e", "mlflow.note.content": "mine", "audit.key": "00" * 32, "": "e", long: long}
    params = {"//": "1", "ключ": long, "a/./b": "\ud800"} | {f"p{number}": "\N{PILE OF POO}" * 6000 for number in range(30)}
    metrics = {"good": 1.0, "nan": float("nan"), "inf": float("-inf"), "../m": 2.0}
    history = [Step(step=3, metrics={"loss": float("nan")})]
    result = record(
        asked(local, files, audit_key="b2" * 32, run_name=long, tags=tags, params=params, metrics=metrics, history=history, model=None, description="")
    )
    data = MlflowClient(local).get_run(result.run_id).data
    assert data.tags["etc/passwd"] == "a"
    assert data.tags["a_b_script_"] == "c�[31md�"
    assert "mlflow.note.content" not in data.tags
    assert data.tags["_mlflow.note.content"] == "mine"
    assert data.tags["audit.key"] == "b2" * 32
    assert data.tags["_"] == "e"
    assert len(data.tags["x" * 250]) == 8000
    assert len(data.params) == 33
    assert len(data.params["____"]) == 6000
    assert data.params["a/b"] == "�"
    assert data.metrics == {"good": 1.0, "m": 2.0}
    assert data.tags["record.dropped_metrics"] == "not finite: nan at 0, inf at 0, loss at 3"


def test_the_largest_values_pass_a_server(server: str, files: Path) -> None:
    wide = "\N{PILE OF POO}" * 9000
    texts = {f"k{number}": wide for number in range(30)}
    result = record(asked(server, files, audit_key="c3" * 32, tags=texts, params=texts, history=[], model=None))
    assert len(MlflowClient(server).get_run(result.run_id).data.params) == 30


@pytest.mark.parametrize("kind", ["external data", "unusual order"])
def test_bytes_that_mlflow_changes_are_kept_beside_it(kind: str, local: str, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if kind == "external data":
        (tmp_path / "weights").mkdir()
        onnx.save(classifier(), path, save_as_external_data=True, location="weights/w.bin", size_threshold=0)
    else:
        content = classifier().SerializeToString()
        path.write_bytes(content[2:] + content[:2])  # ir_version, the first field, at the end
    key = {"external data": "d4", "unusual order": "e5"}[kind] * 32
    result = record(asked(local, files, audit_key=key, model=str(path), artifacts={"purified.onnx": str(path)}))
    client = MlflowClient(local)
    tags = client.get_run(result.run_id).data.tags
    assert tags["record.purified_sha256"] == sha256(path) != tags["record.stored_sha256"]
    kept = Path(client.download_artifacts(result.run_id, "", str(tmp_path)))
    assert sha256(kept / "purified.onnx") == sha256(path)
    np.testing.assert_array_equal(predict(kept / "purified.onnx"), predict(path))


def test_a_process_of_its_own_says_nothing_and_stays_in_the_working_folder(files: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    code = "import sys; from pipeline.tracking import *; print(record(RecordRequest.model_validate_json(sys.stdin.read())).model_dump_json())"
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=asked(absolute_tracking_uri(None, tmp_path / "work"), files).model_dump_json(),
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    result = RecordResult.model_validate_json(child.stdout)
    assert child.stderr == ""
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["mlflow.db", "mlruns"]
    assert (tmp_path / "work" / "mlruns" / result.experiment_id / result.run_id / "artifacts" / "report.json").is_file()
    [default] = [found for found in MlflowClient(result.tracking_uri).search_experiments() if found.name == "Default"]
    assert default.artifact_location == str(tmp_path / "work" / "mlruns" / "0")


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [
        (None, "sqlite:////w/mlflow.db"),
        ("sqlite:///other.db", "sqlite:////w/other.db"),
        ("sqlite:////abs/x.db", "sqlite:////abs/x.db"),
        ("https://mlflow.example", "https://mlflow.example"),
    ],
)
def test_default_store(set_to: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if set_to is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", set_to)
    assert absolute_tracking_uri(None, Path("/w")) == expected


@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
def test_a_dead_server_is_known_soon(listening: bool, files: Path) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if listening:
            dead.listen()
        started = time.monotonic()
        with pytest.raises(RecordFailed, match=r"onnx-audit record OUT") as caught:
            record(asked(f"http://user:s3cret@127.0.0.1:{dead.getsockname()[1]}", files))
    assert time.monotonic() - started < 20
    assert "s3cret" not in str(caught.value)
    assert ("timed out" if listening else "refused") in str(caught.value)


def test_a_store_that_cannot_be_opened_is_a_failed_record(files: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(RecordFailed, match="not a database"):
        record(asked(absolute_tracking_uri(None, tmp_path), files))


def test_passwords_are_taken_out() -> None:
    assert tracking.without_password("at http://u:p@ss@host:5000/x failed") == "at http://host:5000/x failed"
    assert tracking.without_password("postgresql+psycopg2://u:p/w@db/mlflow") == "postgresql+psycopg2://db/mlflow"
    assert tracking.without_password("https://token@host") == "https://host"
    assert tracking.without_password("sqlite:////home/me@work/mlflow.db") == "sqlite:////home/me@work/mlflow.db"


@pytest.mark.parametrize("key", ["", "zz", "a' OR '1'='1", "ab" * 200])
def test_an_audit_key_is_hex(key: str, files: Path) -> None:
    with pytest.raises(ValueError, match="audit_key"):
        asked("sqlite:////x.db", files, audit_key=key)


@pytest.mark.parametrize("path", ["../x", "/x", "", "a/../../x"])
def test_an_artifact_stays_in_its_run(path: str, files: Path) -> None:
    with pytest.raises(ValueError, match="inside the run"):
        asked("sqlite:////x.db", files, artifacts={path: "/etc/hostname"})


def test_a_relative_store_lies_in_the_working_folder(tmp_path: Path) -> None:
    assert absolute_tracking_uri("sqlite:///x.db", tmp_path) == f"sqlite:///{tmp_path / 'x.db'}"
    assert absolute_tracking_uri("./runs", tmp_path) == str(tmp_path / "runs")
    assert absolute_tracking_uri("http://127.0.0.1:5000", tmp_path) == "http://127.0.0.1:5000"
    assert absolute_tracking_uri("databricks", tmp_path) == "databricks"
