"""How a model reads pictures, guessed and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper

from pipeline.errors import ImagesRefused, ModelRefused
from pipeline.evaluate.reading import MOST_IMAGES, check_reading, guess_reading, layouts
from pipeline.images import CalibrationSet, InputSpec

node = helper.make_node


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ([None, 3, 8, 8], (8, 8, 3), ["NCHW"]),
        ([1, 8, 8, 3], (8, 8, 3), ["NHWC"]),
        ([None, None, None, None], (8, 8, 3), ["NCHW", "NHWC"]),
        ([None, 3, 3, 3], (3, 3, 3), ["NCHW", "NHWC"]),
        ([None, 3, None, None], (5, 7, 3), ["NCHW"]),
        ([None, 192], (8, 8, 3), ["flat"]),
        ([1, 784, 1], (28, 28, 1), ["flat"]),
        ([None, 1, 1, 192], (8, 8, 3), None),
        ([None, 192, 2], (8, 8, 3), None),
        ([None, 3, 8, 9], (8, 8, 3), None),
        ([None, 1, 8, 8], (8, 8, 3), None),
        ([None, None], (8, 8, 3), None),
        ([None, 3, 8, 8, 8], (8, 8, 3), None),
    ],
)
def test_layouts(shape: list[int | None], size: tuple[int, int, int], expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(ImagesRefused, match="do not fit the model's input"):
            layouts(shape, *size)
    else:
        assert layouts(shape, *size) == expected


def test_a_reading_that_is_said_must_fit() -> None:
    reading = InputSpec(size=(8, 8))
    check_reading(reading, [None, 3, 8, 8], (8, 8, 3))
    with pytest.raises(ImagesRefused, match="images are 9x8 with 3"):
        check_reading(reading, [None, 3, 8, 8], (9, 8, 3))
    with pytest.raises(ImagesRefused, match="with 1 channel"):
        check_reading(reading, [None, 3, 8, 8], (8, 8, 1))
    with pytest.raises(ImagesRefused, match="says NCHW"):
        check_reading(reading, [None, 8, 8, 3], (8, 8, 3))
    with pytest.raises(ImagesRefused, match="do not fit"):
        check_reading(reading, [None, 3, 9, 9], (8, 8, 3))


def detector(shape: tuple[object, ...]) -> object:
    """Class 0: red outshines blue, on the scale -1..1; class 1: it does not."""
    layout = [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])] if shape[-1] == 3 else [node("Identity", ["x"], ["t"])]
    kernel = np.zeros((2, 3, 1, 1), np.float32)
    kernel[0, 0], kernel[1, 2] = 1, 1
    clip = [node("Conv", ["t", "K"], ["k"]), node("Clip", ["k", "low", "high"], ["c"])]
    nodes = [*layout, *clip, node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["y"])]
    return tiny.model(nodes, {"K": kernel, "low": np.float32(-1), "high": np.float32(1)}, shape=shape, outputs={"y": ("N", 2)})


def colours(n: int) -> CalibrationSet:
    """Labels class by class, as a folder has them; red or blue by a little, in dark and in light."""
    random = np.random.default_rng(0)
    labels = np.sort(np.arange(n) % 2)
    images = np.repeat(random.integers(20, 200, (n, 1, 1, 1)), 3, axis=3)
    images[np.arange(n), 0, 0, 2 * labels] += 30
    return CalibrationSet(np.broadcast_to(images, (n, 8, 8, 3)).astype(np.uint8), labels.astype(np.int64))


@pytest.mark.parametrize("shape", [("N", 3, 8, 8), ("N", 8, 8, 3), (1, 3, 8, 8)])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_the_best_reading_is_found(shape: tuple[object, ...], channels: str, folder: Path) -> None:
    images = colours(60)
    if channels == "BGR":
        images = CalibrationSet(images.images[..., ::-1], images.labels)
    seen: list[tuple[int, int]] = []
    axes = [axis if isinstance(axis, int) else None for axis in shape]
    found = guess_reading(tiny.save(detector(shape), folder), axes, images, device="cpu", progress=lambda done, total: seen.append((done, total)))
    assert found.guessed
    assert found.input.channels == channels
    assert found.input.layout == ("NHWC" if shape[-1] == 3 else "NCHW")
    assert found.scores[f"{found.input.layout} {channels} 0..1"].rate == 1
    assert all(rate.hits <= found.scores[f"{found.input.layout} {channels} 0..1"].hits for rate in found.scores.values())
    assert seen[-1] == (10, 10)


def test_the_trained_scaling_is_found(tiny_backdoored: tiny.Backdoored) -> None:
    test = tiny.shapes(100, seed=5)
    found = guess_reading(tiny_backdoored.model, [None, 3, 12, 12], CalibrationSet(test.images, test.labels), device="cpu")
    best = found.scores["NCHW RGB -1..1"]
    assert best.rate > 0.9 and found.scores["NCHW RGB 0..255"].rate < best.rate


def test_images_that_lie_class_by_class_are_all_represented(folder: Path) -> None:
    """Regression: the first 200 were tried, which in a folder of classes are 200 of one class; then a model that says one class only wins."""
    images = colours(3 * MOST_IMAGES)
    assert len(set(images.labels[:MOST_IMAGES].tolist())) == 1
    found = guess_reading(tiny.save(detector(("N", 3, 8, 8)), folder), [None, 3, 8, 8], images, device="cpu")
    assert found.input.channels == "RGB"
    rate = found.scores["NCHW RGB 0..255"]  # clipped: it says class 0 to all
    assert (rate.hits, rate.total) == (MOST_IMAGES // 2, MOST_IMAGES)


def test_gray_pictures(folder: Path) -> None:
    model = tiny.model([node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "F"], ["y"])], {"F": tiny.values(64, 4)}, shape=("N", 1, 8, 8))
    images = tiny.labelled(20, channels=1)
    found = guess_reading(tiny.save(model, folder), [None, 1, 8, 8], CalibrationSet(images.images, images.labels), device="cpu")
    assert found.input.channels == "gray"
    assert set(found.scores) == {"NCHW gray 0..1", "NCHW gray -1..1", "NCHW gray 0..255", "NCHW gray MNIST"}


def test_labels_out_of_range_and_models_that_answer_nothing_useful(folder: Path) -> None:
    images = tiny.labelled(20, classes=7)
    with pytest.raises(ImagesRefused, match="out of range"):
        guess_reading(tiny.save(tiny.classifier(), folder), [None, 3, 8, 8], CalibrationSet(images.images, images.labels), device="cpu")
    broken = tiny.classifier()
    broken.graph.node[0].input[0] = "y"
    with pytest.raises(ModelRefused):
        guess_reading(tiny.save(broken, folder), [None, 3, 8, 8], CalibrationSet(images.images, images.labels), device="cpu")
    sqrt = tiny.model(
        [node("Neg", ["x"], ["n"]), node("Sub", ["n", "x"], ["m"]), node("Sqrt", ["m"], ["s"]), node("Flatten", ["s"], ["y"])], outputs={"y": ("N", 192)}
    )
    small = tiny.labelled(20)
    path = tiny.save(sqrt, folder)
    with pytest.raises(ModelRefused, match="none of the readings"):
        guess_reading(path, [None, 3, 8, 8], CalibrationSet(np.maximum(small.images, 1), small.labels), device="cpu")
