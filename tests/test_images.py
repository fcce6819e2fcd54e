"""Pictures, how they are read, and who may see which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import ImagesRefused
from pipeline.images import CalibrationSet, HoldoutSet, InputSpec, LabelledImages, content_digests, read, shared, split

# reading


def test_tensor_is_what_the_spec_says() -> None:
    pixels = np.array([[[[51, 102, 204]]]], np.uint8)
    picture = LabelledImages(pixels, np.zeros(1, np.int64)).pictures()
    spec = {"size": (1, 1), "scale": 51.0, "mean": (1.0, 1.5, 0.0), "std": (1.0, 0.5, 4.0)}
    assert InputSpec(**spec).tensor(picture).ravel().tolist() == [0.0, 1.0, 1.0]
    assert InputSpec(**spec, layout="NHWC").tensor(picture).shape == (1, 1, 1, 3)
    # BGR: mean and std stand in the model's order
    assert InputSpec(**spec, channels="BGR").tensor(picture).ravel().tolist() == [3.0, 1.0, 0.25]


def test_layouts_hold_the_same_numbers() -> None:
    pictures = tiny.pictures(2, size=(3, 5))
    nchw, nhwc, flat = (InputSpec(size=(3, 5), layout=layout).tensor(pictures) for layout in ("NCHW", "NHWC", "flat"))
    assert nchw.shape == (2, 3, 3, 5) and nhwc.shape == (2, 3, 5, 3) and flat.shape == (2, 45)
    assert np.array_equal(nchw.transpose(0, 2, 3, 1), nhwc)
    assert np.array_equal(nchw.reshape(2, -1), flat)
    assert all(x.flags.c_contiguous and x.dtype == np.float32 for x in (nchw, nhwc, flat))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": (0, 3)}, "positive"),
        ({"size": (3, 3), "mean": (1.0, 2.0)}, "1 or 3 numbers"),
        ({"size": (3, 3), "channels": "gray", "mean": (1.0, 2.0, 3.0)}, "1 or 1 numbers"),
        ({"size": (3, 3), "std": (0.0,)}, "std must be positive"),
        ({"size": (3, 3), "mean": (float("nan"),)}, "finite"),
        ({"size": (3, 3), "std": (float("inf"),)}, "finite"),
        ({"size": (3, 3), "scale": 0}, "greater than 0"),
        ({"size": (3, 3), "scale": float("inf")}, "finite"),
        ({"size": (3, 3), "layout": "CHWN"}, "NCHW"),
        ({"size": (3, 3), "color": "RGB"}, "Extra inputs"),
    ],
)
def test_a_reading_that_cannot_be(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        InputSpec(**fields)


# sets


def test_batches_are_the_whole_in_parts(folder: Path) -> None:
    images = tiny.labelled(10)
    loaded = LabelledImages.load(images.save(folder))
    assert isinstance(loaded.images, np.memmap)
    batches = list(loaded.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([pictures for pictures, _ in batches]), images.pictures())
    assert np.array_equal(np.concatenate([labels for _, labels in batches]), images.labels)
    assert images.pictures().dtype == np.float32
    assert images.pictures().max() <= 1


def test_pictures_are_pixels_over_255() -> None:
    ramp = LabelledImages(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), np.zeros(1, np.int64))
    assert np.array_equal(ramp.pictures().ravel(), np.arange(256, dtype=np.float32) / np.float32(255))


def test_sets_keep_their_kind(folder: Path) -> None:
    calibration = CalibrationSet.load(tiny.labelled(4).save(folder))
    assert type(calibration) is CalibrationSet
    assert type(calibration.at(np.array([0, 2]))) is CalibrationSet
    assert not isinstance(calibration, HoldoutSet)


# files


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


IMAGES, LABELS = tiny.labelled(6).images, tiny.labelled(6).labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_npz(dtype: type, folder: Path) -> None:
    found = read(npz(folder, images=IMAGES, labels=LABELS.astype(dtype)))
    assert np.array_equal(found.images, IMAGES) and np.array_equal(found.labels, LABELS)
    assert found.labels.dtype == np.int64


def test_npz_of_gray_images_without_a_channel_axis(folder: Path) -> None:
    assert read(npz(folder, images=IMAGES[..., 0], labels=LABELS)).images.shape == (6, 8, 8, 1)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, "no array called `labels`"),
        ({"labels": LABELS}, "no array called `images`"),
        ({"x": IMAGES, "y": LABELS}, "no array called `images`"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "uint8"),
        ({"images": IMAGES[:, :, :, :2], "labels": LABELS}, "1 or 3 channels"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, "1 or 3 channels"),
        ({"images": IMAGES[:, :0], "labels": LABELS}, "1 or 3 channels"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "one an image"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, "one an image"),
        ({"images": IMAGES, "labels": LABELS.astype(np.float64)}, "integers"),
        ({"images": IMAGES, "labels": np.array(["a"] * 6)}, "integers"),
        ({"images": IMAGES, "labels": np.array([object()] * 6)}, "object arrays"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no images"),
    ],
)
def test_an_npz_of_something_else(arrays: dict[str, np.ndarray], words: str, folder: Path) -> None:
    with pytest.raises(ImagesRefused, match=words):
        read(npz(folder, **arrays))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_a_file_that_is_no_npz(content: bytes, folder: Path) -> None:
    (folder / "images.npz").write_bytes(content)
    with pytest.raises(ImagesRefused, match=r"no readable \.npz"):
        read(folder / "images.npz")
    np.save(folder / "images.npy", IMAGES)
    with pytest.raises(ImagesRefused, match=r"no readable \.npz"):
        read(folder / "images.npy")


def test_nothing_there(folder: Path) -> None:
    with pytest.raises(ImagesRefused, match="no images at"):
        read(folder / "missing")


def picture(path: Path, *, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


def test_folders_of_classes(folder: Path) -> None:
    for row, name in enumerate(["dog/2.png", "cat/1.png", "cat/deep/0.PNG", "ant/x.bmp"]):
        picture(folder / name, seed=row)
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    (folder / "cat" / "._1.png").write_bytes(b"what macOS leaves beside a picture")
    found = read(folder)
    assert found.labels.tolist() == [0, 1, 1, 2]
    assert np.array_equal(found.images[3], np.asarray(Image.open(folder / "dog" / "2.png")))
    assert read(folder, labels=["cat", "dog", "eel", "ant"]).labels.tolist() == [3, 0, 0, 1]
    with pytest.raises(ImagesRefused, match="'ant' of"):
        read(folder, labels=["cat", "dog"])


def test_folders_of_numbers_are_class_indices(folder: Path) -> None:
    for row, name in enumerate(["10", "2", "07"]):
        picture(folder / name / "a.png", seed=row)
    assert sorted(read(folder).labels.tolist()) == [2, 7, 10]
    assert sorted(read(folder, labels=["cat", "dog"]).labels.tolist()) == [2, 7, 10]
    assert sorted(read(folder, labels=["07", "10", "2"]).labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"), [("L", "png", 1), ("1", "png", 1), ("LA", "png", 1), ("P", "png", 3), ("RGBA", "png", 3), ("CMYK", "tif", 3)]
)
def test_modes(mode: str, suffix: str, channels: int, folder: Path) -> None:
    picture(folder / "0" / f"a.{suffix}", mode=mode)
    assert read(folder).images.shape == (1, 8, 8, channels)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_deep_images_are_refused_and_not_clipped(kind: type, folder: Path) -> None:
    """Regression: 16 bits a pixel were cut off at 255, so that a picture of 0..65535 was white."""
    (folder / "0").mkdir()
    Image.fromarray(np.full((8, 8), 300, kind)).save(folder / "0" / "a.tif")
    with pytest.raises(ImagesRefused, match="more than 8 bits"):
        read(folder)


def test_folders_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImagesRefused, match="no sub-folders"):
        read(folder)
    (folder / "0").mkdir()
    with pytest.raises(ImagesRefused, match="no images under"):
        read(folder)
    picture(folder / "0" / "a.png")
    picture(folder / "0" / "b.png", size=(8, 9))
    with pytest.raises(ImagesRefused, match=r"b.png is 8x9x3, .*a.png is 8x8x3"):
        read(folder)
    (folder / "0" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImagesRefused, match="no readable image"):
        read(folder)
    monkeypatch.setattr("pipeline.images.MOST_PIXELS", 60)
    with pytest.raises(ImagesRefused, match="8x8 pixels"):
        read(folder)


# splitting


def noise(labels: list[int] | np.ndarray, *, seed: int = 0) -> LabelledImages:
    labels = np.asarray(labels, np.int64)
    return LabelledImages(np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8), labels)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.data())
def test_a_split_parts_the_whole_by_class(labels: list[int], data: st.DataObject) -> None:
    images = noise(sorted(labels))
    wanted = data.draw(st.integers(1, len(labels) - 1))
    calibration, holdout = split(images, calibration=wanted, seed=1)
    assert (len(calibration), len(holdout)) == (wanted, len(labels) - wanted)
    assert sorted(content_digests(calibration.images) + content_digests(holdout.images)) == sorted(content_digests(images.images))
    for label in set(labels):
        share = labels.count(label) * wanted / len(labels)
        assert abs(int((calibration.labels == label).sum()) - share) <= 1.5, (label, share)
    where = {digest: int(label) for digest, label in zip(content_digests(images.images), images.labels, strict=True)}
    for part in (calibration, holdout):
        assert [where[digest] for digest in content_digests(part.images)] == part.labels.tolist()


@pytest.mark.parametrize(("n", "expected"), [(5, 1), (100, 20), (2499, 499), (2500, 500), (5000, 500)])
def test_how_many_when_nobody_says(n: int, expected: int) -> None:
    calibration, holdout = split(noise(np.arange(n) % 10), calibration=None, seed=0)
    assert type(calibration) is CalibrationSet and type(holdout) is HoldoutSet
    assert (len(calibration), len(holdout)) == (expected, n - expected)


def test_the_seed_decides() -> None:
    images = noise(np.arange(100) % 10)
    one, again, other = (split(images, calibration=20, seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(one.images, again.images)
    assert not np.array_equal(one.images, other.images)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_equal_images_stay_on_one_side(seed: int) -> None:
    images = noise(np.arange(60) % 3)
    twins = np.random.default_rng(seed).integers(0, 20, 60)
    images = LabelledImages(images.images[twins], images.labels[twins])
    calibration, holdout = split(images, calibration=15, seed=seed)
    assert shared(calibration, holdout) == 0
    assert len(calibration) + len(holdout) == 60
    assert len(calibration) >= 15


@pytest.mark.parametrize(("n", "wanted"), [(4, None), (1, 1), (5, 5), (5, 6), (5, 0)])
def test_too_few_images_to_split(n: int, wanted: int | None) -> None:
    with pytest.raises(ImagesRefused, match="cannot be split"):
        split(noise(np.zeros(n)), calibration=wanted, seed=0)


def test_one_picture_many_times_cannot_be_split() -> None:
    same = LabelledImages(np.zeros((10, 4, 4, 3), np.uint8), np.zeros(10, np.int64))
    with pytest.raises(ImagesRefused, match="too many are equal"):
        split(same, calibration=2, seed=0)


def test_shared() -> None:
    images = noise(np.zeros(6))
    assert shared(images.at(np.arange(4)), images.at(np.arange(2, 6))) == 2
    assert shared(images, noise(np.zeros(6), seed=1)) == 0
