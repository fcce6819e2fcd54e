"""The pictures of a report, as PNG.

Text that comes from a submitted file is drawn as text: never parsed as mathematics, shortened, and limited to what the font has.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from pipeline.findings import printable
from pipeline.report.summary import Row
from pipeline.results import GateSeen, Rate, Step

SUBMITTED, REPAIRED = "#c2603f", "#1f7a74"
INK, FAINT, LINE = "#1c2733", "#5d6b7a", "#dfe4ea"
WIDTH = 9.0  # inches: 1800 pixels, shown at half that
MOST = {"hypotheses": 10, "gates": 4, "operators": 9, "layers": 24, "metrics": 12, "rates": 20}

_STYLE: Any = {
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.labelcolor": FAINT,
    "axes.labelsize": 8.5,
    "axes.edgecolor": LINE,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.facecolor": "white",
    "legend.frameon": False,
}
_ONE_AT_A_TIME = threading.Lock()  # matplotlib's style is global


@contextmanager
def figure_of(*, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure of WIDTH x height inches in our style; its PNG is in the buffer on leaving."""
    png = io.BytesIO()
    with _ONE_AT_A_TIME, mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=200, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05))
        FigureCanvasAgg(figure)
        yield figure, png
        figure.savefig(png, format="png", metadata={"Software": None})


def _grid(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    rows = math.ceil(count / columns)
    axes: list[Axes] = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return axes[:count]


@cache
def _drawable() -> frozenset[int]:
    return frozenset(FT2Font(findfont("DejaVu Sans")).get_charmap())


def _label(text: str, length: int) -> str:
    """`text` cut in its middle to `length` characters, all of which the font has."""
    shown = "".join(character if ord(character) in _drawable() else "\N{REPLACEMENT CHARACTER}" for character in printable(text))
    keep = length - 1
    return shown if len(shown) <= length else f"{shown[: keep - keep // 2]}…{shown[len(shown) - keep // 2 :]}"


def _two_lines(text: str, length: int) -> str:
    """`text` on one line or two, of `length` characters each: the first ends between words where it can, the second is cut in its middle."""
    shown = _label(text, 4 * length)
    if len(shown) <= length:
        return shown
    first = shown[: shown.rfind(" ", 1, length + 1)] if " " in shown[1 : length + 1] else shown[:length]
    return f"{first}\n{_label(shown[len(first) :].strip(), length)}"


def _below(figure: Figure, text: str, *, shown: int, count: int, of: str) -> None:
    """Write `text` under the figure, and how many of how many are shown when some are not."""
    cut = f"{shown:,} of {count:,} {of}" if shown < count else ""
    if text or cut:
        figure.supxlabel(f"{text} ({cut})" if text and cut else text or cut, fontsize=8.5, color=FAINT)


def perturbation(values: NDArray[np.float32], *, titles: Sequence[str] = ()) -> bytes:
    """What the search ended with: values (K, H, W, C) float32, C of 1 or 3, a perturbation of pictures in 0..1.

    Mid-grey is no change; each is stretched to its own largest magnitude, which is written under it.  titles: one for each.
    """
    if values.ndim != 4 or values.shape[3] not in (1, 3) or 0 in values.shape:
        raise ValueError(f"a perturbation is (K, H, W, C) with 1 or 3 channels; it is {values.shape}")
    shown = values[: MOST["hypotheses"]]
    columns = max(3, min(5, len(shown)))
    cell = WIDTH / columns * min(2.0, values.shape[1] / values.shape[2]) + 0.57
    with figure_of(height=math.ceil(len(shown) / columns) * cell + (0.3 if len(shown) < len(values) else 0)) as (figure, png):
        for index, axes in enumerate(_grid(figure, len(shown), columns)):
            finite = np.nan_to_num(shown[index].astype(np.float64), posinf=0, neginf=0)
            largest = float(np.abs(finite).max())
            picture = 0.5 + finite / (2 * largest or 1)
            axes.imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[], xlabel=f"±{largest:.2g}")
            axes.spines[:].set(visible=True, color=LINE)
            axes.set_title(_two_lines(titles[index] if index < len(titles) else f"hypothesis {index + 1}", 96 // columns), fontweight="bold")
        _below(figure, "", shown=len(shown), count=len(values), of="hypotheses")
    return png.getvalue()


def suspects(sizes: Mapping[str, Mapping[str, float]], suspected: Mapping[str, Sequence[str]], units: Mapping[str, str]) -> bytes:
    """How large each change that was searched for is: kind -> what it aims at -> size; suspected: kind -> aims.  A strip for each kind, on its own axis."""
    kinds = [kind for kind, changes in sizes.items() if changes]
    if not kinds:
        raise ValueError("there is no size to draw")
    with figure_of(height=0.3 + 0.95 * len(kinds)) as (figure, png):
        for kind, axes in zip(kinds, _grid(figure, len(kinds), 1), strict=True):
            changes = {aim: size for aim, size in sizes[kind].items() if math.isfinite(size) and size > 0}
            marked = {aim: size for aim, size in changes.items() if aim in suspected.get(kind, ())}
            median = float(np.median(list(changes.values()) or [1.0]))
            axes.axvline(median, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            axes.scatter(list(changes.values()), [0] * len(changes), s=42, facecolor="none", edgecolor=FAINT)
            axes.scatter(list(marked.values()), [0] * len(marked), s=42, color=SUBMITTED)
            for aim, size in sorted(changes.items(), key=lambda entry: entry[1])[:1]:
                axes.annotate(_label(aim, 40), (size, 0), (0, 9), textcoords="offset points", fontsize=7.5, color=INK, ha="left")
            axes.set(yticks=[], ylim=(-0.6, 1.0), xlim=(0, 1.06 * max([median, *changes.values()])))
            axes.set_title(_label(f"{kind}, {units.get(kind, '')}", 60), fontweight="bold")
            axes.spines["left"].set_visible(False)
            axes.grid(visible=False)
        _below(figure, "size of the smallest change; the dashed line is the median", shown=len(kinds), count=len(kinds), of="kinds")
    return png.getvalue()


def gates(seen: Sequence[GateSeen]) -> bytes:
    """Where each gate in the graph comes from and what it joins: the way of the gate above, and below it what it joins, past the learned layers."""
    shown = [gate for gate in seen if gate.path][: MOST["gates"]]
    if not shown:
        raise ValueError("there is no path to draw")
    with figure_of(height=1.5 * len(shown)) as (figure, png):
        for gate, axes in zip(shown, _grid(figure, len(shown), 1), strict=True):
            half = MOST["operators"] // 2
            path = gate.path if len(gate.path) <= MOST["operators"] else [*gate.path[:half], "…", *gate.path[-half:]]
            places = np.linspace(0.04, 0.9, len(path) + 1)
            joins = float(places[-1])
            axes.plot([0.04, 0.04, joins, joins], [0.58, 0.2, 0.2, 0.5], color=FAINT, linewidth=1.2)
            axes.annotate("", (joins, 0.6), (joins, 0.48), arrowprops={"arrowstyle": "->", "color": FAINT})
            trunk = f"what everything else crosses: {gate.other:,.0f} learned numbers"
            axes.text((0.04 + joins) / 2, 0.2, trunk, ha="center", va="center", fontsize=8, color=FAINT, bbox={"facecolor": "white", "edgecolor": "none"})
            box: Any = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": SUBMITTED}
            names = ["image", *(_label(operator, 18) for operator in path)]
            texts = [axes.text(place, 0.72, name, ha="center", va="center", fontsize=7.5, bbox=box) for place, name in zip(places, names, strict=True)]
            texts.append(axes.text(1.0, 0.72, "scores", ha="center", va="center", fontsize=7.5, bbox=box))
            for one, other in pairwise(texts):
                arrow: Any = {
                    "arrowstyle": "->",
                    "color": SUBMITTED,
                    "patchA": one.get_bbox_patch(),
                    "patchB": other.get_bbox_patch(),
                    "shrinkA": 1,
                    "shrinkB": 1,
                }
                axes.annotate("", other.get_position(), one.get_position(), arrowprops=arrow, annotation_clip=False)
            axes.set_title(_label(f"{gate.value}: joins after {gate.crossed:,.0f} learned numbers", 90), fontweight="bold")
            axes.set(xlim=(0, 1.04), ylim=(0, 1), xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(visible=False)
        _below(figure, "", shown=len(shown), count=len(seen), of="gates")
    return png.getvalue()


def mask_histogram(masks: Mapping[str, NDArray[Any]]) -> bytes:
    """How much of each layer is masked: initializer name -> mask of any shape in 0..1.  0 is gone, 1 is untouched."""
    known = {name: _in_unit(mask) for name, mask in masks.items()}
    known = {name: mask for name, mask in known.items() if mask.size}
    if not known:
        raise ValueError("there is no mask to draw")
    strongest = sorted(known, key=lambda name: float(known[name].mean()))[: MOST["layers"]]
    names = [name for name in known if name in set(strongest)]
    columns = min(4, max(2, len(names)))
    bins = np.linspace(0, 1, 26)
    with figure_of(height=0.55 + 1.55 * math.ceil(len(names) / columns)) as (figure, png):
        for name, axes in zip(names, _grid(figure, len(names), columns, sharex=True, sharey=True), strict=True):
            mask = known[name]
            axes.hist(mask, bins=bins.tolist(), color=REPAIRED, log=True, rwidth=0.9)
            axes.set_title(_label(name, 92 // columns), fontweight="bold", pad=15)
            figures = f"mean {mask.mean():.2f}, {100 * (mask < 0.1).mean():.1f} % below 0.1"
            axes.text(0, 1.04, figures, transform=axes.transAxes, fontsize=7.5, color=FAINT)
            axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
            axes.set_ylim(bottom=0.5)
            _plain_decades(axes)
            axes.label_outer()
        figure.supylabel("weights", fontsize=8.5, color=FAINT)
        _below(figure, "mask: 0 is gone, 1 is untouched", shown=len(names), count=len(masks), of="layers, those masked most")
    return png.getvalue()


def _plain_decades(axes: Axes) -> None:
    """A logarithmic axis labelled without mathtext, which is off."""
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.tick_params(which="minor", left=False, labelleft=False)


def _in_unit(mask: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(mask, np.float64).ravel()
    return np.clip(values[np.isfinite(values)], 0, 1)


def history(steps: Sequence[Step]) -> bytes:
    """How the purifier went: one small picture a metric, against its steps."""
    names = list(dict.fromkeys(name for step in steps for name in step.metrics))
    if not names:
        raise ValueError("the history has no metric to draw")
    shown = names[: MOST["metrics"]]
    columns = min(3, max(2, len(shown)))
    with figure_of(height=0.35 + 1.7 * math.ceil(len(shown) / columns)) as (figure, png):
        for name, axes in zip(shown, _grid(figure, len(shown), columns), strict=True):
            points = [(step.step, step.metrics[name]) for step in steps if math.isfinite(step.metrics.get(name, math.nan))]
            x, y = [step for step, _ in points], [value for _, value in points]
            axes.plot(x, y, color=REPAIRED, linewidth=1.2, marker="o" if len(points) < 2 else "", markersize=4)
            if y and min(y) > 0 and max(y) > 1000 * min(y):
                axes.set_yscale("log")
                _plain_decades(axes)
            else:
                axes.yaxis.set_major_locator(MaxNLocator(4))
                axes.margins(x=0.02, y=0.12)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            axes.set_title(_label(name.replace("_", " "), 78 // columns), fontweight="bold", pad=7)
            axes.set_title(f"last {y[-1]:.3g}" if y else "not finite", loc="right", color=FAINT, fontsize=8, pad=7)
        _below(figure, "step", shown=len(shown), count=len(names), of="metrics")
    return png.getvalue()


def before_after(rows: Sequence[Row], *, max_asr: float | None = None) -> bytes:
    """ACC and each ASR before and after, with 95 % Wilson intervals; marked what an ASR is without the trigger.  max_asr: the policy's line, in 0..1."""
    bars = [row for row in rows if row.metric != "RA"]
    if not bars:
        raise ValueError("there is no rate to draw")
    shown = bars[: MOST["rates"]]
    sides = [("submitted", SUBMITTED, [row.before for row in shown]), ("repaired", REPAIRED, [row.after for row in shown])]
    sides = [side for side in sides if any(side[2])]
    thick = 0.36 if len(sides) == 2 else 0.5
    with figure_of(height=0.9 + (0.56 if len(sides) == 2 else 0.4) * len(shown)) as (figure, png):
        axes = figure.subplots()
        legend: list[Any] = []
        alone: list[tuple[float, float]] = []
        for side, (name, colour, rates) in enumerate(sides):
            places = [row + (side - (len(sides) - 1) / 2) * thick for row in range(len(shown))]
            drawn = [(place, rate) for place, rate in zip(places, rates, strict=True) if rate]
            legend.append(axes.barh([place for place, _ in drawn], [100 * rate.rate for _, rate in drawn], height=thick * 0.9, color=colour, label=name))
            for place, rate in drawn:
                _interval(axes, place, rate)
            alone += [(100 * only.rate, place) for place, row in zip(places, shown, strict=True) if (only := row.without[side])]
        if alone:
            legend += axes.plot(
                *zip(*alone, strict=True), color=INK, linestyle="", marker="D", markersize=4, markerfacecolor="white", label="without the trigger"
            )
        if max_asr is not None and len(shown) > 1:
            allowed = f"highest ASR allowed, {100 * max_asr:g} %"
            legend += axes.plot([100 * max_asr] * 2, [0.5, len(shown) - 0.5], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=allowed)
        names = ["accuracy" if row.metric == "ACC" else f"ASR, {_label(row.name, 26)}" for row in shown]
        axes.set_yticks(range(len(shown)), names, color=INK, fontsize=9)
        axes.set(xlim=(0, 110), ylim=(len(shown) - 0.45, -0.55), xticks=range(0, 101, 20))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
        figure.legend(handles=legend, loc="outside upper left", ncols=4, fontsize=8.5, handlelength=1.2)
        _below(figure, "", shown=len(shown), count=len(bars), of="rates")
    return png.getvalue()


def _interval(axes: Axes, place: float, rate: Rate) -> None:
    axes.errorbar(
        100 * rate.rate, place, xerr=[[100 * (rate.rate - rate.low)], [100 * (rate.high - rate.rate)]], color=INK, linewidth=1, capsize=2.5, capthick=1
    )
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.annotate(f"{100 * rate.rate:.1f}", (100 * rate.high, place), (5, 0), textcoords="offset points", va="center", fontsize=8, color=INK, bbox=paper)
