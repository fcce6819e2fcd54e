"""A patch painted on the picture.

BadNets (Gu et al., 2017, arXiv 1708.06733) and the square of TrojanNN (Liu et al., NDSS 2018) are of this family.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import SpecRefused

Pictures = NDArray[np.float32]


@dataclass(frozen=True)
class Patch:
    """x' = (1 - mask) x + mask pattern, on the window that starts at (row, column).

    pattern: (h, w, C) float32 in 0..1.  mask: (h, w) float32 in 0..1, the opacity.  Negative `row` and `column` count from the
    bottom and the right edge, as Python's indices do.
    """

    pattern: Pictures
    mask: Pictures
    row: int
    column: int

    def __call__(self, pictures: Pictures) -> Pictures:
        """Stamp (N, H, W, C) float32 pictures in 0..1; the argument is left as it was.

        Raises ValueError when the patch does not lie inside the picture, or has other channels.
        """
        height, width, channels = pictures.shape[1:]
        h, w, c = self.pattern.shape
        top = self.row if self.row >= 0 else height + self.row
        left = self.column if self.column >= 0 else width + self.column
        if c != channels:
            raise ValueError(f"the patch has {c} channels and the pictures have {channels}")
        if top < 0 or left < 0 or top + h > height or left + w > width:
            raise ValueError(f"a {h}x{w} patch at ({self.row}, {self.column}) does not lie inside a {height}x{width} picture")
        stamped = pictures.copy()
        window = stamped[:, top : top + h, left : left + w, :]
        opacity = self.mask[None, :, :, None]
        window += opacity * (self.pattern[None] - window)
        return stamped


class PatchSpec(BaseModel):
    """A patch in audit.yaml: a picture file, or a rectangle of one colour.

    image: path of a picture.  mask: path of its opacity, a gray picture; without it the patch is opaque.  size and color: height
    and width of a rectangle, and its gray value or RGB in 0..255.  at: row and column of the top left corner.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["patch"] = "patch"
    image: str | None = None
    mask: str | None = None
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    color: Annotated[int, Field(ge=0, le=255)] | tuple[Annotated[int, Field(ge=0, le=255)], ...] = 255
    at: tuple[int, int]
    target: Annotated[int, Field(ge=0)] | str

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.image is None) == (self.size is None):
            raise ValueError("a patch needs either `image` or `size` (with `color`)")
        return self

    def files(self) -> dict[str, str]:
        """The files it names, by field."""
        return {field: value for field in ("image", "mask") if (value := getattr(self, field)) is not None}

    def relative_to(self, folder: Path) -> Self:
        """The same with absolute paths."""
        return self.model_copy(update={field: str(folder / Path(value).expanduser()) for field, value in self.files().items()})

    def build(self, channels: int) -> Patch:
        """Read the files, for pictures of 1 or 3 channels.  Raises SpecRefused."""
        if self.image is not None:
            pattern = _picture(self.image, self.name, channels)
        else:
            assert self.size is not None
            color = np.atleast_1d(np.asarray(self.color, np.float32)) / 255
            if len(color) not in (1, channels):
                raise SpecRefused(f"trigger {self.name!r}: `color` has {len(color)} values and the pictures have {channels} channels")
            pattern = np.broadcast_to(color, (*self.size, channels)).astype(np.float32)
        mask = _picture(self.mask, self.name, 1)[..., 0] if self.mask is not None else np.ones(pattern.shape[:2], np.float32)
        if mask.shape != pattern.shape[:2]:
            raise SpecRefused(f"trigger {self.name!r}: the mask is {mask.shape} and the patch {pattern.shape[:2]}")
        return Patch(pattern, mask, *self.at)


def _picture(path: str, name: str, channels: int) -> Pictures:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise SpecRefused(f"trigger {name!r}: {path} has more than 8 bits a channel (mode {image.mode}), which are not read: save it with 8")
            picture = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.uint8)
    except SpecRefused:
        raise
    except Exception as error:  # Pillow raises whatever the decoder of the format raises
        raise SpecRefused(f"trigger {name!r}: {path} is no readable picture ({type(error).__name__})") from error
    return np.divide(picture.reshape(*picture.shape[:2], channels), 255, dtype=np.float32)
