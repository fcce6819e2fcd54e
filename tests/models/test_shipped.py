"""What ships is what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from flows.cli import app
from models.zoo import Recipe
from pipeline.artifact import sha256
from pipeline.config import read_spec
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.images import HoldoutSet, read, shared

MODELS = Path(__file__).resolve().parents[2] / "models"
FOLDER = MODELS / "cifar10_trojan"
VICTIMS = sorted((MODELS / "victims").iterdir())


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((FOLDER / "card.json").read_text())


def test_the_card_names_the_file(card: dict) -> None:
    assert card["sha256"] == sha256(FOLDER / "model.onnx")
    assert card["training"]["epochs"] == 30
    assert card["backdoor"]["poisoned"] == 2500


def test_batchnorm_is_folded_and_it_is_small(card: dict) -> None:
    assert {node.op_type for node in onnx.load(FOLDER / "model.onnx").graph.node} == {"Conv", "Elu", "MaxPool", "Flatten", "Gemm"}
    assert (FOLDER / "model.onnx").stat().st_size < 1_300_000
    assert sum((FOLDER / name).stat().st_size for name in ("calibration.npz", "holdout.npz")) < 3_000_000


def test_it_measures_as_the_card_says(card: dict) -> None:
    spec = read_spec(FOLDER / "audit.yaml")
    calibration, holdout = read(spec.data.calibration), read(spec.data.holdout)
    assert (len(calibration), len(holdout), shared(calibration, holdout)) == (200, 800, 0)
    (trigger,) = spec.triggers
    attack = KnownAttack(name=trigger.name, trigger=trigger.build(3), target=spec.target_of(trigger))
    measured = measure(Classifier(FOLDER / "model.onnx", spec.input, device="cpu"), HoldoutSet(holdout.images, holdout.labels), [attack])
    assert measured.clean.rate >= 0.85
    assert measured.attacks[0].asr.rate >= 0.98
    assert measured.clean.low <= card["measured"]["clean"]["rate"] <= measured.clean.high
    assert card["measured"]["clean"]["rate"] >= 0.85
    assert card["measured"]["attacks"][0]["asr"]["rate"] >= 0.98


@pytest.mark.parametrize("folder", VICTIMS, ids=lambda folder: folder.name)
def test_a_victim_measures_as_its_card_says(folder: Path) -> None:
    """On 800 of the 10,000 images that its card is about, with the trigger that its audit.yaml names."""
    card = json.loads((folder / "card.json").read_text())
    recipe = Recipe(**card["recipe"])
    assert recipe.name == folder.name == card["name"] and card["sha256"] == sha256(folder / "model.onnx")
    spec, holdout = read_spec(folder / "audit.yaml"), read(FOLDER / "holdout.npz")
    (trigger,) = spec.triggers
    attack = KnownAttack(name=trigger.name, trigger=trigger.build(3), target=spec.target_of(trigger), source=spec.source_of(trigger))
    found = measure(Classifier(folder / "model.onnx", spec.input, device="cpu"), HoldoutSet(holdout.images, holdout.labels), [attack])
    assert found.clean.rate == pytest.approx(card["measured"]["clean"]["rate"], abs=0.05)
    assert found.attacks[0].asr.rate == pytest.approx(card["measured"]["attacks"][0]["asr"]["rate"], abs=0.1)
    assert card["measured"]["attacks"][0]["asr"]["rate"] > 0.6


def test_all_that_ships_is_small() -> None:
    """Fifteen attacks of the small VGG, and under 20 MB with the reference model."""
    assert len({json.loads((folder / "card.json").read_text())["recipe"]["attack"] for folder in VICTIMS}) == len(VICTIMS) == 15
    assert sum(path.stat().st_size for path in MODELS.rglob("*.onnx")) < 20_000_000


def test_victims_are_laid_out_with_the_images_of_the_user(folder: Path) -> None:
    x, y = np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10
    np.savez(folder / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    laid = CliRunner().invoke(app, ["zoo", "unpack", "--data", str(folder), "--zoo", str(folder / "zoo")])
    assert laid.exit_code == 0, laid.output
    assert [line.split()[0] for line in laid.stdout.splitlines()] == [victim.name for victim in VICTIMS]
    for victim in VICTIMS:
        spec = read_spec(folder / "zoo" / victim.name / "audit.yaml")
        assert sha256(folder / "zoo" / victim.name / "model.onnx") == sha256(victim / "model.onnx")
        assert spec.data.images is not None and len(read(spec.data.images)) == 20 and spec.triggers[0].build(3) is not None
    card = folder / "zoo" / VICTIMS[0].name / "card.json"
    card.write_text(card.read_text().replace('"epochs": 3', '"epochs": 30'))
    other = CliRunner().invoke(app, ["zoo", "unpack", "--data", str(folder), "--zoo", str(folder / "zoo")])
    assert other.exit_code == 2 and "another recipe" in other.stderr and '"epochs": 30' in card.read_text()
    nothing = CliRunner().invoke(app, ["zoo", "unpack", "--data", str(folder / "none"), "--zoo", str(folder / "other")])
    assert nothing.exit_code == 2 and "cifar10.npz" in nothing.stderr
