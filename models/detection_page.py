"""The page of `onnx-audit bench detect`: how well clean and backdoored models are told apart, over the rows of `models/detection.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.comparison import ONE_A_CLASS
from models.detection import Row
from models.rows import to_csv
from pipeline.artifact import atomic_write
from pipeline.config import Policy
from pipeline.detect.bank import KINDS, Scale, alone, nearest, references
from pipeline.results import Rate

NEURAL_CLEANSE = 2.0  # its threshold (Wang et al., S&P 2019, section 5.2)


def scale_of(images: int) -> Scale:
    """The scale that so many images are held against; 1 is one a class."""
    return Scale.of(nearest(references(), images))


def score_of(row: Row) -> float:
    """P(backdoored), as an audit says it; 0 where the search failed."""
    return scale_of(row.images).score(row.standings)


def spoke(row: Row) -> str:
    """The kind of change that stands out most; "" where there is none."""
    scale = scale_of(row.images)
    standings = row.standings
    return max(standings, key=lambda kind: scale.deviation(kind, standings[kind]), default="")


def right(row: Row) -> bool:
    """Whether what stands out most does what the trigger does."""
    return bool(kind := spoke(row)) and row.aims.split(";")[KINDS.index(kind)] == row.truth


def area(scores: Sequence[float], backdoored: Sequence[bool]) -> float:
    """ROC AUC: the share of pairs of a backdoored and a clean model in which the backdoored one scores higher, ties counted half (Mann & Whitney)."""
    high = np.array([score for score, is_one in zip(scores, backdoored, strict=True) if is_one])
    low = np.array([score for score, is_one in zip(scores, backdoored, strict=True) if not is_one])
    return float((np.sign(high[:, None] - low[None]) + 1).mean() / 2) if len(high) and len(low) else float("nan")


def _size(images: int) -> str:
    return "one image a class" if images == ONE_A_CLASS else f"{images} images"


def _rate(rate: Rate) -> str:
    return f"{rate.hits} of {rate.total}"


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown: for each number of images how well the score and Neural Cleanse's index tell backdoored models from clean ones."""
    threshold = Policy().max_suspicion
    lines = [
        f"| images | judged by | ROC AUC | false alarms at {threshold:g} or 2 | backdoored models found | right aim first | seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for images in sorted({row.images for row in rows}):
        some = [row for row in rows if row.images == images]
        truth = [bool(row.truth) for row in some]
        seconds = f"{np.mean([row.seconds for row in some]):.0f}"
        for name, values, least in (("the score", [score_of(row) for row in some], threshold), ("Neural Cleanse", [row.index for row in some], NEURAL_CLEANSE)):
            said = [value >= least for value in values]
            false = Rate.of(sum(one for one, is_one in zip(said, truth, strict=True) if not is_one), max(1, truth.count(False)))
            found = Rate.of(sum(one for one, is_one in zip(said, truth, strict=True) if is_one), max(1, truth.count(True)))
            first = _rate(Rate.of(sum(right(row) for row in some if row.truth), max(1, truth.count(True)))) if name == "the score" else "–"
            lines.append(f"| {_size(images)} | {name} | {area(values, truth):.3f} | {_rate(false)} | {_rate(found)} | {first} | {seconds} |")
    return [*lines, ""]


def by_model(rows: Sequence[Row]) -> list[str]:
    """Markdown: each model, and what spoke."""
    lines = []
    for images in sorted({row.images for row in rows}):
        lines += [
            f"### {_size(images)}: model by model",
            "",
            "| model | score | what stands out most | what the trigger does | " + " | ".join(KINDS) + " | index |",
        ]
        lines.append("|---|---:|---|---|" + "---:|" * (len(KINDS) + 1))
        for row in sorted((row for row in rows if row.images == images), key=lambda row: -score_of(row)):
            kind = spoke(row)
            cells = [f"{one.outlier:.1f}, {100 * one.share:.2g}" if (one := row.standings.get(kind)) else "–" for kind in KINDS]
            aim = row.error or f"{kind}, {row.aims.split(';')[KINDS.index(kind)]}"
            lines.append(f"| {row.model} | {score_of(row):.2f} | {aim} | {row.truth or 'clean'} | " + " | ".join(cells) + f" | {row.index:.2f} |")
        lines.append("")
    return lines


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """Tables and a plot, as Markdown; the plot and the rows lie beside it, in a folder of its name."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "rows.csv", to_csv(Row, rows))
    atomic_write(folder / "roc.png", roc(rows))
    threshold = Policy().max_suspicion
    backdoored, networks = {row.model for row in rows if row.truth}, {(row.data, row.network) for row in rows}
    lines = [
        "# Benchmark of the search for unknown triggers",
        "",
        "Made by `onnx-audit bench detect`; do not edit by hand.",
        "",
        f"{len(backdoored)} backdoored models of {len({row.attack for row in rows if row.truth})} attacks and {len({row.model for row in rows} - backdoored)}"
        f" clean ones, {len(networks)} kinds of network and data; none of them is in the bank that scores are held against. *Found* and *false alarm* are at"
        f" the policy's threshold, {threshold:g}; Neural Cleanse's rule, an index of its patches above 2, stands beside it, over the same patches. *Right aim"
        f" first*: what stands out most does what the trigger does. Every search is a line of [rows.csv]({folder.name}/rows.csv).",
        "",
        f"![ROC curves]({folder.name}/roc.png)",
        "",
        *table(rows),
        "## The bank",
        "",
        *bank_table(threshold),
        *by_model(rows),
    ]
    atomic_write(path, "\n".join(lines).encode())


def bank_table(threshold: float) -> list[str]:
    """Markdown: what the bank says of itself, each of its models judged without itself."""
    lines = ["| images | clean models | false alarms | backdoored models | found |", "|---|---:|---:|---:|---:|"]
    for images in sorted({one.images for one in references()}):
        bank = nearest(references(), images)
        said = [(score >= threshold, one.backdoored) for score, one in zip(alone(bank), bank, strict=True)]
        clean, backdoored = ([hit for hit, is_one in said if is_one is which] for which in (False, True))
        lines.append(f"| {_size(images)} | {len(clean)} | {sum(clean)} | {len(backdoored)} | {sum(backdoored)} |")
    return [*lines, ""]


def roc(rows: Sequence[Row]) -> bytes:
    """A PNG: a panel for each number of images, ROC curves of the score and of Neural Cleanse's index."""
    from pipeline.report.plots import figure_of

    sizes = sorted({row.images for row in rows})
    with figure_of(height=3.6) as (figure, png):
        for panel, images in zip(figure.subplots(1, max(2, len(sizes)), squeeze=False)[0], sizes, strict=False):
            some = [row for row in rows if row.images == images]
            truth = np.array([bool(row.truth) for row in some])
            for name, values in (("the score", [score_of(row) for row in some]), ("Neural Cleanse", [row.index for row in some])):
                order = np.argsort(-np.array(values), kind="stable")
                hits, misses = np.cumsum(truth[order]), np.cumsum(~truth[order])
                panel.step(
                    [0, *(misses / max(1, misses[-1]))], [0, *(hits / max(1, hits[-1]))], where="post", label=f"{name}, AUC {area(values, list(truth)):.2f}"
                )
            panel.plot([0, 1], [0, 1], color="#dfe4ea", linewidth=1)
            panel.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false alarms", ylabel="found", title=_size(images))
            panel.legend(loc="lower right", fontsize="small")
        for panel in figure.axes[len(sizes) :]:
            panel.set_visible(False)
    return png.getvalue()
