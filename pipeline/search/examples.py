"""Calibration images as tensors, and what a network says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import ImagesRefused
from pipeline.images import CalibrationSet
from pipeline.search.augment import augment
from pipeline.twin import TorchTwin

MIRRORED = 0.05  # the accuracy that a mirror may cost


@dataclass(frozen=True)
class Examples:
    """Calibration images as tensors on the twin's device.  pictures: (N, C, H, W) float32 in 0..1.  labels: (N) int64."""

    pictures: Tensor
    labels: Tensor
    flip: bool

    @classmethod
    def of(cls, twin: TorchTwin, calibration: CalibrationSet) -> Examples:
        """Raises ImagesRefused when there are none, or when the model does not have their classes."""
        if len(calibration) == 0:
            raise ImagesRefused("purification needs at least one calibration image, and there are none")
        pictures = torch.from_numpy(calibration.pictures().transpose(0, 3, 1, 2).copy()).to(twin.device)
        labels = torch.from_numpy(calibration.labels.copy()).to(twin.device)
        with torch.no_grad():
            count = twin.logits(pictures[:1]).shape[1]
        if int(labels.min()) < 0 or int(labels.max()) >= count:
            raise ImagesRefused(f"calibration labels run from {int(labels.min())} to {int(labels.max())}, and the model has {count} classes")
        flip = accuracy(twin, pictures.flip(3), labels) >= accuracy(twin, pictures, labels) - MIRRORED
        return cls(pictures, labels, flip)

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Examples:
        """Those at `index`."""
        index = index.to(self.labels.device)
        return replace(self, pictures=self.pictures[index], labels=self.labels[index])

    def drawn(self, index: Tensor, crop: int, generator: torch.Generator) -> Tensor:
        """The pictures at `index` (N), shifted by up to `crop` pixels and, where that is harmless, mirrored."""
        return augment(self.at(index).pictures, crop=crop, flip=self.flip, generator=generator)

    def sample(self, size: int, crop: int, generator: torch.Generator) -> Tensor:
        """`size` of the pictures drawn by chance, shifted and mirrored as by `drawn`."""
        return self.drawn(torch.randint(0, len(self), (size,), generator=generator), crop, generator)

    def batches(self, size: int, *, crop: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them once, in a random order and randomly shifted and mirrored, at most `size` at a time."""
        for index in torch.randperm(len(self), generator=generator).split(size):
            part = self.at(index)
            yield augment(part.pictures, crop=crop, flip=self.flip, generator=generator), part.labels


@torch.no_grad()
def accuracy(twin: TorchTwin, pictures: Tensor, labels: Tensor, weights: Mapping[str, Tensor] | None = None, *, batch: int = 256) -> float:
    """Share of (N, C, H, W) pictures that are given their label."""
    hits = sum(int((twin.logits(x, weights).argmax(1) == y).sum()) for x, y in zip(pictures.split(batch), labels.split(batch), strict=True))
    return hits / len(labels)


@torch.no_grad()
def classes_of(twin: TorchTwin, examples: Examples) -> Tensor:
    """(N) what the submitted network takes the calibration pictures for."""
    return torch.cat([twin.logits(some).argmax(1) for some in examples.pictures.split(256)])
