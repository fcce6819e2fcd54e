"""The comparison of purifiers: every run through the file, nothing made twice, nothing lost when it is killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import tiny
import yaml
from typer.testing import CliRunner

from flows.bench import bench
from models import comparison
from models.comparison import ONE_A_CLASS, TWIN, Job, Row, Victim, compare
from models.comparison_page import by_size, by_victim, table, write_page
from models.pruning_curve import drawn, pruning_curve, section
from models.rows import load, to_csv
from pipeline.errors import BadInput
from pipeline.images import HoldoutSet
from pipeline.twin import TorchTwin

T = TypeVar("T")


@pytest.fixture(scope="module")
def victim(tiny_backdoored: tiny.Backdoored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("victim")
    shutil.copy(tiny_backdoored.model, folder / "model.onnx")
    shutil.copy(tiny_backdoored.images, folder / "images.npz")
    content = {
        "input": tiny_backdoored.reading.model_dump(mode="json"),
        "data": {"images": "images.npz"},
        "triggers": [tiny_backdoored.trigger.model_dump(mode="json", exclude_none=True)],
    }
    (folder / "audit.yaml").write_text(yaml.safe_dump(content))
    return folder


def shown(row: Row) -> tuple[object, ...]:
    """What may be compared: NaN is not equal to itself, and no two runs take equally long."""
    return (row.job, row.acc_before, row.asr_before, row.acc, row.asr, row.ra, row.der, row.error)


def test_rows_are_made_once_and_go_through_the_file(victim: Path, folder: Path) -> None:
    jobs = [Job(str(victim), "awm", preset, 40, 0) for preset in ("default", "paper")]
    told: list[Row] = []
    rows = compare(jobs, folder / "rows.csv", judges=200, device="cpu", workers=2, listener=lambda row, done, total: told.append(row))
    assert [row.job for row in rows] == jobs and {row.job for row in told} == set(jobs)
    for row in rows:
        assert row.error == "" and row.seconds > 0
        assert row.asr_before > 0.9 and row.acc_before > 0.9
        assert row.asr < row.asr_before and 0.5 < row.der <= 1
    assert {shown(row) for row in load(Row, folder / "rows.csv")} == {shown(row) for row in rows}

    text = (folder / "rows.csv").read_text()
    (folder / "rows.csv").write_text(text[: text.rindex(",")])  # killed in the middle of a line
    again = compare(jobs, folder / "rows.csv", judges=200, device="cpu", workers=2, listener=lambda row, done, total: told.append(row))
    assert len(told) == 3 and [shown(row) for row in again] == [shown(row) for row in rows]

    moved = [replace(job, victim=str(shutil.copytree(victim, folder / "moved", dirs_exist_ok=True))) for job in jobs]
    assert [
        row.job for row in compare(moved, folder / "rows.csv", judges=200, device="cpu", workers=2, listener=lambda *told: pytest.fail("made again"))
    ] == moved

    (deep,) = compare(jobs[:1], folder / "rows.csv", judges=200, device="cpu", workers=2, depth=True)
    assert shown(deep)[:7] == shown(rows[0])[:7] and not isnan(deep.altered)
    assert 0 <= deep.relearnt_5 <= 1 and deep.relearnt_50 > deep.asr
    kept = load(Row, folder / "rows.csv")
    assert [one.job for one in kept].count(jobs[0]) <= 1 and any(shown(one) == shown(deep) and not isnan(one.altered) for one in kept), "it stands once"
    (fewer,) = compare(jobs[1:], folder / "rows.csv", judges=100, device="cpu", workers=1)
    assert fewer.judges == 100, "other judges, another row"


def test_one_a_class_is_one_of_each_however_rare(victim: Path, folder: Path) -> None:
    found = Victim(victim, judges=200, device="cpu")
    rare = np.concatenate([np.flatnonzero(found.pool.labels != 2), np.flatnonzero(found.pool.labels == 2)[:2]])
    found.pool = HoldoutSet(found.pool.images[rare], found.pool.labels[rare])
    drawn = [found.drawn(ONE_A_CLASS, seed) for seed in range(3)]
    assert all(sorted(one.labels.tolist()) == [0, 1, 2, 3] for one in drawn)
    assert not np.array_equal(drawn[0].images, drawn[1].images)


def test_two_victims_of_one_model_are_two(victim: Path, folder: Path) -> None:
    """Regression: one was made again at each resume, or given the other's figures."""
    other = shutil.copytree(victim, folder / "other")
    jobs = [Job(str(where), "clp", "default", 40, 0) for where in (victim, other)]
    compare(jobs, folder / "rows.csv", judges=200, device="cpu", workers=1)
    again = compare(jobs, folder / "rows.csv", judges=200, device="cpu", workers=1, listener=lambda *told: pytest.fail("made again"))
    assert [row.victim for row in again] == [str(victim), str(other)]


def test_a_run_that_fails_is_a_row_that_says_why(victim: Path, folder: Path) -> None:
    (row,) = compare([Job(str(victim), "awm", "default", 5000, 0)], folder / "rows.csv", judges=200, device="cpu", workers=1)
    assert "5000 calibration images are asked for" in row.error
    assert (row.acc, row.asr, row.der) == (row.acc_before, row.asr_before, 0.5)


def test_a_backdoor_that_is_learnt_again_to_nonsense_costs_no_repair(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: weights that are finite, but so large that the network answers NaN, made a failure of a repair that had worked."""

    def exploded(twin: TorchTwin, *_: object, samples: int, **__: object) -> dict[str, np.ndarray]:
        submitted = {name: weight.value.numpy() for name, weight in twin.weights.items()}
        return {name: np.float32(3e38) * np.sign(values) for name, values in submitted.items()} if samples == 50 else submitted

    monkeypatch.setattr(comparison, "relearnt", exploded)
    found = Victim(victim, judges=200, device="cpu").purified(Job(str(victim), "clp", "default", 40, 0), depth=True)
    assert found.error == "" and not isnan(found.altered)
    assert found.relearnt_5 == found.asr and isnan(found.relearnt_50)


@pytest.mark.parametrize("option", [[], ["--twin"]])
def test_a_folder_that_is_no_victim_is_refused(option: list[str], tmp_path: Path) -> None:
    """Regression: a traceback."""
    found = CliRunner().invoke(bench, ["purify", *option, str(tmp_path / "nowhere"), "--method", "clp", "--rows", str(tmp_path / "rows.csv")])
    assert found.exit_code == 2 and "model.onnx" in found.output and not (tmp_path / "rows.csv").exists()


def test_rows_of_another_version_are_not_written_over(folder: Path) -> None:
    rows = folder / "rows.csv"
    rows.write_bytes(to_csv(Row, [row("good")]).replace(b",device", b"").replace(b",cpu,", b","))
    before = rows.read_bytes()
    with pytest.raises(BadInput, match="another version"):
        compare([], rows, judges=200, device="cpu")
    found = CliRunner().invoke(bench, ["purify", "--method", "clp", "--rows", str(rows)])
    assert found.exit_code == 2 and "another version" in found.output and "Traceback" not in found.output
    assert rows.read_bytes() == before


def row(method: str, *, victim: str = "one", images: int = 1, **figures: float) -> Row:
    given = {"acc": 0.8, "asr": 0.1, "ra": 0.7, "der": 0.9, "seconds": 3.0, "altered": nan, "relearnt_5": nan, "relearnt_50": nan} | figures
    given |= {"acc_before": 0.9, "asr_before": 1.0}
    return Row(victim=victim, method=method, preset="default", images=images, seed=0, judges=500, device="cpu", model="", error="", **given)


def test_tables_average_over_what_every_method_ran_on_and_put_the_best_first(folder: Path) -> None:
    rows = [
        row("good", der=0.99, asr=0.0),
        replace(row("good", der=0.97, asr=0.04), seed=1),
        row("good", victim="two", der=0.6, asr=0.9),
        row("bad", der=0.5, asr=1.0),
        row("bad", images=50),
    ]
    lines = table(rows)
    assert lines[0] == "### One image a class" and lines[2] == "Means over 1 victim; on cpu."
    assert lines[6] == "| good | 10.0 | 2.0 | 4.0 | 70.0 | 0.980 | – | –, – | 3 | 2 |"
    assert lines[7].startswith("| bad | 10.0 | 100.0 | 100.0 |")
    assert "| 0.100 | 20.0 | –, 50.0 |" in table([row("deep", der=0.1, altered=0.2, relearnt_50=0.5), row("deep", victim="two", der=0.1)])[6]
    assert "| two | 90.0 / 100.0 | – | 80.0 / 90.0 |" in by_victim(rows)
    write_page(folder / "page.md", rows)
    page = (folder / "page.md").read_text()
    assert "2 victims" in page and all((folder / "page" / name).read_bytes()[:4] == b"\x89PNG" for name in ("accuracy-against-asr.png", "der-by-images.png"))
    assert [one.victim for one in load(Row, folder / "page" / "rows.csv")] == [one.victim for one in rows]


def test_victims_of_different_kinds_are_not_averaged(folder: Path) -> None:
    for name, rate in (("five", 0.05), ("one", 0.01)):
        (folder / name).mkdir()
        (folder / name / "card.json").write_text(json.dumps({"recipe": {"data": "cifar10", "network": "vgg", "rate": rate}}))
    rows = [row("good", victim=str(folder / "five"), asr=0.2), row("good", victim=str(folder / "one"), asr=0.4)]
    assert [line for line in table(rows) if line.startswith("###")] == [
        "### cifar10, vgg, 1 % poisoned: one image a class",
        "### cifar10, vgg, 5 % poisoned: one image a class",
    ]
    assert [line.split(" | ")[2] for line in table(rows) if line.startswith("| good")] == ["40.0", "20.0"]
    write_page(folder / "page.md", [*rows, replace(rows[1], images=50)])  # a size that one kind alone was given
    assert str(folder) not in (folder / "page" / "rows.csv").read_text()


def test_sizes_are_compared_on_the_same_victims() -> None:
    rows = [row("good", victim=victim, images=images) for victim, images in (("one", 1), ("one", 500), ("two", 500))]
    found = by_size([*rows, row("bad", victim="two", images=500)])
    assert {point: [one.victim for one in some] for point, some in found[""].items()} == {("good", 1): ["one"], ("good", 500): ["one"]}
    assert not by_size(rows[:1])


def test_no_plot_of_a_single_point(folder: Path) -> None:
    write_page(folder / "page.md", [row("good")])
    assert "![" not in (folder / "page.md").read_text() and [path.name for path in (folder / "page").iterdir()] == ["rows.csv"]


def test_the_curve_of_fine_pruning(victim: Path) -> None:
    curve = pruning_curve(victim, images=60, judges=200, seed=0, device="cpu")
    counts = [point.pruned for point in curve.points]
    assert counts[0] == 0 and counts == sorted(set(counts)) and counts[-1] < curve.channels
    assert curve.points[0].acc > 0.9 and curve.points[0].asr > 0.9 and curve.points[-1].acc < curve.points[0].acc
    assert curve.stopped.pruned == curve.tuned.pruned and 0 <= curve.tuned.asr <= 1
    assert drawn([curve])[:4] == b"\x89PNG"
    assert curve.images == 60
    assert f"| {victim.name} | 60 | {100 * curve.points[0].acc:.1f} / " in "\n".join(section([curve], "page/pruning.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and only Linux kills children with their parent")
def test_workers_die_with_the_command(victim: Path, folder: Path) -> None:
    """Killed without a chance to clean up, it leaves nobody at work."""
    command = [sys.executable, "-m", "flows.cli", "bench", "purify", str(victim), "--method", "awm:paper", "--images", "200"]
    running = subprocess.Popen([*command, "--judges", "200", "--rows", str(folder / "rows.csv"), "--workers", "2"], stderr=subprocess.DEVNULL)
    try:
        workers = until(lambda: [pid for pid in children(running.pid) if "spawn_main" in command_line(pid)])
    finally:
        running.kill()
        running.wait()
    until(lambda: not any(map(command_line, workers)))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> str:
    """Empty when there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(done: Callable[[], T], seconds: float = 60) -> T:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return answer


def test_a_clean_twin_stands_beside_the_repairs(victim: Path, tiny_clean: tiny.Backdoored, folder: Path) -> None:
    """What a network that never saw the trigger makes of it; no method, and in no mean."""
    for name, model in (("victim", victim / "model.onnx"), ("clean", tiny_clean.model), ("stranger", tiny_clean.model)):
        shutil.copytree(victim, folder / name)
        shutil.copy(model, folder / name / "model.onnx")
        recipe = {"data": "shapes", "network": "another" if name == "stranger" else "tiny", "rate": 0.1}
        (folder / name / "card.json").write_text(json.dumps({"recipe": recipe}))
    jobs = [Job(str(folder / "victim"), "clp", "default", 40, 0)]
    rows = folder / "rows.csv"
    assert [one.job for one in compare(jobs, rows, judges=200, device="cpu", workers=1, twins=[folder / "clean", folder / "stranger"])] == jobs
    (twin,) = [one for one in load(Row, rows) if one.method == TWIN]
    assert twin.preset == "clean" and twin.asr < 0.2 and twin.acc > 0.9 and twin.asr_before > 0.9
    compare(jobs, rows, judges=200, device="cpu", workers=1, twins=[folder / "clean"], listener=lambda *told: pytest.fail("made again"))
    lines = by_victim(load(Row, rows))
    assert lines[2] == "| victim | submitted | clean twin | clp |" and f" {100 * twin.acc:.1f} / {100 * twin.asr:.1f} " in lines[4]
    assert not any(TWIN in line for line in table(load(Row, rows)))
    write_page(folder / "page.md", load(Row, rows))
    assert "what a perfect repair would leave" in (folder / "page.md").read_text()
