"""The curve of Fine-Pruning: what a victim still knows, and whether its backdoor still fires, as its dormant channels are pruned.

Liu, Dolan-Gavitt, Garg (RAID 2018, section 4.1, figure 7): accuracy holds while dormant channels go, and the backdoor with it; it falls late,
all at once.  Under the pruning-aware attack it never does before accuracy has gone, and it takes the fine-tuning behind the pruning, which takes
enough images.
Nothing of this can be seen without the trigger, so it is part of a benchmark and not of a purifier.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.comparison import Victim
from pipeline.convert.to_torch import convert
from pipeline.convert.write_back import write_back
from pipeline.purify import arrays, methods
from pipeline.purify.fine_pruning import dormancy, last_convolution, masked
from pipeline.search.examples import Examples

POINTS = 16


@dataclass(frozen=True)
class Point:
    """ACC and ASR in 0..1 on the hold-out images, with so many channels pruned."""

    pruned: int
    acc: float
    asr: float


@dataclass(frozen=True)
class Curve:
    """images: for calibration.  points: from no channel to all but one sixteenth.  stopped: where Fine-Pruning stops; tuned: after it has fine-tuned."""

    victim: str
    images: int
    channels: int
    points: list[Point]
    stopped: Point
    tuned: Point


def pruning_curve(folder: Path, *, images: int, judges: int, seed: int, device: str) -> Curve:
    """Prune a victim's last convolution channel by channel, each point through a file.  images: for calibration, or all that there are beside the judges.

    Raises ValueError where it has no such layer.
    """
    victim = Victim(folder, judges=judges, device=device)
    calibration = victim.drawn(min(images, len(victim.pool)), seed)
    twin = convert(victim.model, victim.reading, victim.facts)[0].to(victim.device)
    layer = last_convolution(twin)
    if layer is None:
        raise ValueError(f"the model of {folder.name} has no last convolution with an activation behind it")
    order = dormancy(twin, layer, Examples.of(twin, calibration).pictures)

    def at(count: int) -> Point:
        masks = layer.mask(twin, order[:count])
        return _point(victim, arrays(masked({name: twin.weights[name].value for name in masks}, masks)), count)

    found = methods()["fine-pruning"](twin, calibration, preset="default", seed=seed, report=lambda step, total, figures: None)
    mask = torch.from_numpy(found.masks[layer.kernel].copy()).movedim(layer.axis, 0).flatten(1)
    gone = int((mask.amax(1) == 0).sum())
    counts = sorted({layer.channels * point // POINTS for point in range(POINTS)})
    return Curve(folder.name, len(calibration), layer.channels, [at(count) for count in counts], at(gone), _point(victim, found.weights, gone))


def _point(victim: Victim, weights: Mapping[str, NDArray[np.float32]], pruned: int) -> Point:
    with tempfile.TemporaryDirectory() as folder:
        files, _ = write_back(victim.model, ["model.onnx"], weights, Path(folder))
        measured = victim.measured(files["model.onnx"])
    return Point(pruned, measured.clean.rate, measured.attacks[0].asr.rate)


def section(curves: Sequence[Curve], plot: str) -> list[str]:
    """Markdown: the plot, and where Fine-Pruning stops on each victim."""
    lines = [
        "## Fine-Pruning: channels pruned against ACC and ASR",
        "",
        f"![Channels of the last convolution that are pruned, against ACC and ASR]({plot})",
        "",
        "Channels of the last convolution go, the most dormant on calibration images first. Dotted: where Fine-Pruning stops; at the right: after it has"
        " fine-tuned.",
        "",
        "| victim | calibration images | submitted ACC / ASR % | pruned alone, where it stops | pruned and fine-tuned |",
        "|---|---:|---:|---:|---:|",
    ]
    for curve in curves:
        stopped = f"{_pair(curve.stopped)} ({curve.stopped.pruned} of {curve.channels} channels)"
        lines.append(f"| {curve.victim} | {curve.images} | {_pair(curve.points[0])} | {stopped} | {_pair(curve.tuned)} |")
    return [*lines, ""]


def _pair(point: Point) -> str:
    return f"{100 * point.acc:.1f} / {100 * point.asr:.1f}"


def drawn(curves: Iterable[Curve]) -> bytes:
    """A PNG: a panel for each victim."""
    from pipeline.report.plots import figure_of

    curves = list(curves)
    with figure_of(height=3.4) as (figure, png):
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for panel, curve in zip(panels, curves, strict=True):
            shares = [point.pruned / curve.channels for point in curve.points]
            for name, marker in (("acc", "o"), ("asr", "s")):
                (line,) = panel.plot(shares, [100 * getattr(point, name) for point in curve.points], marker=marker, markersize=3, label=name.upper())
                panel.plot([1.05], [100 * getattr(curve.tuned, name)], marker=marker, color=line.get_color(), clip_on=False)
            panel.axvline(curve.stopped.pruned / curve.channels, linestyle=":", color="gray")
            panel.set_title(curve.victim, fontsize="small")
            panel.set_xlabel("share of channels pruned")
        panels[0].set_ylabel("%")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return png.getvalue()
