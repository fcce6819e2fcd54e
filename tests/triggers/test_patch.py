"""Patches: painted where they should be, nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import SpecRefused
from pipeline.triggers import Patch, PatchSpec


def patch(h: int = 2, w: int = 3, c: int = 3, *, row: int = 0, column: int = 0, opacity: float = 1.0) -> Patch:
    return Patch(np.full((h, w, c), 0.5, np.float32), np.full((h, w), opacity, np.float32), row, column)


@given(h=st.integers(1, 6), w=st.integers(1, 6), row=st.integers(-6, 5), column=st.integers(-6, 5), opacity=st.floats(0, 1, width=32))
def test_the_equation(h: int, w: int, row: int, column: int, opacity: float) -> None:
    pictures = tiny.pictures(2, size=(6, 6))
    top, left = row % 6, column % 6
    if top + h > 6 or left + w > 6:
        with pytest.raises(ValueError, match="does not lie inside"):
            patch(h, w, row=row, column=column)(pictures)
        return
    before = pictures.copy()
    stamped = patch(h, w, row=row, column=column, opacity=opacity)(pictures)
    expected = before.copy()
    expected[:, top : top + h, left : left + w] = (1 - opacity) * before[:, top : top + h, left : left + w] + opacity * 0.5
    assert np.allclose(stamped, expected, atol=1e-6)
    outside = np.ones((6, 6), bool)
    outside[top : top + h, left : left + w] = False
    assert np.array_equal(stamped[:, outside], before[:, outside])
    assert np.array_equal(pictures, before)
    assert stamped.dtype == np.float32
    assert stamped.min() >= 0 and stamped.max() <= 1


@pytest.mark.parametrize(("row", "column"), [(-7, 0), (0, -7), (5, 0), (0, 4), (6, 0)])
def test_outside_the_picture(row: int, column: int) -> None:
    with pytest.raises(ValueError, match=r"2x3 patch .* 6x6 picture"):
        patch(row=row, column=column)(tiny.pictures(1, size=(6, 6)))


def test_other_channels() -> None:
    with pytest.raises(ValueError, match="3 channels and the pictures have 1"):
        patch()(tiny.pictures(1, channels=1))


@pytest.mark.parametrize(("color", "channels", "expected"), [(255, 3, [1, 1, 1]), (51, 1, [0.2]), ((255, 0, 51), 3, [1, 0, 0.2]), ((51,), 3, [0.2, 0.2, 0.2])])
def test_a_rectangle_of_one_colour(color: object, channels: int, expected: list[float]) -> None:
    built = PatchSpec(name="a", size=(2, 3), color=color, at=(1, -4), target=0).build(channels)
    assert built.pattern.shape == (2, 3, channels)
    assert np.allclose(built.pattern[1, 2], expected)
    assert built.mask.shape == (2, 3) and (built.mask == 1).all()
    assert (built.row, built.column) == (1, -4)


def test_pictures_from_files(folder: Path) -> None:
    pattern = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    opacity = np.array([[0, 51, 255], [255, 0, 0]], np.uint8)
    Image.fromarray(pattern).save(folder / "t.png")
    Image.fromarray(opacity).save(folder / "m.png")
    spec = PatchSpec(name="a", image="t.png", mask="m.png", at=(0, 0), target=0)
    assert spec.files() == {"image": "t.png", "mask": "m.png"}
    built = spec.relative_to(folder).build(3)
    assert np.allclose(built.pattern * 255, pattern, atol=1e-4)
    assert np.allclose(built.mask * 255, opacity, atol=1e-4)
    assert spec.relative_to(folder).build(1).pattern.shape == (2, 3, 1)


def test_files_that_do_not_serve(folder: Path) -> None:
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(folder / "t.png")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "large.png")
    Image.fromarray(np.full((2, 3), 300, np.uint16)).save(folder / "deep.png")
    (folder / "text.png").write_text("no picture")
    good = PatchSpec(name="a", image=str(folder / "t.png"), at=(0, 0), target=0)
    good.build(3)
    for change, words in (
        ({"image": str(folder / "text.png")}, "no readable picture"),
        ({"image": str(folder / "missing.png")}, "no readable picture"),
        ({"image": str(folder / "deep.png")}, "more than 8 bits"),
        ({"mask": str(folder / "large.png")}, r"the mask is \(3, 3\) and the patch \(2, 3\)"),
    ):
        with pytest.raises(SpecRefused, match=f"trigger 'a': .*{words}"):
            good.model_copy(update=change).build(3)
    with pytest.raises(SpecRefused, match="3 values and the pictures have 1"):
        PatchSpec(name="a", size=(1, 1), color=(1, 2, 3), at=(0, 0), target=0).build(1)
