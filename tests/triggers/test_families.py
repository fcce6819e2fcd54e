"""What every trigger keeps, whatever its family: a new one joins with a line in SPECS, which the test of KINDS asks for."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from pydantic import ValidationError

from pipeline import stages
from pipeline.artifact import Store, is_digest
from pipeline.config import read_spec
from pipeline.inputs import prepare
from pipeline.triggers import KINDS, Generator, trigger_spec

SIZE = (12, 10)
SPECS: dict[str, dict[str, Any]] = {
    "patch": {"size": [3, 3], "at": [0, 0], "color": [255, 0, 51]},
    "additive": {"generate": "noise", "size": SIZE, "strength": 0.3},
    "blend": {"size": SIZE},
    "sinusoid": {},
    "warp": {"strength": 4.0},
    "low-frequency": {"size": SIZE},
    "generator": {"network": "network.npz"},
}


def network(channels: int, *, kernel: int = 3, seed: int = 0) -> Generator:
    """Two convolutions of random weights."""
    random = np.random.default_rng(seed)
    sizes = [channels, 5, channels + 1]
    return Generator(
        tuple(
            (random.normal(0, 0.5, (after, before, kernel, kernel)).astype(np.float32), random.normal(0, 0.1, after).astype(np.float32))
            for before, after in pairwise(sizes)
        )
    )


def fields(kind: str, folder: Path, channels: int = 3) -> dict[str, Any]:
    """A trigger of that kind as audit.yaml has it, its file in `folder`."""
    network(channels).save(str(folder / "network.npz"))
    given = {"name": "a", "kind": kind, "target": 1, **SPECS[kind]}
    return given if channels == 3 else {key: value for key, value in given.items() if key != "color"}


def test_every_kind_is_tried() -> None:
    assert set(SPECS) == set(KINDS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_in_pictures_out(kind: str, channels: int, folder: Path) -> None:
    trigger = trigger_spec(fields(kind, folder, channels)).relative_to(folder).build(channels)
    pictures = tiny.pictures(4, size=SIZE, channels=channels)
    before = pictures.copy()
    found = trigger(pictures)
    assert np.array_equal(pictures, before)
    assert found.shape == pictures.shape and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    assert (abs(found - before).max((1, 2, 3)) > 0.01).all()
    assert np.array_equal(trigger(pictures), found)
    assert np.allclose(trigger(pictures[1:2]), found[1:2], atol=1e-6), "a picture does not depend on its neighbours"
    assert len(trigger(pictures[:0])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_survives_the_way_to_the_stage(kind: str, folder: Path) -> None:
    spec = trigger_spec({**fields(kind, folder), "source": "bird"}).relative_to(folder)
    again = trigger_spec(spec.model_dump(mode="json"))
    assert again == spec and type(again) is type(spec)
    pictures = tiny.pictures(2, size=SIZE)
    assert np.array_equal(spec.build(3)(pictures), again.build(3)(pictures))


@pytest.mark.parametrize("kind", KINDS)
def test_in_audit_yaml(kind: str, folder: Path) -> None:
    (folder / "audit.yaml").write_text(json.dumps({"triggers": [fields(kind, folder)]}))
    (found,) = read_spec(folder / "audit.yaml").triggers
    assert found.kind == kind
    assert all(Path(path) == folder / "network.npz" for path in found.files().values())


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_fields(kind: str) -> None:
    spec = type(trigger_spec({"name": "a", "kind": kind, "target": 0, **SPECS[kind]}))
    assert set(spec.paths) <= set(spec.model_fields)


@pytest.mark.parametrize("kind", ["additive", "blend", "low-frequency"])
def test_seeds_differ(kind: str, folder: Path) -> None:
    pictures = tiny.pictures(1, size=SIZE)
    one, same, other = (trigger_spec({**fields(kind, folder), "seed": seed}).build(3)(pictures) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["additive", "blend", "low-frequency"])
def test_another_size(kind: str, folder: Path) -> None:
    trigger = trigger_spec(fields(kind, folder)).build(3)
    with pytest.raises(ValueError, match="the pattern is 12x10x3 and the pictures are 10x12x3"):
        trigger(tiny.pictures(1, size=(10, 12)))
    with pytest.raises(ValueError, match="the pattern is 12x10x3 and the pictures are 12x10x1"):
        trigger(tiny.pictures(1, size=SIZE, channels=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_is_no_number_below_zero(kind: str, folder: Path) -> None:
    assert trigger_spec(fields(kind, folder)).source is None
    with pytest.raises(ValidationError, match="source"):
        trigger_spec({**fields(kind, folder), "source": -1})


def test_from_the_spec_to_the_rate(tiny_backdoored: tiny.Backdoored, folder: Path) -> None:
    """Through the store, where files have no names, to what onnxruntime answers on images of the source class alone."""
    gray = (np.zeros((4, 3, 1, 1), np.float32), np.array([0, 0, 0, 20], np.float32))
    Generator((gray,)).save(str(folder / "network.npz"))
    np.save(folder / "field.npy", np.zeros((4, 4, 2), np.float32))
    warp = {"name": "still", "kind": "warp", "field": "field.npy", "target": 0, "source": 3}
    generator = {"name": "made", "kind": "generator", "network": "network.npz", "target": "next"}
    (folder / "audit.yaml").write_text(json.dumps({"triggers": [warp, generator]}))
    store = Store(folder / "store")
    inputs = prepare(read_spec(folder / "audit.yaml"), tiny_backdoored.images, seed=0, store=store)
    assert [(given["target"], given["source"]) for given in inputs.triggers] == [(0, 3), ("next", None)]

    def found(value: Any) -> Any:
        return {key: str(store.path(item)) if isinstance(item, str) and is_digest(item) else item for key, item in value.items()}

    measured = stages.measure(
        stages.Desk(folder, lambda event: None),
        model={"files": {"model.onnx": str(tiny_backdoored.model)}},
        holdout=found(inputs.holdout),
        reading=tiny_backdoored.reading.model_dump(mode="json"),
        triggers=[found(given) for given in inputs.triggers],
        recovered=[found(inputs.triggers[1])],
        output=None,
        probabilities=False,
        device="cpu",
    )
    still, made, again = measured.attacks
    assert [attack.kind for attack in measured.attacks] == ["known", "known", "recovered"] and again.ra == made.ra
    labels = np.load(found(inputs.holdout)["labels"])
    assert (still.asr.total, made.asr.total) == ((labels == 3).sum(), len(labels))
    assert still.ra.rate > 0.9, "a field of zeros changes nothing"
    assert made.ra.rate < 0.5, "every picture is the same gray"
