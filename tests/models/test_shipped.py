"""What ships is what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from pipeline.artifact import sha256
from pipeline.config import read_spec
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.images import HoldoutSet, read, shared

FOLDER = Path(__file__).resolve().parents[2] / "models" / "cifar10_trojan"


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
