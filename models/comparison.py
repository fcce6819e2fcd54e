"""Compare purifiers on victims: `onnx-audit bench purify VICTIMS...`.

A victim is a folder as `onnx-audit zoo build` and `models/cifar10_trojan` have it: model.onnx, audit.yaml with its trigger, images.
Every run goes through the file: imported, purified, written back, measured with onnxruntime.  Images are cut in two once for each
victim: some judge every run, and calibration images are drawn from the others, seeded and stratified, the same for every method.
Rows go to a CSV as they are made, and a killed run goes on from there; the page is written from all that the CSV holds.
"""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, isnan, nan
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch

from models.reactivation import altered, relearnt
from pipeline.allocator import keep_freed_memory
from pipeline.artifact import atomic_write, sha256
from pipeline.config import AuditSpec, read_spec
from pipeline.convert.to_torch import convert
from pipeline.convert.write_back import write_back
from pipeline.errors import AuditError
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.findings import printable
from pipeline.images import CalibrationSet, HoldoutSet, LabelledImages, read, split
from pipeline.purify import methods
from pipeline.results import Measurement
from pipeline.sandbox import die_with
from pipeline.scan import scan
from pipeline.twin import choose_device

ONE_A_CLASS = 1  # as a number of images: one of each class


@dataclass(frozen=True)
class Job:
    """One purification to be made.  victim: its folder.  images: how many; 1 stands for one a class."""

    victim: str
    method: str
    preset: str
    images: int
    seed: int


@dataclass(frozen=True)
class Row:
    """What came of it, in 0..1 on the hold-out images.

    seconds: of the purifier alone.  altered: the largest ASR of slightly altered triggers.  relearnt_5, relearnt_50: ASR after a short
    fine-tuning with so many poisoned samples.  Those three are NaN where they were not asked for.  error: why there is nothing.
    """

    victim: str
    method: str
    preset: str
    images: int
    seed: int
    acc_before: float
    asr_before: float
    acc: float
    asr: float
    ra: float
    der: float
    seconds: float
    altered: float
    relearnt_5: float
    relearnt_50: float
    model: str
    error: str

    @property
    def job(self) -> Job:
        """What was to be made."""
        return Job(self.victim, self.method, self.preset, self.images, self.seed)


def der(before: Measurement, after: Measurement) -> float:
    """Defence effectiveness rating: (max(0, ΔASR) - max(0, ΔACC) + 1) / 2 (BackdoorBench, Wu et al., NeurIPS 2022)."""
    lost = max(0.0, before.clean.rate - after.clean.rate)
    won = max(0.0, before.attacks[0].asr.rate - after.attacks[0].asr.rate)
    return (won - lost + 1) / 2


class Victim:
    """A backdoored model, its images cut in two, and what it measures before any purification."""

    def __init__(self, folder: Path, *, judges: int, device: str) -> None:
        self.model, self.spec, self.device = folder / "model.onnx", read_spec(folder / "audit.yaml"), choose_device(device)
        if self.spec.input is None or not self.spec.triggers:
            raise ValueError(f"the audit.yaml of {folder} must say how the model reads images, and its trigger")
        self.reading, self.facts = self.spec.input, scan(self.model).model
        self.holdout, self.pool = split(_images(self.spec), calibration=judges, seed=0)
        self.attack = _attack(self.spec)
        self.before = self.measured(self.model)

    def measured(self, model: Path) -> Measurement:
        """A file on the hold-out images."""
        return measure(Classifier(model, self.reading, device=self.device.type), HoldoutSet(self.holdout.images, self.holdout.labels), [self.attack])

    def drawn(self, images: int, seed: int) -> CalibrationSet:
        """Calibration images from those that do not judge; 1 stands for one a class.  Raises ValueError when there are too few."""
        wanted = self.before.classes if images == ONE_A_CLASS else images
        if wanted > len(self.pool):
            raise ValueError(f"{wanted} calibration images are asked for, and {len(self.pool)} are left beside those that judge")
        drawn = self.pool if wanted == len(self.pool) else split(LabelledImages(self.pool.images, self.pool.labels), calibration=wanted, seed=seed)[0]
        return CalibrationSet(drawn.images, drawn.labels)

    def purified(self, job: Job, *, depth: bool) -> Row:
        """One purification, through the file.  depth: also see whether the backdoor comes back."""
        calibration = self.drawn(job.images, job.seed)
        twin = convert(self.model, self.reading, self.facts)[0].to(self.device)
        started = time.monotonic()
        found = methods()[job.method](twin, calibration, preset=job.preset, seed=job.seed, report=lambda step, total, figures: None)
        seconds = time.monotonic() - started
        with tempfile.TemporaryDirectory() as folder:
            files, _ = write_back(self.model, ["model.onnx"], found.weights, Path(folder))
            after = self.measured(files["model.onnx"])
            deep = self._depth(files["model.onnx"], job.seed) if depth else {}
        return self._row(job, after, round(seconds, 1), "", **deep)

    def _depth(self, model: Path, seed: int) -> dict[str, float]:
        """How a repaired file takes altered triggers, and a few poisoned samples."""
        changed = [replace(self.attack, name=name, trigger=trigger) for name, trigger in altered(self.attack.trigger).items()]
        held = HoldoutSet(self.holdout.images, self.holdout.labels)
        faced = measure(Classifier(model, self.reading, device=self.device.type), held, changed)
        found = {"altered": max(attack.asr.rate for attack in faced.attacks)}
        twin, _ = convert(model, self.reading, self.facts)
        for samples in (5, 50):
            attack = self.attack
            weights = relearnt(twin.to(self.device), self.pool, attack.trigger, attack.target, source=attack.source, samples=samples, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                files, _ = write_back(model, ["model.onnx"], weights, Path(folder))
                found[f"relearnt_{samples}"] = self.measured(files["model.onnx"]).attacks[0].asr.rate
        return found

    def failed(self, job: Job, error: Exception) -> Row:
        """A purification that came to nothing."""
        return self._row(job, self.before, 0.0, printable(f"{type(error).__name__}: {error}"))

    def _row(self, job: Job, after: Measurement, seconds: float, error: str, *, altered: float = nan, relearnt_5: float = nan, relearnt_50: float = nan) -> Row:
        before, attack = self.before, after.attacks[0]
        return Row(
            **asdict(job),
            acc_before=before.clean.rate,
            asr_before=before.attacks[0].asr.rate,
            acc=after.clean.rate,
            asr=attack.asr.rate,
            ra=attack.ra.rate,
            der=der(before, after),
            seconds=seconds,
            altered=altered,
            relearnt_5=relearnt_5,
            relearnt_50=relearnt_50,
            model=sha256(self.model),
            error=error,
        )


def _images(spec: AuditSpec) -> LabelledImages:
    """All the images that a spec names."""
    paths = [path for path in (spec.data.images, spec.data.calibration, spec.data.holdout) if path is not None]
    parts = [read(path, labels=spec.labels) for path in paths]
    return LabelledImages(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def _attack(spec: AuditSpec) -> KnownAttack:
    trigger = spec.triggers[0]
    built = trigger.build(3 if spec.input is None else spec.input.depth)
    return KnownAttack(name=trigger.name, trigger=built, target=spec.target_of(trigger), source=spec.source_of(trigger))


_victims: dict[str, Victim] = {}  # of a worker process: a victim is measured once


def _work(job: Job, judges: int, device: str, threads: int, depth: bool) -> Row:
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if job.victim not in _victims:
        _victims.clear()
        _victims[job.victim] = Victim(Path(job.victim), judges=judges, device=device)
    victim = _victims[job.victim]
    try:
        return victim.purified(job, depth=depth)
    except (AuditError, ValueError, RuntimeError) as error:
        return victim.failed(job, error)


def compare(
    jobs: Iterable[Job],
    rows_file: Path,
    *,
    judges: int,
    device: str,
    workers: int | None = None,
    depth: bool = False,
    listener: Callable[[Row, int, int], None] | None = None,
) -> list[Row]:
    """Make what is missing of the jobs, each row written as soon as it is there; returns the rows of all of them.

    judges: hold-out images a victim.  depth: also see whether backdoors come back.  listener: told each new row, how many are done and how many there are.
    """
    jobs = list(jobs)
    known = {row.job: row for row in load(rows_file)}
    digests = {victim: sha256(Path(victim) / "model.onnx") for victim in {job.victim for job in jobs}}
    missing = [job for job in jobs if job not in known or known[job].model != digests[job.victim] or known[job].error or (depth and isnan(known[job].altered))]
    cores = len(os.sched_getaffinity(0))
    workers = workers or (1 if device == "cuda" else cores)
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(rows_file, _csv(known.values()))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=die_with, initargs=(os.getpid(),)) as pool:
        pending = {pool.submit(_work, job, judges, device, max(1, cores // workers), depth): job for job in missing}
        for done, future in enumerate(as_completed(pending), start=1):
            row = future.result()
            known[row.job] = row
            _append(rows_file, row)
            if listener is not None:
                listener(row, done, len(missing))
    return [known[job] for job in jobs]


def load(path: Path) -> list[Row]:
    """The rows of earlier runs, without the half line that a killed one may have left; of a job that was made twice, the last counts."""
    if not path.exists():
        return []
    kinds = {field.name: {"int": int, "float": float, "str": str}[str(field.type)] for field in fields(Row)}
    with path.open(newline="") as file:
        complete = [line for line in csv.DictReader(file) if None not in line and None not in line.values()]
        return [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in complete]


def _append(path: Path, row: Row) -> None:
    with path.open("a", newline="") as file:
        csv.DictWriter(file, [field.name for field in fields(Row)]).writerow(asdict(row))


def _csv(rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()


# The page


FIGURES = ("asr", "ra", "der", "altered", "relearnt_5", "relearnt_50", "seconds")


def _percent(share: float) -> str:
    return "–" if isnan(share) else f"{100 * share:.1f}"


def name_of(row: Row) -> str:
    """A method by name, with its preset where that is not the default."""
    return row.method if row.preset == "default" else f"{row.method} ({row.preset})"


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
        for images in sorted({row.images for row in rows if group_of(row.victim) == group}):
            size = "one image a class" if images == ONE_A_CLASS else f"{images} images"
            yield f"{group}: {size}" if group else size.capitalize(), [row for row in rows if group_of(row.victim) == group and row.images == images]


def comparable(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Method -> its rows, on the victims that every method was run on."""
    names = {name_of(row) for row in rows}
    on = set.intersection(*({row.victim for row in rows if name_of(row) == name} for name in names))
    return {name: [row for row in rows if name_of(row) == name and row.victim in on] for name in sorted(names)} if on else {}


def mean(rows: Sequence[Row], figure: Callable[[Row], float]) -> float:
    """The mean over victims of the mean over seeds."""
    return statistics.mean(statistics.mean(figure(row) for row in rows if row.victim == victim) for victim in {row.victim for row in rows})


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown: for each group of victims and number of images the means of each method over the victims that all were run on, best DER first."""
    lines = []
    for title, some in sections(rows):
        methods = comparable(some)
        victims = {row.victim for of_method in methods.values() for row in of_method}
        lines += [
            f"### {title}",
            "",
            f"Means over {len(victims)} victim{'s' * (len(victims) != 1)}.",
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
        lines += [f"### {title}: ACC / ASR % by victim", "", "| victim | submitted | " + " | ".join(names) + " |", "|---|---:|" + "---:|" * len(names)]
        for victim in sorted({row.victim for row in some}):
            of_victim = [row for row in some if row.victim == victim]
            cells = [_pair([row for row in of_victim if name_of(row) == name]) for name in names]
            lines.append(f"| {Path(victim).name} | {100 * of_victim[0].acc_before:.1f} / {100 * of_victim[0].asr_before:.1f} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _pair(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    return f"{100 * statistics.mean(row.acc for row in rows):.1f} / {100 * statistics.mean(row.asr for row in rows):.1f}"


def write_page(path: Path, rows: Sequence[Row], *, judges: int, device: str, more: Sequence[str] = (), files: Mapping[str, bytes] | None = None) -> None:
    """Tables and plots, as Markdown; the plots and the rows lie beside it, in a folder of its name.  more: further lines, files: that they show."""
    from pipeline.provenance import packages
    from pipeline.twin import device_name

    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[str, bytes] = {"rows.csv": _csv(replace(row, victim=Path(row.victim).name) for row in rows), **(files or {})}
    plots = {}
    if len({name_of(row) for row in rows}) > 1:  # one point says nothing that the table does not
        plots["accuracy lost against ASR"] = "accuracy-against-asr.png"
        shown["accuracy-against-asr.png"] = accuracy_against_asr(rows)
    if len({row.images for row in rows}) > 1:
        plots["DER by number of images"] = "der-by-images.png"
        shown["der-by-images.png"] = der_by_images(rows)
    for name, content in shown.items():
        atomic_write(folder / name, content)
    versions = ", ".join(f"{name} {version}" for name, version in packages().items() if name in ("torch", "onnxruntime-gpu", "onnx2torch"))
    seeds = sorted({row.seed for row in rows})
    lines = [
        "# Benchmark of purifiers",
        "",
        "Made by `onnx-audit bench purify`; do not edit by hand.",
        "",
        f"{len({row.victim for row in rows})} victims; {judges} hold-out images of each judge every run, calibration images are drawn from the others, the same"
        f" for every method; seeds {', '.join(map(str, seeds))} draw the images and seed the method. Each file was imported, purified, written back and"
        " measured with onnxruntime. ASR leaves out images of the target class; DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2. A failed run counts as no repair."
        f" Every run is a line of [rows.csv]({folder.name}/rows.csv).",
        "",
        *(line for title, name in plots.items() for line in (f"![{title}]({folder.name}/{name})", "")),
        *table(rows),
        *by_victim(rows),
        *more,
        f"On {device_name(choose_device(device))}; {versions}. Machines are shared: read the seconds as ratios.",
        "",
    ]
    atomic_write(path, "\n".join(lines).encode())


def accuracy_against_asr(rows: Sequence[Row]) -> bytes:
    """A PNG: a panel for each group of victims and number of images, a point for each method: points of accuracy lost against ASR, means as in the table."""
    from pipeline.report.plots import figure_of

    panels_of = [(title, comparable(some)) for title, some in sections(rows)]
    names = sorted({name_of(row) for row in rows})
    height = ceil(len(panels_of) / 2)
    with figure_of(height=1 + 2.6 * height) as (figure, png):
        panels = figure.subplots(height, min(2, len(panels_of)), sharey=True, squeeze=False).flat
        colours = {name: f"C{place % 10}" for place, name in enumerate(names)}
        for panel, (title, methods) in zip(panels, panels_of, strict=False):
            for name, some in methods.items():
                point = (mean(some, lambda row: 100 * (row.acc_before - row.acc)), mean(some, lambda row: 100 * row.asr))
                panel.scatter(*point, color=colours[name], marker="os^v"[names.index(name) // 10 % 4], s=28)
                panel.annotate(name, point, xytext=(3, 3), textcoords="offset points", fontsize="xx-small")
            panel.set_title(title, fontsize="small")
            panel.set_xlabel("points of accuracy lost")
            panel.set_ylabel("ASR, %")
    return png.getvalue()


def der_by_images(rows: Sequence[Row]) -> bytes:
    """A PNG: DER by number of images, a panel for each group of victims, a line for each method, means as in the table."""
    from pipeline.report.plots import figure_of

    groups = sorted({group_of(row.victim) for row in rows})
    sizes, names = sorted({row.images for row in rows}), sorted({name_of(row) for row in rows})
    with figure_of(height=1 + 2.6 * len(groups)) as (figure, png):
        panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
        for panel, group in zip(panels, groups, strict=True):
            for place, name in enumerate(names):
                by_size = [comparable([row for row in rows if group_of(row.victim) == group and row.images == images]).get(name, []) for images in sizes]
                points = [(at, mean(some, lambda row: row.der)) for at, some in enumerate(by_size) if some]
                if points:
                    panel.plot(*zip(*points, strict=True), marker="os^v"[place // 10 % 4], color=f"C{place % 10}", label=name)
            panel.set_xticks(range(len(sizes)), ["one a class" if images == ONE_A_CLASS else str(images) for images in sizes])
            panel.set_title(group, fontsize="small")
            panel.set_xlabel("calibration images")
            panel.set_ylabel("DER")
            panel.legend(fontsize="xx-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return png.getvalue()
