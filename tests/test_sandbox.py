"""A stage may hang, eat memory or die: each is an outcome with a name, and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from pipeline.artifact import Store
from pipeline.errors import Defect, ModelRefused, StageFailed, StageKilled
from pipeline.images import read, split
from pipeline.sandbox import Limits, Progress, _environment, ready, run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def children() -> list[int]:
    """Stages whose parent is this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and fields[0] != "Z" and b"pipeline.stages" in words:
                found.append(int(entry.name))
    return found


def purify_request(backdoored: tiny.Backdoored, store: Store) -> dict[str, Any]:
    """A purification that takes some seconds."""
    taken = run("intake", {"source": str(backdoored.model)}, store=store, limits=Limits())
    facts = run("scan", taken, store=store, limits=Limits())["model"]
    calibration, _ = split(read(backdoored.images), calibration=40, seed=0)
    with store.scratch() as folder:
        images = {name: store.put(path) for name, path in calibration.save(folder).items()}
    reading = backdoored.reading.model_dump(mode="json")
    return {**taken, "facts": facts, "reading": reading, "calibration": images, "output": None, "probabilities": False} | {
        "method": "awm",
        "preset": "default",
        "seed": 0,
        "device": "cpu",
    }


def test_an_answer_comes_back_with_digests_and_no_trace(tiny_backdoored: tiny.Backdoored, store: Store) -> None:
    answer = run("intake", {"source": str(tiny_backdoored.model)}, store=store, limits=Limits())
    digest = answer["model"]["files"]["model.onnx"]
    assert store.path(digest).read_bytes() == tiny_backdoored.model.read_bytes()
    assert list((store.folder / "scratch").iterdir()) == []
    assert children() == []


def test_a_typed_error_crosses(tmp_path: Path, store: Store) -> None:
    (tmp_path / "text.onnx").write_text("no model at all")
    with pytest.raises(ModelRefused, match="no ONNX model"):
        run("intake", {"source": str(tmp_path / "text.onnx")}, store=store, limits=Limits())


def test_a_mistake_of_ours_is_a_defect(store: Store) -> None:
    with pytest.raises(Defect, match="TypeError"):
        run("intake", {"unheard_of": 1}, store=store, limits=Limits())


def test_time_is_up(tiny_backdoored: tiny.Backdoored, store: Store) -> None:
    request = purify_request(tiny_backdoored, store)
    started = time.monotonic()
    with pytest.raises(StageFailed, match=r"purify stage was stopped after 1.5 s") as caught:
        run("purify", request, store=store, limits=Limits(seconds=1.5))
    assert not isinstance(caught.value, StageKilled)
    assert time.monotonic() - started < 5
    assert children() == []


def test_a_stage_that_is_stopped_says_how_far_it_had_come(tiny_backdoored: tiny.Backdoored, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    request = purify_request(tiny_backdoored, store)
    told: list[Progress] = []
    monkeypatch.setattr("pipeline.sandbox.time", SimpleNamespace(monotonic=lambda: time.monotonic() + (1e6 if told else 0)))  # its time is up after one step
    with pytest.raises(StageFailed, match=r"its limit \(awm, step \d+ of \d+\)"):
        run("purify", request, store=store, limits=Limits(), listener=told.append)


def test_memory_is_out(tiny_backdoored: tiny.Backdoored, store: Store) -> None:
    request = purify_request(tiny_backdoored, store)
    with pytest.raises(StageFailed, match="memory"):
        run("purify", request, store=store, limits=Limits(memory=600 * 2**20))


def test_killed_from_outside(tiny_backdoored: tiny.Backdoored, store: Store) -> None:
    request = purify_request(tiny_backdoored, store)
    seen: list[Progress] = []

    def kill(progress: Progress) -> None:
        if not seen:
            (child,) = children()
            os.kill(child, signal.SIGKILL)
        seen.append(progress)

    with pytest.raises(StageKilled, match=r"purify stage was killed by signal 9 \(SIGKILL\)"):
        run("purify", request, store=store, limits=Limits(), listener=kill)
    assert seen
    assert seen[0].metrics == {"searched": 0.0} and seen[0].done == 0 < seen[0].total
    assert list((store.folder / "scratch").iterdir()) == []


def test_an_exception_here_kills_the_child(tiny_backdoored: tiny.Backdoored, store: Store) -> None:
    request = purify_request(tiny_backdoored, store)

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("purify", request, store=store, limits=Limits(), listener=interrupt)
    assert children() == []


def test_a_file_may_not_grow_without_end(tiny_backdoored: tiny.Backdoored, store: Store) -> None:
    with pytest.raises(StageFailed, match="intake stage ran into its file size limit"):
        run("intake", {"source": str(tiny_backdoored.model)}, store=store, limits=Limits(file_size=4000))


def test_what_a_dead_process_left_is_swept(store: Store) -> None:
    leftover = store.folder / "scratch" / "999999999-x"
    leftover.mkdir(parents=True)
    with store.scratch() as mine:
        assert not leftover.exists()
        assert mine.is_dir()
    assert not mine.exists()


def test_a_stage_sees_no_secret_unless_it_records(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "PREFECT_API_KEY"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("HARMLESS", "yes")
    seen, recording = _environment("scan"), _environment("record")
    assert "hush" not in seen.values()
    assert seen["HARMLESS"] == "yes"
    assert recording["MLFLOW_TRACKING_PASSWORD"] == "hush"
    assert "PREFECT_API_KEY" not in recording
    assert seen["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_child_that_is_ready_answers_one_request(store: Store, tmp_path: Path) -> None:
    path = tiny.save(tiny.classifier(), tmp_path)
    with ready("intake", store=store, limits=Limits()) as ask:
        assert len(children()) == 1
        assert run("intake", {"source": str(path)}, store=store, limits=Limits()) == ask({"source": str(path)})
    assert children() == []


def test_a_child_that_is_ready_and_not_needed(store: Store) -> None:
    with pytest.raises(ModelRefused), ready("import", store=store, limits=Limits()):
        raise ModelRefused("the scan refused it meanwhile")
    assert children() == []
