"""ACC, ASR and RA against a naive loop, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImagesRefused, ModelRefused, SpecRefused
from pipeline.evaluate.measurement import BATCH, KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.images import HoldoutSet, LabelledImages
from pipeline.results import Rate
from pipeline.triggers import Patch

TRIGGER = Patch(np.full((3, 3, 3), 1, np.float32), np.ones((3, 3), np.float32), 0, 0)


class Linear:
    """A classifier of 8x8 pictures whose scores are a random projection; it keeps the sizes of the batches it saw."""

    provider, probabilities = "TestProvider", False

    def __init__(self, classes: int = 4, seed: int = 0) -> None:
        self.weights = np.random.default_rng(seed).normal(size=(192, classes)).astype(np.float32)
        self.sizes: list[int] = []

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        assert pictures.dtype == np.float32 and pictures.min() >= 0 and pictures.max() <= 1
        self.sizes.append(len(pictures))
        return (pictures.reshape(len(pictures), -1) - 0.5) @ self.weights


class Says(Linear):
    """Answers what it is told."""

    def __init__(self, scores: Any) -> None:
        self.scores = np.asarray(scores, np.float32)
        self.sizes = []

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.scores, (len(pictures), len(self.scores)))


def naive(classifier: Linear, images: LabelledImages, attack: KnownAttack) -> tuple[int, int, int, int, int]:
    """Correct, hits, kept, there without the trigger, total: one image at a time, as the definitions say."""
    correct = hits = kept = there = total = 0
    for image, label in zip(images.images, images.labels, strict=True):
        picture = image[None].astype(np.float32) / 255
        clean = int(classifier(picture).argmax())
        correct += clean == label
        steps = {"next": 1, "+2": 2}.get(attack.target)
        if label == attack.target:
            continue
        if attack.source is not None and label != attack.source:
            continue
        answer = int(classifier(attack.trigger(picture)).argmax())
        goal = (label + steps) % classifier.weights.shape[1] if steps else attack.target
        hits, kept, there, total = hits + (answer == goal), kept + (answer == label), there + (clean == goal), total + 1
    return correct, hits, kept, there, total


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), target=st.sampled_from([0, 1, 2, 3, "next", "+2"]), source=st.sampled_from([None, 0, 1]))
def test_the_same_as_a_naive_loop(seed: int, target: Any, source: int | None) -> None:
    if source == target:
        return
    classifier, images = Linear(seed=seed), tiny.labelled(30, seed=seed)
    attack = KnownAttack("square", TRIGGER, target, source=source)
    correct, hits, kept, there, total = naive(classifier, images, attack)
    found = measure(classifier, images, [attack])
    assert (found.clean.hits, found.clean.total) == (correct, 30)
    (result,) = found.attacks
    assert (result.asr.hits, result.ra.hits, result.asr.total, result.ra.total) == (hits, kept, total, total)
    assert result.untriggered == Rate.of(there, total)
    assert (result.name, result.kind, result.target) == ("square", "known", target)
    assert (found.provider, found.classes) == ("TestProvider", 4)


def test_asr_leaves_out_the_target_class() -> None:
    """A model that always says 2 has no backdoor to speak of: it goes to 2 with every other image, and no image of class 2 counts."""
    images = LabelledImages(np.zeros((10, 8, 8, 3), np.uint8), np.array([2] * 6 + [0, 1, 3, 3]))
    found = measure(Says([0, 0, 1, 0]), images, [KnownAttack("a", TRIGGER, 2), KnownAttack("b", TRIGGER, 3), KnownAttack("c", TRIGGER, "next")])
    assert (found.clean.hits, found.clean.total, found.answered) == (6, 10, 1)
    assert [(attack.asr.hits, attack.asr.total, attack.ra.hits) for attack in found.attacks] == [(4, 4, 0), (0, 8, 6), (1, 10, 6)]


def test_all_to_all_wraps_around() -> None:
    images = LabelledImages(np.zeros((4, 8, 8, 3), np.uint8), np.array([3, 3, 3, 0]))
    assert measure(Says([1, 0, 0, 0]), images, [KnownAttack("a", TRIGGER, "next")]).attacks[0].asr.hits == 3
    assert measure(Says([0, 1, 0, 0]), images, [KnownAttack("a", TRIGGER, "+2")]).attacks[0].asr.hits == 3
    with pytest.raises(SpecRefused, match="4 classes on, and the model has 4 classes"):
        measure(Says([0, 1, 0, 0]), images, [KnownAttack("a", TRIGGER, "+4")])


def test_batches_on_a_memory_map_give_the_same(folder: Path) -> None:
    images = tiny.labelled(BATCH * 2 + 17)
    mapped = HoldoutSet.load(images.save(folder))
    attacks = [KnownAttack("a", TRIGGER, 1), KnownAttack("b", TRIGGER, "next")]
    classifier, seen = Linear(), []
    found = measure(classifier, mapped, attacks, progress=lambda done, total: seen.append((done, total)))
    assert max(classifier.sizes) == BATCH
    assert seen == [(BATCH, len(images)), (2 * BATCH, len(images)), (len(images), len(images))]
    correct, hits, kept, _, total = naive(Linear(), images, attacks[0])
    assert (found.clean.hits, found.attacks[0].asr.hits, found.attacks[0].ra.hits, found.attacks[0].asr.total) == (correct, hits, kept, total)


def test_what_makes_figures_mean_little() -> None:
    """What is answered most, what is answered otherwise when it is asked again, and what is no probability."""
    images = LabelledImages(np.zeros((10, 8, 8, 3), np.uint8), np.array([2] * 6 + [0, 1, 1, 1]))
    found = measure(Says([0, 0, 1, 0]), images, [])
    assert (found.commonest.hits, found.commonest.total, found.repeated.hits) == (10, 10, 10)
    assert [rate and (rate.hits, rate.total) for rate in found.by_class] == [(0, 1), (0, 3), (6, 6), None]

    class Fickle(Says):
        def __call__(self, pictures: np.ndarray) -> np.ndarray:
            self.scores = np.roll(self.scores, 1)
            return super().__call__(pictures)

    assert measure(Fickle([0, 0, 1, 0]), images, []).repeated.hits == 0
    for scores, wrong in (([0, 0.5, 0.5, 0], 0), ([0, 0.5, 0.6, 0], 10), ([-0.5, 0.5, 0.5, 0.5], 10)):
        says = Says(scores)
        assert measure(says, images, []).improbable == 0, "nobody says that they are probabilities"
        says.probabilities = True
        assert measure(says, images, []).improbable == wrong


def test_a_trigger_that_changes_nothing() -> None:
    white = LabelledImages(np.full((8, 8, 8, 3), 255, np.uint8), np.arange(8) % 4)
    half = LabelledImages(np.concatenate([white.images[:4], np.zeros((4, 8, 8, 3), np.uint8)]), white.labels)
    assert measure(Linear(), white, [KnownAttack("a", TRIGGER, 1)]).attacks[0].changed.hits == 0
    assert (found := measure(Linear(), half, [KnownAttack("a", TRIGGER, 1)]).attacks[0].changed).hits == 3 and found.total == 6


def test_no_attack_is_no_attack() -> None:
    found = measure(Linear(), tiny.labelled(8), [])
    assert found.attacks == []
    assert found.clean.total == 8


def test_nan_is_no_score() -> None:
    with pytest.raises(ModelRefused, match="NaN"):
        measure(Says([0, np.nan, 1, 0]), tiny.labelled(8), [])


def test_nan_under_the_trigger_alone() -> None:
    class Trap(Linear):
        def __call__(self, pictures: np.ndarray) -> np.ndarray:
            scores = super().__call__(pictures)
            scores[(pictures[:, :3, :3] == 1).all((1, 2, 3))] = np.nan
            return scores

    measure(Trap(), tiny.labelled(8), [])
    with pytest.raises(ModelRefused, match="NaN"):
        measure(Trap(), tiny.labelled(8), [KnownAttack("a", TRIGGER, 1)])


def test_infinite_scores_still_have_a_largest() -> None:
    assert measure(Says([-np.inf, 0, -np.inf, -np.inf]), tiny.labelled(8), []).clean.hits == 2


@pytest.mark.parametrize("label", [-1, 4, 1000])
def test_labels_out_of_range(label: int) -> None:
    images = tiny.labelled(8)
    images.labels[5] = label
    with pytest.raises(ImagesRefused, match=f"label {label} is out of range: the model has 4 classes"):
        measure(Linear(), images, [])


def test_one_score_is_no_classifier() -> None:
    with pytest.raises(ModelRefused, match="at least two classes"):
        measure(Says([0.3]), tiny.labelled(8), [])


def test_a_trigger_that_nothing_can_judge() -> None:
    images = LabelledImages(np.zeros((4, 8, 8, 3), np.uint8), np.full(4, 2))
    with pytest.raises(ImagesRefused, match="every image is of its target class 2"):
        measure(Linear(), images, [KnownAttack("a", TRIGGER, 2)])


def test_asr_of_a_source_is_of_its_images_alone() -> None:
    images = LabelledImages(np.zeros((10, 8, 8, 3), np.uint8), np.array([2] * 6 + [0, 1, 3, 3]))
    attacks = [KnownAttack("a", TRIGGER, 2, source=3), KnownAttack("b", TRIGGER, "next", source=1), KnownAttack("c", TRIGGER, 0, source=2)]
    found = measure(Says([0, 0, 1, 0]), images, attacks)
    assert [(attack.asr.hits, attack.asr.total, attack.ra.hits) for attack in found.attacks] == [(2, 2, 0), (1, 1, 0), (0, 6, 6)]


@pytest.mark.parametrize("source", [1, 9])
def test_a_source_without_images(source: int) -> None:
    images = LabelledImages(np.zeros((4, 8, 8, 3), np.uint8), np.full(4, 2))
    with pytest.raises(ImagesRefused, match=f"no image is of its source class {source}"):
        measure(Linear(), images, [KnownAttack("a", TRIGGER, 0, source=source)])


def test_triggers_that_do_not_fit() -> None:
    with pytest.raises(SpecRefused, match="'a' aims at class 4, and the model has 4 classes"):
        measure(Linear(), tiny.labelled(8), [KnownAttack("a", TRIGGER, 4)])
    outside = Patch(TRIGGER.pattern, TRIGGER.mask, 6, 6)
    with pytest.raises(SpecRefused, match=r"'a': .*does not lie inside"):
        measure(Linear(), tiny.labelled(8), [KnownAttack("a", outside, 1)])


def test_a_trigger_stays_in_the_picture() -> None:
    class Loud(Linear):
        def __call__(self, pictures: np.ndarray) -> np.ndarray:
            assert pictures.dtype == np.float32 and pictures.min() >= 0 and pictures.max() <= 1
            return super().__call__(pictures)

    measure(Loud(), tiny.labelled(8), [KnownAttack("a", lambda pictures: pictures.astype(np.float64) * 3 - 1, 1)])


def test_the_tiny_backdoor_is_real(tiny_backdoored: tiny.Backdoored) -> None:
    from pipeline.images import read

    classifier = Classifier(tiny_backdoored.model, tiny_backdoored.reading, device="cpu")
    found = measure(classifier, read(tiny_backdoored.images), [KnownAttack("corner", tiny_backdoored.trigger.build(3), 1)])
    assert found.clean.rate > 0.9
    assert found.attacks[0].asr.rate > 0.9
    assert found.answered == 4
