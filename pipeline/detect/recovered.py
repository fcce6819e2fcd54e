"""A change that was found, as a trigger that audit.yaml can name: its files, and its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.search.additions import Additions
from pipeline.search.patches import Painted
from pipeline.search.targeted import Targeted
from pipeline.search.warps import Warps
from pipeline.triggers import AdditiveSpec, PatchSpec, TriggerSpec, WarpSpec


def trigger_of(one: Targeted, row: int, folder: Path) -> dict[str, Any]:
    """The fields of a trigger, its files written into `folder`."""
    aim = one.aim(row)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [parameter[row].detach().float().cpu().numpy() for parameter in one.parameters]
    says: dict[str, Any] = {"name": f"recovered {one.name} {aim}", "target": aim.goal, "source": aim.source}
    spec: TriggerSpec
    if isinstance(one, Painted):
        opacity, pattern = (1 / (1 + np.exp(-array)) for array in arrays)
        image, mask = folder / "image.png", folder / "mask.png"
        _save(pattern.transpose(1, 2, 0), image)
        _save(opacity.transpose(1, 2, 0), mask)
        spec = PatchSpec(**says, image=str(image), mask=str(mask), at=(0, 0))
    elif isinstance(one, Warps):
        (field,) = arrays  # (2, k, k) pixels; a warp's field counts in 1 / side of coordinates that run from -1 to 1
        height, width = one.shape
        field = field.transpose(1, 2, 0) * (2 * np.array([width, height]) / np.maximum(1, np.array([width, height]) - 1))
        np.save(folder / "field.npy", field.astype(np.float32), allow_pickle=False)
        spec = WarpSpec(**says, kind="warp", field=str(folder / "field.npy"), strength=1.0)
    elif isinstance(one, Additions):
        np.save(folder / "pattern.npy", one.patterns()[row].detach().float().cpu().numpy().transpose(1, 2, 0).copy(), allow_pickle=False)
        spec = AdditiveSpec(**says, kind="additive", pattern=str(folder / "pattern.npy"))
    else:
        raise TypeError(f"no trigger is like {type(one).__name__}")
    return spec.model_dump(mode="json")


def _save(picture: NDArray[np.float32], path: Path) -> None:
    """(H, W, C) in 0..1, C of 1 or 3, as 8-bit pixels."""
    pixels = np.round(255 * picture).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
