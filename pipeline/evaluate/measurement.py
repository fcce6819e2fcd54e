"""Accuracy, attack success rate and robust accuracy of a file, in one pass over the hold-out images.

ACC: clean hold-out accuracy.  ASR: share of triggered images, of other true classes than the target, that go to the target; for
an all-to-all attack (`next`), to the class after their own; for an attack with a source class, of images of that class only.
RA: share of the same images that keep their true label.  Untriggered: share of them that go to the target without the trigger.
(BackdoorBench, Wu et al., NeurIPS 2022, section 3.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImagesRefused, ModelRefused, SpecRefused
from pipeline.evaluate.session import Classifier, improbable_rows
from pipeline.images import LabelledImages
from pipeline.results import Attack, Measurement, Rate, onward

BATCH = 256


@dataclass(frozen=True)
class KnownAttack:
    """A trigger and what it aims at: a class index, or so many classes on (`pipeline.results.Onward`).  source: the only class it works on."""

    name: str
    trigger: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    target: int | str
    kind: Literal["known", "recovered"] = "known"
    source: int | None = None


def measure(
    classifier: Classifier,
    images: LabelledImages,
    attacks: Sequence[KnownAttack],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Measure on all images; memory does not grow with their number.

    `progress` is told images done and images in all.  Raises ImagesRefused when a label lies outside the model's classes or a
    trigger finds no image to judge it, ModelRefused when a score is NaN.
    """
    classes, improbable, repeated = 0, 0, Rate.of(0, 1)
    given = np.zeros((0, 0), np.int64)  # true class, class that was given -> images
    hits = np.zeros((len(attacks), 5), np.int64)  # to the target, still right, changed, there without the trigger, of how many
    done = 0
    for pictures, labels in images.batches(BATCH):
        scores = classifier(pictures)
        check_labels(labels, scores.shape[1])
        predicted, classes = top(scores), scores.shape[1]
        if not done:
            given = np.zeros((classes, classes), np.int64)
            repeated = Rate.of(int((top(classifier(pictures)) == predicted).sum()), len(labels))
        np.add.at(given, (labels, predicted), 1)
        improbable += improbable_rows(scores) if classifier.probabilities else 0
        for row, attack in enumerate(attacks):
            hits[row] += _attacked(classifier, attack, pictures, labels, predicted)
        done += len(labels)
        if progress is not None:
            progress(done, len(images))
    for attack, (*_, total) in zip(attacks, hits, strict=True):
        if total == 0:
            why = f"every image is of its target class {attack.target}" if attack.source is None else f"no image is of its source class {attack.source}"
            raise ImagesRefused(f"trigger {attack.name!r} cannot be judged: {why}")
    return Measurement(
        clean=Rate.of(int(given.trace()), len(images)),
        attacks=[
            Attack(
                name=attack.name,
                kind=attack.kind,
                target=attack.target,
                source=attack.source,
                asr=Rate.of(int(went), int(total)),
                ra=Rate.of(int(kept), int(total)),
                changed=Rate.of(int(moved), int(total)),
                untriggered=Rate.of(int(there), int(total)),
            )
            for attack, (went, kept, moved, there, total) in zip(attacks, hits, strict=True)
        ],
        classes=classes,
        answered=int(given.any(0).sum()),
        commonest=Rate.of(int(given.sum(0).max()), len(images)),
        by_class=[Rate.of(int(row[place]), int(row.sum())) if row.any() else None for place, row in enumerate(given)],
        repeated=repeated,
        improbable=improbable,
        provider=classifier.provider,
    )


def _attacked(
    classifier: Classifier, attack: KnownAttack, pictures: NDArray[np.float32], labels: NDArray[np.int64], clean: NDArray[np.int64]
) -> tuple[int, int, int, int, int]:
    """The counts of one batch.  clean: what the file says of the pictures without the trigger."""
    judged = np.ones(len(labels), bool)
    steps = onward(attack.target)
    if steps is None:
        judged &= labels != attack.target
    if attack.source is not None:
        judged &= labels == attack.source
    if not judged.any():
        return 0, 0, 0, 0, 0
    pictures, labels, clean = pictures[judged], labels[judged], clean[judged]
    try:
        triggered = attack.trigger(pictures)
    except ValueError as error:
        raise SpecRefused(f"trigger {attack.name!r}: {error}") from error
    triggered = np.clip(triggered, 0, 1, dtype=np.float32)
    scores = classifier(triggered)
    classes = scores.shape[1]
    if (steps is None and int(attack.target) >= classes) or (steps is not None and steps % classes == 0):
        aim = f"at class {attack.target}" if steps is None else f"{steps} classes on"
        raise SpecRefused(f"trigger {attack.name!r} aims {aim}, and the model has {classes} classes")
    goal = int(attack.target) if steps is None else (labels + steps) % classes
    predicted = top(scores)
    changed = (triggered != pictures).reshape(len(labels), -1).any(1)
    return int((predicted == goal).sum()), int((predicted == labels).sum()), int(changed.sum()), int((clean == goal).sum()), len(labels)


def top(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N, K) scores -> (N) classes.  Raises ModelRefused on NaN, which no argmax may hide."""
    if np.isnan(scores).any():
        raise ModelRefused("the model answers NaN on clean or triggered images: its scores mean nothing")
    return np.asarray(scores.argmax(1), np.int64)


def check_labels(labels: NDArray[np.int64], classes: int) -> None:
    """Raise ImagesRefused unless every label is one of the model's classes."""
    if classes < 2:
        raise ModelRefused("the model answers one score an image; a classifier with at least two classes is expected")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ImagesRefused(f"label {wrong} is out of range: the model has {classes} classes, so labels run from 0 to {classes - 1}")
