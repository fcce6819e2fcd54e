"""Images, how a model wants to be shown them, and which of them may be seen by whom.

A picture is (H, W, C) in 0..1 (uint8 on disk).  Triggers and perturbations live there; `InputSpec` turns pictures into what the
model takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ImagesRefused

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MOST_PIXELS = 2**26  # of one picture: a larger one is a decompression bomb


class InputSpec(BaseModel):
    """How the model reads a picture: tensor = (pixel / scale - mean) / std, with pixel in 0..255.

    size: (height, width).  `flat` is NCHW order in one axis, whatever axes of length 1 the model has around it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal["NCHW", "NHWC", "flat"] = "NCHW"
    size: tuple[int, int]
    channels: Literal["RGB", "BGR", "gray"] = "RGB"
    scale: float = Field(default=255.0, gt=0, allow_inf_nan=False)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _per_channel(self) -> Self:
        if min(self.size) < 1:
            raise ValueError(f"size must be two positive numbers, height and width; it is {list(self.size)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.depth):
                raise ValueError(f"{name} needs 1 or {self.depth} numbers for {self.channels}; it has {len(values)}")
            if not np.all(np.isfinite(values)):
                raise ValueError(f"{name} must be finite; it is {list(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive; it is {list(self.std)}")
        return self

    @property
    def depth(self) -> int:
        """Channels of a picture: 1 (gray) or 3."""
        return 1 if self.channels == "gray" else 3

    def coefficients(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Per-channel (C) float32 `a` and `b`, in RGB order, of tensor = a * picture + b with the picture in 0..1."""
        mean = np.broadcast_to(np.asarray(self.mean, np.float64), (self.depth,))
        std = np.broadcast_to(np.asarray(self.std, np.float64), (self.depth,))
        a, b = 255.0 / (self.scale * std), -mean / std
        if self.channels == "BGR":  # mean and std are in the model's order
            a, b = a[::-1], b[::-1]
        return a.astype(np.float32), b.astype(np.float32)

    def tensor(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, H, W, C) float32 pictures in 0..1 -> what the model takes; `flat` gives (N, C*H*W)."""
        a, b = self.coefficients()
        x = pictures * a + b
        if self.channels == "BGR":
            x = x[..., ::-1]
        if self.layout != "NHWC":
            x = x.transpose(0, 3, 1, 2)
        if self.layout == "flat":
            x = x.reshape(len(x), -1)
        return np.ascontiguousarray(x, dtype=np.float32)


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, H, W, C) uint8, C of 1 or 3.  labels: (N) int64.  The arrays may be memory-mapped."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self) -> NDArray[np.float32]:
        """All of them at once, (N, H, W, C) float32 in 0..1."""
        return _pictures(self.images)

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Pictures and labels, at most `size` at a time, so that memory stays flat in N."""
        for start in range(0, len(self), size):
            yield _pictures(self.images[start : start + size]), np.asarray(self.labels[start : start + size])

    def at(self, index: NDArray[np.int64]) -> Self:
        """Those at `index`, copied."""
        return type(self)(np.asarray(self.images[index]), np.asarray(self.labels[index]))

    def save(self, folder: Path) -> dict[str, Path]:
        """Write `images.npy` and `labels.npy` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"images": folder / "images.npy", "labels": folder / "labels.npy"}
        np.save(paths["images"], self.images, allow_pickle=False)
        np.save(paths["labels"], self.labels, allow_pickle=False)
        return paths

    @classmethod
    def load(cls, paths: dict[str, Any]) -> Self:
        """Map what `save` wrote."""
        images = np.load(paths["images"], mmap_mode="r", allow_pickle=False)
        return cls(images, np.load(paths["labels"], allow_pickle=False))


def _pictures(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(images, 255, dtype=np.float32)


class CalibrationSet(LabelledImages):
    """Images that a purifier, a search or a threshold may see."""


class HoldoutSet(LabelledImages):
    """Images that judge, and that nothing else may see."""


def read(path: Path, *, labels: list[str] | None = None) -> LabelledImages:
    """Read an .npz with `images` (N,H,W,C uint8) and `labels` (N), or a folder with one sub-folder a class.

    `labels` names the classes in the model's order.  Without it, sub-folders that are all numbers are class indices, and other
    sub-folders are numbered in sorted order.  Raises ImagesRefused.
    """
    if not path.exists():
        raise ImagesRefused(f"no images at {path}: give a folder with one sub-folder a class, or an .npz with `images` and `labels`")
    found = _read_folder(path, labels) if path.is_dir() else _read_npz(path)
    if len(found) == 0:
        raise ImagesRefused(f"{path} holds no images")
    return found


def _read_npz(path: Path) -> LabelledImages:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := {"images", "labels"} - set(archive.files):
                raise ImagesRefused(f"{path} has no array called `{min(missing)}`: an .npz of images needs `images` (N,H,W,C uint8) and `labels` (N)")
            images, labels = archive["images"], archive["labels"]
    except ImagesRefused:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own for a broken file
        raise ImagesRefused(f"{path} is no readable .npz of images ({type(error).__name__}); object arrays are not read") from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or min(images.shape[1:]) < 1:
        raise ImagesRefused(f"`images` in {path} must be (N,H,W,C) uint8 with 1 or 3 channels; it is {images.shape} {images.dtype}")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ImagesRefused(f"`labels` in {path} must be {images.shape[:1]} integers, one an image; it is {labels.shape} {labels.dtype}")
    return LabelledImages(images, labels.astype(np.int64))


def _read_folder(path: Path, names: list[str] | None) -> LabelledImages:
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ImagesRefused(f"{path} has no sub-folders: images are expected in one sub-folder a class")
    index = _class_indices([entry.name for entry in classes], names, path)
    files = [(file, index[entry.name]) for entry in classes for file in sorted(entry.rglob("*")) if file.suffix.lower() in SUFFIXES and file.name[0] != "."]
    if not files:
        raise ImagesRefused(f"no images under {path}: looked for {', '.join(sorted(SUFFIXES))} in its {len(classes)} sub-folders")
    first = _decode(files[0][0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, (file, _) in enumerate(files):
        picture = first if row == 0 else _decode(file)
        if picture.shape != first.shape:
            raise ImagesRefused(f"all images must have one size and mode: {file} is {_shape(picture)}, {files[0][0]} is {_shape(first)}")
        images[row] = picture
    return LabelledImages(images, np.array([label for _, label in files], np.int64))


def _class_indices(folders: list[str], names: list[str] | None, path: Path) -> dict[str, int]:
    if names is not None and set(folders) <= set(names):
        return {folder: names.index(folder) for folder in folders}
    if all(folder.isdecimal() for folder in folders):
        return {folder: int(folder) for folder in folders}
    if names is not None:
        unknown = sorted(set(folders) - set(names))
        raise ImagesRefused(f"sub-folder {unknown[0]!r} of {path} is none of the labels in the spec: {', '.join(names[:20])}")
    return {folder: row for row, folder in enumerate(folders)}


def _decode(file: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImagesRefused(f"{file} has {image.width}x{image.height} pixels; at most {MOST_PIXELS} are read")
            if image.mode.startswith(("I", "F")):
                raise ImagesRefused(f"{file} has more than 8 bits a channel (mode {image.mode}), which are not read: save it with 8")
            gray = image.mode in ("1", "L", "LA")
            picture = np.asarray(image.convert("L" if gray else "RGB"), np.uint8)
    except ImagesRefused:
        raise
    except Exception as error:  # Pillow raises whatever the decoder of the format raises
        raise ImagesRefused(f"{file} is no readable image ({type(error).__name__})") from error
    return picture[..., None] if picture.ndim == 2 else picture


def _shape(picture: NDArray[Any]) -> str:
    return "x".join(map(str, picture.shape))


def content_digests(images: NDArray[np.uint8]) -> list[bytes]:
    """A digest an image, so that equal images can be known."""
    return [hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest() for image in images]


def split(images: LabelledImages, *, calibration: int | None, seed: int) -> tuple[CalibrationSet, HoldoutSet]:
    """Split one set, seeded and stratified by label, equal images kept on one side.

    calibration: how many images it gets; None is the smaller of 500 and a fifth.  Raises ImagesRefused when nothing would be
    left to judge with.
    """
    wanted = min(500, len(images) // 5) if calibration is None else calibration
    if not 0 < wanted < len(images):
        raise ImagesRefused(f"{len(images)} images cannot be split into {wanted} for calibration and some to judge with: give more, or set purify.images")
    groups: dict[bytes, list[int]] = {}
    for row, digest in enumerate(content_digests(images.images)):
        groups.setdefault(digest, []).append(row)
    random = np.random.default_rng(seed)
    by_label: dict[int, list[list[int]]] = {}
    for rows in groups.values():
        by_label.setdefault(int(images.labels[rows[0]]), []).append(rows)
    queues = {label: [by_label[label][i] for i in random.permutation(len(by_label[label]))] for label in sorted(by_label)}
    # Draw one group a class in turn, weighted by what a class has (Sainte-Laguë): the class furthest below its share goes next.
    share = {label: sum(map(len, queue)) / len(images) for label, queue in queues.items()}
    taken = dict.fromkeys(queues, 0)
    chosen: list[int] = []
    while len(chosen) < wanted:
        open_labels = [label for label in queues if queues[label]]
        label = min(open_labels, key=lambda name: (taken[name] + 0.5) / share[name])
        rows = queues[label].pop()
        taken[label] += len(rows)
        chosen += rows
    inside = np.zeros(len(images), bool)
    inside[chosen] = True
    if inside.all():
        raise ImagesRefused(f"no images are left to judge with: of {len(images)} images, too many are equal")
    order = np.flatnonzero(inside), np.flatnonzero(~inside)
    return (
        CalibrationSet(np.asarray(images.images[order[0]]), images.labels[order[0]]),
        HoldoutSet(np.asarray(images.images[order[1]]), images.labels[order[1]]),
    )


def shared(calibration: LabelledImages, holdout: LabelledImages) -> int:
    """How many hold-out images also lie in the calibration set, by content."""
    seen = set(content_digests(calibration.images))
    return sum(digest in seen for digest in content_digests(holdout.images))
