"""The whole audit by the command, on a small model that was trained with a backdoor: real stages, servers and stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import graph_backdoors
import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import yaml
from conftest import Place, place

from pipeline.convert.write_back import differences
from pipeline.detect.bank import KINDS


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["outcome"] for stage in report["stages"]}


def processes(marker: str) -> list[int]:
    """Processes with `marker` in their environment: whatever a command started, and what that started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "environ").read_bytes() and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def gone(marker: str, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def wait_for_purify(marker: str, process: subprocess.Popen[str]) -> int:
    """The PID of the purify stage's process, once it computes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for pid in processes(marker):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"pipeline.stages" in words and b"purify" in words:
                return pid
        time.sleep(0.02)
    raise AssertionError("the purify stage never ran")


def test_a_backdoored_model_is_repaired(here: Place, tiny_backdoored: tiny.Backdoored, spec: Path) -> None:
    out = here.folder / "out"
    done = here.command("run", tiny_backdoored.model, "--spec", spec, "--out", out, "--device", "cpu")
    assert done.returncode == 1, done.stderr
    assert "REPAIRED" in done.stdout
    assert "purify" in done.stderr
    report = report_of(out)
    jsonschema.validate(report, json.loads(resources.files("pipeline.report").joinpath("report.schema.json").read_text()))

    assert report["verdict"] == "REPAIRED"
    assert report["submitted"]["attacks"][0]["asr"]["rate"] > 0.9
    assert report["purified"]["attacks"][0]["asr"]["rate"] <= 0.1
    assert report["purified"]["provider"] == "CPUExecutionProvider"
    assert report["detection"]["score"] >= report["detection"]["threshold"] and report["detection"]["complete"]
    assert report["detection"]["suspected"][0]["target"] == tiny_backdoored.trigger.target
    assert "detect.suspected" in {reason["code"] for reason in report["reasons"]}
    recovered = [attack for attack in report["submitted"]["attacks"] if attack["kind"] == "recovered"]
    again = [attack for attack in report["purified"]["attacks"] if attack["kind"] == "recovered"]
    assert recovered and recovered[0]["asr"]["rate"] > 0.5 and again[0]["asr"]["rate"] <= 0.1, "what was recovered is measured before and after"
    assert report["parity"]["max_relative_difference"] <= 1e-3

    purified = out / report["files"]["purified"]
    onnx.checker.check_model(onnx.load(purified), full_check=True)
    session = onnxruntime.InferenceSession(purified, providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: np.load(out / "input_example.npy")})[0].shape[1] == tiny.CLASSES
    changed = differences(tiny_backdoored.model, purified)
    assert changed == sorted(change["name"] for change in report["purified"]["changes"])
    readers = {name: node.op_type for node in onnx.load(purified).graph.node for name in node.input}
    assert {readers[name] for name in changed} <= {"Conv", "Gemm", "MatMul"}
    assert "<script" not in (out / "report.html").read_text()
    (run,) = json.loads((out / report["files"]["sarif"]).read_text())["runs"]
    assert {"verdict.repaired", "submitted.asr", "detect.suspected"} <= {result["ruleId"] for result in run["results"]}
    assert int(ElementTree.parse(out / report["files"]["junit"]).getroot().attrib["failures"]) > 0
    assert {path.name for path in (out / "plots").iterdir()} == {"before_after.png", "history.png", "perturbation.png", "recovered.png", "suspects.png"}


def test_the_second_run_reuses_and_records_once(here: Place, tiny_backdoored: tiny.Backdoored, spec: Path) -> None:
    first = here.command("run", tiny_backdoored.model, "--spec", spec, "--out", "one")
    second = here.command("run", tiny_backdoored.model, "--spec", spec, "--out", "two", "--accept-repaired")
    assert (first.returncode, second.returncode) == (1, 0), first.stderr + second.stderr
    gates = [ElementTree.parse(here.folder / out / "junit.xml").getroot().attrib for out in ("one", "two")]
    assert [int(gate["failures"]) + int(gate["errors"]) > 0 for gate in gates] == [True, False]
    assert (here.folder / "one" / "report.sarif").read_bytes() == (here.folder / "two" / "report.sarif").read_bytes()
    assert "reused from an earlier audit" in second.stdout
    one, two = report_of(here.folder / "one"), report_of(here.folder / "two")
    again = outcomes(two)
    assert {
        again[name] for name in ("scan", "read", "measure", "import", "detect", "measure recovered", "purify", "write-back", "measure again", "plots", "record")
    } == {"reused"}
    assert one["mlflow"]["run_id"] == two["mlflow"]["run_id"]
    for part in ("verdict", "reasons", "submitted", "purified", "findings", "parity"):
        assert one[part] == two[part]
    assert (here.folder / "one" / "purified.onnx").read_bytes() == (here.folder / "two" / "purified.onnx").read_bytes()

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{here.folder / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "onnx-audit"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["audit.verdict"] == "REPAIRED"
    codes = run.data.tags["audit.reasons"].split(", ")
    assert len(codes) == len(set(codes)) and set(codes) == {reason["code"] for reason in one["reasons"]}
    assert run.data.metrics["acc_before"] == pytest.approx(one["submitted"]["clean"]["rate"])
    assert len(client.get_metric_history(run.info.run_id, "loss_clean")) > 10
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"report.json", "report.html", "report.sarif", "plots", "masks.npz"}


def test_without_a_server_and_with_json(tmp_path: Path, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    alone = place(tmp_path, tmp_path / "home")
    done = alone.command("run", tiny_backdoored.model, "--spec", told, "--purify", "never", "--json", "--quiet")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["verdict"] == "REJECT"
    assert report["purified"] is None
    assert gone(str(tmp_path / "home"), seconds=5), "the temporary server must go with the command"


def test_the_prefect_artifact_is_there(here: Place, tiny_backdoored: tiny.Backdoored, told: Path, prefect_url: str) -> None:
    import httpx

    assert here.command("run", tiny_backdoored.model, "--spec", told, "--purify", "never").returncode == 1
    key = f"audit-{report_of(next((here.folder / 'audits').iterdir()))['model']['sha256'][:12]}"
    latest = httpx.get(f"{prefect_url}/artifacts/{key}/latest").json()
    assert latest["type"] == "table"
    assert "ACC clean images" in latest["data"] and "95 %" not in latest["description"], "the table is there once"
    runs = httpx.post(f"{prefect_url}/task_runs/filter", json={"flow_runs": {"id": {"any_": [latest["flow_run_id"]]}}}).json()
    assert {"intake", "scan", "measure", "record"} <= {one["name"] for one in runs}, "as the report calls them"


def test_a_backdoor_that_nobody_told_of_is_found_and_repaired(here: Place, tiny_backdoored: tiny.Backdoored) -> None:
    done = here.command("run", tiny_backdoored.model, "--data", tiny_backdoored.images, "--out", "out")
    assert done.returncode == 1, done.stderr
    report = report_of(here.folder / "out")
    assert report["verdict"] == "REPAIRED"
    assert {attack["kind"] for attack in report["submitted"]["attacks"]} == {"recovered"}, "no trigger was given, and none is invented"
    assert report["detection"]["suspected"][0]["target"] == tiny_backdoored.trigger.target
    assert {"detect.suspected", "submitted.asr", "purify.passes"} <= {reason["code"] for reason in report["reasons"]}
    assert "suspected" in (here.folder / "out" / "report.html").read_text()
    assert report["reading"]["guessed"] is True
    assert report["submitted"]["clean"]["rate"] > 0.9
    trigger = here.folder / "out" / "recovered" / "0" / "trigger.yaml"
    spec = {"triggers": [yaml.safe_load(trigger.read_text())], "data": {"images": str(tiny_backdoored.images)}, "detect": {"when": "never"}}
    (trigger.parent / "audit.yaml").write_text(yaml.safe_dump(spec))
    known = here.command("run", tiny_backdoored.model, "--spec", trigger.parent / "audit.yaml", "--purify", "never", "--out", "known")
    assert known.returncode == 1, known.stderr
    attacks = report_of(here.folder / "known")["submitted"]["attacks"]
    assert [attack["kind"] for attack in attacks] == ["known"] and attacks[0]["asr"]["rate"] > 0.5, "what was recovered can be told the next audit"


def test_a_clean_model_is_accepted(here: Place, tiny_clean: tiny.Backdoored) -> None:
    """And not purified: nothing is changed for the sake of a backdoor that is not there."""
    done = here.command("run", tiny_clean.model, "--data", tiny_clean.images, "--out", "out")
    report = report_of(here.folder / "out")
    assert done.returncode == 0, [reason["text"] for reason in report["reasons"]]
    assert report["verdict"] == "ACCEPT" and report["purified"] is None
    assert report["detection"]["suspected"] == [] and report["detection"]["complete"]
    assert {other["kind"] for other in report["detection"]["others"]} == set(KINDS)


def test_without_a_search_nothing_is_accepted(here: Place, tiny_clean: tiny.Backdoored) -> None:
    (here.folder / "audit.yaml").write_text(yaml.safe_dump({"data": {"images": str(tiny_clean.images)}, "detect": {"when": "never"}}))
    done = here.command("run", tiny_clean.model, "--spec", "audit.yaml", "--out", "out")
    assert done.returncode == 3, done.stderr
    report = report_of(here.folder / "out")
    assert report["verdict"] == "INCONCLUSIVE" and report["detection"] is None
    assert any("No search for unknown triggers" in reason["text"] for reason in report["reasons"])


def test_the_output_with_the_scores_is_found_and_repaired(here: Place, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    """The first output is the logits turned round; the second, found on calibration images, is measured, repaired and written back."""
    model = onnx.load(tiny_backdoored.model)
    model.graph.node.append(onnx.helper.make_node("Neg", ["logits"], ["turned"]))
    (logits,) = model.graph.output
    turned = onnx.helper.make_tensor_value_info("turned", 1, ("batch", tiny.CLASSES))
    outputs = [turned, onnx.ValueInfoProto.FromString(logits.SerializeToString())]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, here.folder / "two.onnx")
    done = here.command("run", "two.onnx", "--spec", told, "--out", "out")
    assert done.returncode == 1, done.stderr
    report = report_of(here.folder / "out")
    output = report["reading"]["output"]
    assert (output["name"], output["probabilities"], output["guessed"], set(output["scores"])) == ("logits", False, True, {"turned", "logits"})
    assert [reason["code"] for reason in report["reasons"] if reason["code"].startswith("read.")] == ["read.output-guessed"]
    assert report["verdict"] == "REPAIRED"
    assert report["submitted"]["clean"]["rate"] > 0.9


def test_a_killed_purifier_is_tried_again(here: Place, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    process = here.start("run", tiny_backdoored.model, "--spec", told, "--out", "out")
    marker = here.env["ONNX_AUDIT_HOME"]
    os.kill(wait_for_purify(marker, process), signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1, errors
    assert report_of(here.folder / "out")["verdict"] == "REPAIRED"


def test_a_purifier_killed_twice_is_inconclusive(here: Place, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    process = here.start("run", tiny_backdoored.model, "--spec", told, "--out", "out")
    marker = here.env["ONNX_AUDIT_HOME"]
    first = wait_for_purify(marker, process)
    os.kill(first, signal.SIGKILL)
    while (second := wait_for_purify(marker, process)) == first:
        time.sleep(0.02)
    os.kill(second, signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 3, errors
    report = report_of(here.folder / "out")
    assert report["verdict"] == "INCONCLUSIVE"
    assert any("purify" in reason["text"] and "SIGKILL" in reason["text"] for reason in report["reasons"])
    assert report["submitted"] is not None


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_all(tmp_path: Path, tiny_backdoored: tiny.Backdoored, told: Path, how: signal.Signals) -> None:
    alone = place(tmp_path, tmp_path / "home")
    process = alone.start("run", tiny_backdoored.model, "--spec", told, "--out", "out")
    wait_for_purify(str(tmp_path / "home"), process)
    started = time.monotonic()
    os.killpg(process.pid, how)  # as a terminal does: to the whole foreground group
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert gone(str(tmp_path / "home"), seconds=2), "an orphan was left"
    assert not (tmp_path / "out").exists()


HANGS = """
import os, signal, time
from flows.cli import _Ending

with _Ending() as ending:
    ending.callback(time.sleep, 60)
    os.kill(os.getpid(), signal.{how})
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_ending_that_hangs_is_cut_short(how: str) -> None:
    """Regression: Ctrl-C took 27 s where the server was busy; Prefect's client tries again to tell it that a run has ended."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGS.format(how=how)], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.returncode == 130 and ended.stderr.count("interrupted; what had finished is kept") == 1, ended.stderr


def test_a_killed_command_leaves_no_orphan(tmp_path: Path, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    alone = place(tmp_path, tmp_path / "home")
    process = alone.start("run", tiny_backdoored.model, "--spec", told, "--out", "out")
    wait_for_purify(str(tmp_path / "home"), process)
    process.kill()
    process.communicate(timeout=30)
    assert gone(str(tmp_path / "home"), seconds=5)
    again = alone.command("run", tiny_backdoored.model, "--spec", told, "--out", "out")
    assert again.returncode == 1, again.stderr
    assert outcomes(report_of(tmp_path / "out"))["measure"] == "reused"
    assert list((tmp_path / "home" / "scratch").iterdir()) == []


def test_mlflow_down_loses_nothing(here: Place, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    out = here.folder / "out"
    done = here.command("run", tiny_backdoored.model, "--spec", told, "--out", out, "--tracking-uri", "http://127.0.0.1:9")
    assert done.returncode == 1, done.stderr
    report = report_of(out)
    assert report["verdict"] == "REPAIRED"
    assert report["mlflow"] is None
    assert "record.failed" in {reason["code"] for reason in report["reasons"]}
    sent = here.command("record", out, "--tracking-uri", f"sqlite:///{here.folder / 'later.db'}")
    assert sent.returncode == 0, sent.stderr
    assert report_of(out)["mlflow"]["run_id"] in sent.stdout
    assert not (out / "record.json").exists()
    nothing = here.command("record", out)
    assert nothing.returncode == 2
    assert "nothing to send" in nothing.stderr


def test_external_data_is_audited_and_written_beside(here: Place, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    model = here.folder / "external.onnx"
    onnx.save_model(onnx.load(tiny_backdoored.model), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    done = here.command("run", model, "--spec", told, "--out", "out")
    assert done.returncode == 1, done.stderr
    report = report_of(here.folder / "out")
    assert report["verdict"] == "REPAIRED"
    purified = here.folder / "out" / report["files"]["purified"]
    assert purified.name == "model.onnx"
    assert (purified.parent / "weights.bin").read_bytes() != (here.folder / "weights.bin").read_bytes()
    onnxruntime.InferenceSession(purified, providers=["CPUExecutionProvider"])


def test_a_purifier_that_takes_too_long_is_inconclusive(here: Place, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    hurried = told.parent / "hurried.yaml"
    hurried.write_text(told.read_text().replace("images: 80", "images: 80\n  seconds: 0.5"))
    done = here.command("run", tiny_backdoored.model, "--spec", hurried, "--out", "out")
    assert done.returncode == 3, done.stderr
    assert any("purify stage was stopped after 0.5 s" in reason["text"] for reason in report_of(here.folder / "out")["reasons"])


def test_nothing_to_mask_is_inconclusive_and_keeps_what_was_measured(here: Place, tiny_backdoored: tiny.Backdoored) -> None:
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["f"]), onnx.helper.make_node("Gemm", ["f", "W"], ["y"])]
    onnx.save(tiny.model(nodes, {"W": tiny.values(432, 4)}, shape=("N", 3, 12, 12)), here.folder / "flat.onnx")
    done = here.command("run", "flat.onnx", "--data", tiny_backdoored.images, "--out", "out", "--purify", "always", "--preset", "paper")
    assert done.returncode == 3, done.stderr
    report = report_of(here.folder / "out")
    assert any(reason["code"] == "purify.failed" and "nothing to mask" in reason["text"] for reason in report["reasons"])
    assert any(reason["code"] == "read.guessed" for reason in report["reasons"])
    assert report["submitted"] is not None


def test_a_backdoor_in_the_graph_is_cut_out(here: Place, tiny_backdoored: tiny.Backdoored, told: Path) -> None:
    """Its weights are clean here: the trigger that the spec names is the one that the graph sees."""
    model = graph_backdoors.inject(onnx.load(tiny_backdoored.model), "comparison", "function", "blend")
    content = yaml.safe_load(told.read_text())
    content["data"]["images"] = str(tiny_backdoored.images)
    content["triggers"] = [{"name": "square", "kind": "patch", "size": [3, 3], "color": [255, 255, 255], "at": [0, 0], "target": graph_backdoors.TARGET}]
    (here.folder / "audit.yaml").write_text(yaml.safe_dump(content))
    done = here.command("run", tiny.save(model, here.folder), "--spec", "audit.yaml", "--out", "out", "--device", "cpu")
    assert done.returncode == 1 and "REPAIRED" in done.stdout, done.stdout + done.stderr
    report = report_of(here.folder / "out")
    jsonschema.validate(report, json.loads(resources.files("pipeline.report").joinpath("report.schema.json").read_text()))
    assert {"graph.gate-past-the-weights", "purify.passes"} <= {reason["code"] for reason in report["reasons"]}
    (gate,) = report["gates"]
    assert gate["steady"] and gate["kept"]["rate"] == 1 and gate["target"] == graph_backdoors.TARGET
    assert report["purified"]["method"] == "cut" and report["purified"]["changed_initializers"] == 0
    assert report["submitted"]["attacks"][0]["asr"]["rate"] == 1 and report["purified"]["attacks"][0]["asr"]["rate"] < 0.1
    assert report["submitted"]["clean"] == report["purified"]["clean"]
    assert {name for name, outcome in outcomes(report).items() if outcome == "skipped"} == {"import", "detect", "purify", "write-back"}
    assert "Gates in the graph" in (here.folder / "out" / "report.html").read_text()
    onnx.checker.check_model(onnx.load(here.folder / "out" / report["files"]["purified"]), full_check=True)
