"""`bench detect`: what a search found is a row, made once; rows become a page, and a bank."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import yaml

from models import detection
from models.detection import Look, Row, search_all, truth_of
from models.detection_page import area, by_model, right, score_of, spoke, table, write_page
from models.rows import load, to_csv
from pipeline.config import read_spec
from pipeline.detect.bank import KINDS, read


def zoo(folder: Path, made: tiny.Backdoored, attack: str) -> Path:
    folder.mkdir()
    shutil.copy(made.model, folder / "model.onnx")
    shutil.copy(made.images, folder / "images.npz")
    triggers = [] if attack == "clean" else [made.trigger.model_dump(mode="json", exclude_none=True)]
    content = {"input": made.reading.model_dump(mode="json"), "data": {"images": "images.npz"}, "triggers": triggers}
    (folder / "audit.yaml").write_text(yaml.safe_dump(content))
    recipe = {"data": "shapes", "network": "tiny", "attack": attack, "rate": 0.0 if attack == "clean" else 0.1}
    (folder / "card.json").write_text(json.dumps({"recipe": recipe}))
    return folder


def test_a_backdoored_and_a_clean_model(tiny_backdoored: tiny.Backdoored, tiny_clean: tiny.Backdoored, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "JUDGES", 200)
    models = [zoo(folder / "bad", tiny_backdoored, "badnets"), zoo(folder / "good", tiny_clean, "clean")]
    rows = [detection.made(Look(str(model), 100, 0), "cpu") for model in models]
    bad, good = rows
    assert (bad.error, good.error) == ("", "")
    assert bad.truth == f"to class {tiny_backdoored.trigger.target}" and good.truth == ""
    assert spoke(bad) == "patch" and right(bad) and bad.standings["patch"].share < good.standings["patch"].share
    assert score_of(bad) > score_of(good)
    page = folder / "page.md"
    write_page(page, rows)
    text = page.read_text()
    assert (
        "1 backdoored models of 1 attacks and 1 clean" in text.replace("\n", " ")
        and "| bad |" in text
        and (folder / "page" / "roc.png").read_bytes()[1:4] == b"PNG"
    )
    (folder / "bank.csv").write_bytes(to_csv(Row, rows))
    assert [(one.name, one.backdoored, set(one.standings)) for one in read(folder / "bank.csv")] == [("bad", True, set(KINDS)), ("good", False, set(KINDS))]


def test_rows_are_made_once_and_a_failure_says_why(tiny_clean: tiny.Backdoored, folder: Path) -> None:
    model = zoo(folder / "good", tiny_clean, "clean")  # it has too few images for those that are kept aside
    told: list[Row] = []
    (row,) = search_all([Look(str(model), 100, 0)], folder / "rows.csv", device="cpu", workers=1, listener=lambda row, done, total: told.append(row))
    assert row.error and row.standings == {} and score_of(row) == 0 and spoke(row) == "" and len(told) == 1
    search_all([Look(str(model), 100, 0)], folder / "rows.csv", device="cpu", workers=1, listener=lambda row, done, total: told.append(row))
    assert len(told) == 2, "what failed is tried again"
    (folder / "rows.csv").write_bytes(to_csv(Row, [replace(row, error="", patch="0.3 0.2")]))
    (kept,) = search_all([Look(str(model), 100, 0)], folder / "rows.csv", device="cpu", workers=1, listener=lambda *told: pytest.fail("made again"))
    assert kept.standings["patch"].outlier == pytest.approx(1.25) and load(Row, folder / "rows.csv") and by_model([row])[-2].count("|") > 8


def made_up(model: str, attack: str, patch: float, index: float) -> Row:
    aims = "to class 2;to class 1;to each class + 1;from class 0 to class 1;to class 3;to class 3"
    usual = ((0.05, patch), (0.05, 1.2), (0.15, 1.2), (0.016, 1.8), (0.06, 1.4), (0.04, 1.4))
    sizes = [f"{median} {median} {median / ratio:.4g}" for median, ratio in usual]
    return Row(model, "cifar10", "vgg", attack, 100, 0, "" if attack == "clean" else "to class 2", *sizes, aims, index, 30.0, model, "")


def test_the_table_counts_false_alarms_and_what_is_found() -> None:
    rows = [made_up(f"clean {n}", "clean", 1.3, 2.5 if n == 0 else 0.5) for n in range(4)] + [made_up(f"bad {n}", "badnets", 9.0, 5.0) for n in range(3)]
    ours, theirs = [line.split("|") for line in table(rows) if line.startswith("| 100")]
    assert [cell.strip() for cell in ours[3:7]] == ["1.000", "0 of 4", "3 of 3", "3 of 3"]
    assert [cell.strip() for cell in theirs[3:7]] == ["1.000", "1 of 4", "3 of 3", "–"]
    assert area([0.9, 0.1, 0.5], [True, False, True]) == 1 and area([0.5, 0.5], [True, False]) == 0.5 and area([0.2, 0.4, 0.3], [True, False, True]) == 0


@pytest.mark.parametrize(("target", "source", "words"), [(3, None, "to class 3"), ("next", None, "to each class + 1"), (4, 1, "from class 1 to class 4")])
def test_a_trigger_in_the_words_of_the_search(target: int | str, source: int | None, words: str, folder: Path) -> None:
    trigger = {"name": "t", "kind": "patch", "size": [2, 2], "at": [0, 0], "target": target} | ({} if source is None else {"source": source})
    (folder / "audit.yaml").write_text(yaml.safe_dump({"triggers": [trigger]}))
    assert truth_of(read_spec(folder / "audit.yaml")) == words
