"""The page of `onnx-audit bench purify`: tables and plots over the rows of `models/comparison.py`.

Victims are compared with those of their own kind: data set, network and poison rate; and methods on what all of them were run on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, isnan, nan
from operator import attrgetter
from pathlib import Path

from models.comparison import ONE_A_CLASS, TWIN, Row, name_of
from models.rows import to_csv
from pipeline.artifact import atomic_write

FLOOR = (
    " Where it stands, *clean twin* is what clean networks of the same kind make of the same triggered images, in the mean: what is covered up, no network"
    " sees, so this and not 0 is what a perfect repair would leave."
)
FIGURES = ("asr", "ra", "der", "altered", "relearnt_5", "relearnt_50", "seconds")
NAMED = 6  # methods in a panel, up to which each point has its name beside it


def _percent(share: float) -> str:
    return "–" if isnan(share) else f"{100 * share:.1f}"


def group_of(victim: str) -> str:
    """What a victim is compared with: data set, network and poison rate, as its card says; "" where it has none."""
    try:
        recipe = json.loads((Path(victim) / "card.json").read_text())["recipe"]
        return f"{recipe['data']}, {recipe['network']}, {100 * recipe['rate']:g} % poisoned"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def sections(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of each group of victims with each number of images."""
    for group in sorted({group_of(row.victim) for row in rows}):
        for images in sorted({row.images for row in rows if group_of(row.victim) == group and row.method != TWIN}):
            size = "one image a class" if images == ONE_A_CLASS else f"{images} images"
            yield f"{group}: {size}" if group else size.capitalize(), [row for row in rows if group_of(row.victim) == group and row.images == images]


def comparable(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Method -> its rows, on the victims that every method was run on; nothing where there is no such victim."""
    names = sorted({name_of(row) for row in rows})
    on = [{row.victim for row in rows if name_of(row) == name} for name in names]
    return {name: some for name in names if (some := [row for row in rows if name_of(row) == name and all(row.victim in ran for ran in on)])}


def mean(rows: Sequence[Row], figure: Callable[[Row], float]) -> float:
    """The mean over victims of the mean over seeds, of the runs that have the figure; NaN where most victims have no such run."""
    known = [row for row in rows if not isnan(figure(row))]
    victims = {row.victim for row in known}
    if not known or 2 * len(victims) < len({row.victim for row in rows}):
        return nan
    return statistics.mean(statistics.mean(figure(row) for row in known if row.victim == victim) for victim in victims)


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown: for each group of victims and number of images the means of each method over the victims that all were run on, best DER first."""
    lines = []
    for title, some in sections(rows):
        methods = comparable(some)
        victims = {row.victim for of_method in methods.values() for row in of_method}
        lines += [
            f"### {title}",
            "",
            f"Means over {len(victims)} victim{'s' * (len(victims) != 1)}; on {', '.join(sorted({row.device for row in some}))}.",
            "",
            "| method | accuracy lost, points | ASR % | worst ASR % | RA % | DER | altered % | re-learnt from 5, 50 % | seconds | runs |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, of_method in sorted(methods.items(), key=lambda entry: -mean(entry[1], lambda row: row.der)):
            lost = mean(of_method, lambda row: 100 * (row.acc_before - row.acc))
            means = {figure: mean(of_method, attrgetter(figure)) for figure in FIGURES}
            failed = sum(bool(row.error) for row in of_method)
            runs = f"{len(of_method)}" + (f", {failed} failed" if failed else "")
            lines.append(
                f"| {name} | {lost:.1f} | {100 * means['asr']:.1f} | {100 * max(row.asr for row in of_method):.1f} | {100 * means['ra']:.1f}"
                f" | {means['der']:.3f} | {_percent(means['altered'])} | {_percent(means['relearnt_5'])}, {_percent(means['relearnt_50'])}"
                f" | {means['seconds']:.0f} | {runs} |"
            )
        lines.append("")
    return lines


def by_victim(rows: Sequence[Row]) -> list[str]:
    """Markdown: for each group of victims and number of images, ACC / ASR of each method on each victim."""
    lines = []
    for title, some in sections(rows):
        names = sorted({name_of(row) for row in some})
        heads = ["victim", "submitted", *([TWIN] if any(twins(rows, row.victim) for row in some) else []), *names]
        lines += [f"### {title}: ACC / ASR % by victim", "", "| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        for victim in sorted({row.victim for row in some}):
            of_victim = [row for row in some if row.victim == victim]
            cells = [_pair([row for row in of_victim if name_of(row) == name]) for name in names]
            submitted = f"{100 * of_victim[0].acc_before:.1f} / {100 * of_victim[0].asr_before:.1f}"
            lines.append("| " + " | ".join([Path(victim).name, submitted, *([_pair(twins(rows, victim))] if TWIN in heads else []), *cells]) + " |")
        lines.append("")
    return lines


def twins(rows: Sequence[Row], victim: str) -> list[Row]:
    """What clean networks do with a victim's trigger."""
    return [row for row in rows if row.method == TWIN and row.victim == victim]


def _pair(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    return f"{100 * statistics.mean(row.acc for row in rows):.1f} / {100 * statistics.mean(row.asr for row in rows):.1f}"


def write_page(path: Path, rows: Sequence[Row], *, more: Sequence[str] = (), files: Mapping[str, bytes] | None = None) -> None:
    """Tables and plots, as Markdown; the plots and the rows lie beside it, in a folder of its name.  more: further lines, files: that they show."""
    from pipeline.provenance import packages

    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[str, bytes] = {"rows.csv": to_csv(Row, (replace(row, victim=Path(row.victim).name) for row in rows)), **(files or {})}
    plots = {}
    if contests(rows):  # one point says nothing that the table does not
        plots["accuracy lost against ASR"] = "accuracy-against-asr.png"
        shown["accuracy-against-asr.png"] = accuracy_against_asr(rows)
    if by_size(rows):
        plots["DER by number of images"] = "der-by-images.png"
        shown["der-by-images.png"] = der_by_images(rows)
    for name, content in shown.items():
        atomic_write(folder / name, content)
    versions = ", ".join(f"{name} {version}" for name, version in packages().items() if name in ("torch", "onnxruntime-gpu", "onnx2torch"))
    seeds, judges = (", ".join(map(str, sorted(numbers))) for numbers in ({row.seed for row in rows if row.method != TWIN}, {row.judges for row in rows}))
    lines = [
        "# Benchmark of purifiers",
        "",
        "Made by `onnx-audit bench purify`; do not edit by hand.",
        "",
        f"{len({row.victim for row in rows})} victims; {judges} hold-out images of each judge every run, calibration images are drawn from the others, the same"
        f" for every method; seeds {seeds} draw the images and seed the method, and a method with fewer runs was given the first seeds alone."
        " Each file was imported, purified, written back and measured with onnxruntime."
        " ASR leaves out images of the target class; DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2. A failed run counts as no repair."
        f"{FLOOR if any(row.method == TWIN for row in rows) else ''}"
        f" Every run is a line of [rows.csv]({folder.name}/rows.csv).",
        "",
        *(line for title, name in plots.items() for line in (f"![{title}]({folder.name}/{name})", "")),
        *table(rows),
        *by_victim(rows),
        *more,
        f"Written with {versions}. Machines are shared: read the seconds as ratios.",
        "",
    ]
    atomic_write(path, "\n".join(lines).encode())


def contests(rows: Sequence[Row]) -> list[tuple[str, dict[str, list[Row]]]]:
    """Title and methods of each group of victims and number of images where several methods were run on the same victims."""
    return [(title, methods) for title, some in sections(rows) if len(methods := comparable(some)) > 1]


def accuracy_against_asr(rows: Sequence[Row]) -> bytes:
    """A PNG: a panel for each group of victims and number of images, a point for each method: points of accuracy lost against ASR, means as in the table."""
    from pipeline.report.plots import figure_of

    panels_of = contests(rows)
    names = sorted({name_of(row) for row in rows})
    height = ceil(len(panels_of) / 2)
    with figure_of(height=1 + 2.6 * height) as (figure, png):
        panels = figure.subplots(height, min(2, len(panels_of)), sharey=True, squeeze=False).flatten()
        colours = {name: f"C{place % 10}" for place, name in enumerate(names)}
        for panel, (title, methods) in zip(panels, panels_of, strict=False):
            for name, some in methods.items():
                point = (mean(some, lambda row: 100 * (row.acc_before - row.acc)), mean(some, lambda row: 100 * row.asr))
                panel.scatter(*point, color=colours[name], marker="os^v"[names.index(name) // 10 % 4], s=28, label=name)
                if len(methods) <= NAMED:
                    panel.annotate(name, point, xytext=(3, 3), textcoords="offset points", fontsize="xx-small")
            if len(methods) > NAMED:  # names beside so many points would lie on one another
                panel.legend(fontsize="xx-small", ncols=2)
            panel.set_xlim(left=min(0.0, panel.get_xlim()[0]))
            panel.set_title(title, fontsize="small")
            panel.set_xlabel("points of accuracy lost")
            panel.set_ylabel("ASR, %")
        for panel in panels[len(panels_of) :]:
            panel.set_visible(False)
    return png.getvalue()


def by_size(rows: Sequence[Row]) -> dict[str, dict[tuple[str, int], list[Row]]]:
    """Group -> (method, images) -> rows, of methods with several numbers of images, on the victims that all of these ran on with all of them."""
    found = {}
    for group in sorted({group_of(row.victim) for row in rows}):
        sizes: dict[str, set[int]] = {}
        for row in rows:
            if group_of(row.victim) == group and row.method != TWIN:
                sizes.setdefault(name_of(row), set()).add(row.images)
        points = {
            (name, images): [row for row in rows if group_of(row.victim) == group and name_of(row) == name and row.images == images]
            for name, of_method in sorted(sizes.items())
            if len(of_method) > 1
            for images in sorted(of_method)
        }
        on = set.intersection(*({row.victim for row in some} for some in points.values())) if points else set()
        if on:
            found[group] = {point: [row for row in some if row.victim in on] for point, some in points.items()}
    return found


def der_by_images(rows: Sequence[Row]) -> bytes:
    """A PNG: DER by number of images, a panel for each group of victims, a line for each method, all over the same victims."""
    from pipeline.report.plots import figure_of

    groups = by_size(rows)
    names = sorted({name_of(row) for row in rows})
    with figure_of(height=1 + 2.6 * len(groups)) as (figure, png):
        panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
        for panel, (group, points) in zip(panels, groups.items(), strict=True):
            sizes = sorted({images for _, images in points})
            for name in sorted({name for name, _ in points}):
                line = [(sizes.index(images), mean(some, lambda row: row.der)) for (of, images), some in points.items() if of == name]
                place = names.index(name)
                panel.plot(*zip(*line, strict=True), marker="os^v"[place // 10 % 4], color=f"C{place % 10}", label=name)
            panel.set_xticks(range(len(sizes)), ["one a class" if images == ONE_A_CLASS else str(images) for images in sizes])
            victims = len({row.victim for some in points.values() for row in some})
            panel.set_title(", ".join([*([group] if group else []), f"{victims} victim{'s' * (victims != 1)}"]), fontsize="small")
            panel.set_xlabel("calibration images")
            panel.set_ylabel("DER")
            panel.legend(fontsize="xx-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return png.getvalue()
