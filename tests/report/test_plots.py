"""The pictures: right for odd data, indifferent to hostile names."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from conftest import BIDI, LONG, SCRIPT
from numpy.typing import NDArray
from PIL import Image

from pipeline.report import plots
from pipeline.report.model import AuditReport
from pipeline.report.summary import Row, summary_rows
from pipeline.results import GateSeen, Rate, Step

pytestmark = pytest.mark.filterwarnings("error")
HOSTILE = [r"$\frac{$", r"$a_{b}$", "中文", "", SCRIPT, BIDI, LONG, "100%", "{x}"]


def pixels(png: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.width == 1800
    return np.asarray(image.convert("RGB"))


def colour(code: str) -> tuple[int, ...]:
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


def area(picture: NDArray[np.uint8], code: str) -> int:
    return int((picture == colour(code)).all(-1).sum())


def test_no_change_is_mid_grey_and_the_largest_is_an_end_of_the_scale() -> None:
    values = np.zeros((2, 8, 8, 1), np.float32)
    values[1, 0, 0], values[1, 7, 7] = 0.02, -0.02
    picture = pixels(plots.perturbation(values, titles=["a", "b"]))
    grey, total = (np.abs(picture.astype(int) - 127).max(-1) <= 1).sum(), 2 * 64
    cell = grey / (total - 2)
    assert grey > 0.2 * picture.shape[0] * picture.shape[1]
    assert (picture.max(-1) == 0).sum() == pytest.approx(cell, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (14, 8, 8, 1), (3, 4, 16, 3), (2, 1, 1, 1)])
def test_any_number_and_shape_of_perturbations(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[0, 0, 0, 0] = np.nan
    pixels(plots.perturbation(values, titles=HOSTILE))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("patch to class 2", ["patch to class 2"]),
        ("patch from class 7 to class 2", ["patch from class 7", "to class 2"]),
        ("a patch that leads from classes to others", ["a patch that leads", "from clas…to others"]),
        ("x" * 30, ["x" * 19, "x" * 11]),
        ("", [""]),
    ],
)
def test_a_title_takes_two_lines_before_it_is_cut(text: str, lines: list[str]) -> None:
    assert plots._two_lines(text, 19) == "\n".join(lines)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 2), (0, 8, 8, 3)])
def test_what_is_no_perturbation_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="K, H, W, C"):
        plots.perturbation(np.zeros(shape, np.float32))


def test_masks_of_any_kind() -> None:
    kinds: list[NDArray[np.float64]] = [np.ones((2, 3)), np.zeros(5), np.array([np.nan, 0.5]), np.array([-1.0, 2.0]), np.array(0.3)]
    masks = {name: kinds[i % len(kinds)] for i, name in enumerate(HOSTILE)}
    pixels(plots.mask_histogram(masks | {"empty": np.zeros(0)}))


def test_of_many_layers_those_masked_most_are_drawn() -> None:
    rest = {f"layer{i}": np.ones(10) for i in range(24)}
    masked = {"layer99": np.full(10, 0.5)}
    assert plots.mask_histogram(rest | masked) != plots.mask_histogram(rest | {"layer99": np.ones(10)})
    assert pixels(plots.mask_histogram({f"layer{i}": np.ones(10) for i in range(60)})).shape == pixels(plots.mask_histogram(rest)).shape


def test_history_of_any_length_and_names() -> None:
    pixels(plots.history([Step(step=0, metrics={"loss": 0.4})]))
    pixels(plots.history([Step(step=i, metrics=dict.fromkeys(HOSTILE, float(i))) for i in range(5)]))
    pixels(plots.history([Step(step=i, metrics={"loss": 10.0**i, "norm": float("nan"), "late": -1.0} if i else {"loss": 1.0}) for i in range(5)]))
    pixels(plots.history([Step(step=i, metrics={f"m{n}": 0.0 for n in range(30)}) for i in range(2)]))


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="to draw"):
        plots.mask_histogram({"empty": np.zeros(0)})
    with pytest.raises(ValueError, match="to draw"):
        plots.history([])
    with pytest.raises(ValueError, match="to draw"):
        plots.before_after([])


def test_bars_are_as_long_as_the_rates() -> None:
    row = Row("clean images", "ACC", "clean", None, Rate.of(900, 1000), Rate.of(300, 1000))
    picture = pixels(plots.before_after([row]))
    assert area(picture, plots.SUBMITTED) == pytest.approx(3 * area(picture, plots.REPAIRED), rel=0.1)


def test_what_goes_to_the_target_without_the_trigger_is_marked() -> None:
    row = Row("t", "ASR", "known", 1, Rate.of(900, 1000), Rate.of(300, 1000))
    without = replace(row, without=(Rate.of(100, 1000), None))
    assert plots.before_after([without]) != plots.before_after([row])


def test_bars_without_a_repair_and_with_hostile_names(full: AuditReport) -> None:
    rows = [Row(row.name, row.metric, row.kind, row.target, row.before, None) for row in summary_rows(full)]
    rows += [Row(name, "ASR", "known", 1, Rate.of(1, 3), None) for name in HOSTILE * 4]
    picture = pixels(plots.before_after(rows, max_asr=0.1))
    assert area(picture, plots.SUBMITTED) > 0
    assert area(picture, plots.REPAIRED) == 0


def test_a_picture_is_the_same_each_time_and_leaves_no_style_behind(full: AuditReport) -> None:
    style = dict(mpl.rcParams)
    rows = summary_rows(full)
    assert plots.before_after(rows, max_asr=0.1) == plots.before_after(rows, max_asr=0.1)
    assert dict(mpl.rcParams) == style


def gate(path: list[str], value: str = "gate") -> GateSeen:
    return GateSeen(value=value, steady=True, kept=Rate.of(9, 9), turned=Rate.of(9, 9), target=2, path=path, crossed=0, other=591_562)


def test_each_gate_has_its_way_and_what_it_joins() -> None:
    one, two = (pixels(plots.gates([gate(["Slice", "Greater", "Where"])] * count)) for count in (1, 2))
    assert two.shape[0] == 2 * one.shape[0]
    assert area(two, plots.SUBMITTED) == pytest.approx(2 * area(one, plots.SUBMITTED), rel=0.1) and area(one, plots.SUBMITTED) > 500
    assert area(one, plots.FAINT) > 500
    pixels(plots.gates([gate(HOSTILE * 4, name) for name in HOSTILE]))
    with pytest.raises(ValueError, match="no path"):
        plots.gates([gate([])])


def test_what_is_suspected_is_filled() -> None:
    sizes = {"patch": {f"to class {row}": 30.0 + row for row in range(10)} | {"to class 3": 4.0}, "warp": {"to class 0": 1.0}}
    none = pixels(plots.suspects(sizes, {}, {"patch": "px"}))
    some = pixels(plots.suspects(sizes, {"patch": ["to class 3"]}, {"patch": "px"}))
    assert area(none, plots.SUBMITTED) == 0 and area(some, plots.SUBMITTED) > 200
    dots = (some == colour(plots.SUBMITTED)).all(-1)
    assert np.nonzero(dots)[1].mean() < 0.25 * some.shape[1], "far to the left of the others"
    pixels(plots.suspects({"patch": dict.fromkeys(HOSTILE, 1.0) | {"a": float("nan"), "b": 0.0}, "warp": {}}, {}, {}))
    with pytest.raises(ValueError, match="no size"):
        plots.suspects({"patch": {}}, {}, {})
