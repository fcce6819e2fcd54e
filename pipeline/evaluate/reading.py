"""Guess how a model reads pictures, when nobody says: from its shape, and from what scores best on calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import ImagesRefused, ModelRefused
from pipeline.evaluate.measurement import check_labels, top
from pipeline.evaluate.session import Classifier
from pipeline.images import CalibrationSet, InputSpec
from pipeline.results import Rate, ReadingResult

# name -> (scale, mean, std): what exporters and training scripts commonly use
SCALINGS: dict[str, tuple[float, tuple[float, ...], tuple[float, ...]]] = {
    "0..1": (255, (0.0,), (1.0,)),
    "-1..1": (255, (0.5,), (0.5,)),
    "0..255": (1, (0.0,), (1.0,)),
    "ImageNet": (255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": (255, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "MNIST": (255, (0.1307,), (0.3081,)),
}
MOST_IMAGES = 200


def layouts(shape: list[int | None], height: int, width: int, depth: int) -> list[str]:
    """The layouts in which (height, width, depth) pictures fit an input of `shape` (None: any).  Raises ImagesRefused."""
    fits = []
    for layout, wanted in (("NCHW", [depth, height, width]), ("NHWC", [height, width, depth])):
        if len(shape) == 4 and all(axis in (None, want) for axis, want in zip(shape[1:], wanted, strict=True)):
            fits.append(layout)
    known = [axis for axis in shape[1:] if axis not in (None, 1)]
    if not fits and len(shape) != 4 and known == [height * width * depth]:
        fits.append("flat")
    if not fits:
        shown = "x".join("?" if axis is None else str(axis) for axis in shape)
        raise ImagesRefused(f"the images are {height}x{width} with {depth} channel(s), which do not fit the model's input {shown}")
    return fits


def check_reading(reading: InputSpec, shape: list[int | None], images: tuple[int, ...]) -> None:
    """Raise ImagesRefused unless (H, W, C) images are what `reading` says, and `reading` fits the model's input `shape`."""
    height, width, depth = images
    if (height, width) != reading.size or depth != reading.depth:
        expected = f"{reading.size[0]}x{reading.size[1]} {reading.channels}"
        raise ImagesRefused(f"the images are {height}x{width} with {depth} channel(s); the spec's `input` says {expected}")
    if reading.layout not in layouts(shape, height, width, depth):
        raise ImagesRefused(f"the spec's `input` says {reading.layout}, which does not fit the model's input {shape}")


def guess_reading(
    model: Path, shape: list[int | None], calibration: CalibrationSet, *, device: str, progress: Callable[[int, int], None] | None = None
) -> ReadingResult:
    """Try every candidate on at most 200 calibration images, and keep the one with the best accuracy; the first wins a tie."""
    spread = np.linspace(0, len(calibration) - 1, min(len(calibration), MOST_IMAGES)).astype(np.int64)  # they may lie class by class
    sample = calibration.at(spread)
    pictures, labels = sample.pictures(), sample.labels
    candidates = dict(_candidates(shape, pictures.shape[1:]))
    scores: dict[str, Rate] = {}
    classifier: Classifier | None = None
    for row, (name, reading) in enumerate(candidates.items()):
        if classifier is None:
            classifier = Classifier(model, reading, device=device)
        classifier.reading = reading
        try:
            answered = classifier(pictures)
            check_labels(labels, answered.shape[1])
            scores[name] = Rate.of(int((top(answered) == labels).sum()), len(labels))
        except ModelRefused:
            if len(candidates) == 1:
                raise
        if progress is not None:
            progress(row + 1, len(candidates))
    if not scores:
        raise ModelRefused("onnxruntime runs the model on none of the readings that were tried: say in the spec's `input` what it takes")
    best = max(scores, key=lambda name: scores[name].hits)
    return ReadingResult(input=candidates[best], guessed=True, scores=scores)


def _candidates(shape: list[int | None], images: tuple[int, ...]) -> Iterator[tuple[str, InputSpec]]:
    height, width, depth = images
    for layout in layouts(shape, height, width, depth):
        for channels in ("gray",) if depth == 1 else ("RGB", "BGR"):
            for name, (scale, mean, std) in SCALINGS.items():
                if (depth == 1 and len(mean) == 3) or (depth == 3 and name == "MNIST"):
                    continue
                if channels == "BGR":
                    mean, std = mean[::-1], std[::-1]
                reading = InputSpec.model_validate({"layout": layout, "size": (height, width), "channels": channels, "scale": scale, "mean": mean, "std": std})
                yield f"{layout} {channels} {name}", reading
