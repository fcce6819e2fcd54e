"""Compare purifiers on victims: `onnx-audit bench purify VICTIMS...`.

A victim is a folder as `onnx-audit zoo build` and `models/cifar10_trojan` have it: model.onnx, audit.yaml with its trigger, images.
Every run goes through the file: imported, purified, written back, measured with onnxruntime.  Images are cut in two once for each
victim: some judge every run, and calibration images are drawn from the others, seeded and stratified, the same for every method.
Rows go to a CSV as they are made, and a killed run goes on from there, also where the victims have been moved; the page is written from all that
the CSV holds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from pathlib import Path

import numpy as np
import torch

from models import rows as table
from models.processes import processes, side_by_side
from models.reactivation import altered, relearnt
from pipeline.artifact import atomic_write, sha256
from pipeline.config import AuditSpec, read_spec
from pipeline.convert.to_torch import convert
from pipeline.convert.write_back import write_back
from pipeline.errors import AuditError, ModelRefused
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.findings import printable
from pipeline.images import CalibrationSet, HoldoutSet, InputSpec, LabelledImages, read, split
from pipeline.purify import methods
from pipeline.results import Measurement
from pipeline.scan import scan
from pipeline.twin import choose_device, device_name

ONE_A_CLASS = 1  # as a number of images: one of each class
TWIN = "clean twin"  # as a method: no repair, but a network that never saw the trigger


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
    """What came of it, in 0..1 on `judges` hold-out images.

    seconds: of the purifier alone.  altered: the largest ASR of slightly altered triggers.  relearnt_5, relearnt_50: ASR after a short
    fine-tuning with so many poisoned samples.  Those three are NaN where they were not asked for, or where it diverged.  device: where it ran.  error: why
    there is nothing.
    """

    victim: str
    method: str
    preset: str
    images: int
    seed: int
    judges: int
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
    device: str
    model: str
    error: str

    @property
    def job(self) -> Job:
        """What was to be made."""
        return Job(self.victim, self.method, self.preset, self.images, self.seed)


def name_of(row: Row) -> str:
    """A method by name, with its preset where that is not the default."""
    return row.method if row.preset == "default" else f"{row.method} ({row.preset})"


def der(before: Measurement, after: Measurement) -> float:
    """Defence effectiveness rating: (max(0, ΔASR) - max(0, ΔACC) + 1) / 2 (BackdoorBench, Wu et al., NeurIPS 2022)."""
    lost = max(0.0, before.clean.rate - after.clean.rate)
    won = max(0.0, before.attacks[0].asr.rate - after.attacks[0].asr.rate)
    return (won - lost + 1) / 2


class Victim:
    """A backdoored model, its images cut in two, and what it measures before any purification."""

    def __init__(self, folder: Path, *, judges: int, device: str) -> None:
        self.model, self.spec, self.device = folder / "model.onnx", read_spec(folder / "audit.yaml"), choose_device(device)
        self.wanted = device  # with `auto` files are measured on the CPU where torch has CUDA and onnxruntime has none
        if self.spec.input is None or not self.spec.triggers:
            raise ValueError(f"the audit.yaml of {folder} must say how the model reads images, and its trigger")
        self.reading, self.facts = self.spec.input, scan(self.model).model
        self.judges = judges
        self.holdout, self.pool = split(all_images(self.spec), calibration=judges, seed=0)
        self.attack = _attack(self.spec)
        self.before = self.measured(self.model)

    def measured(self, model: Path) -> Measurement:
        """A file on the hold-out images."""
        return self._facing(model, [self.attack])

    def _facing(self, model: Path, attacks: Sequence[KnownAttack], reading: InputSpec | None = None) -> Measurement:
        """With as many threads as torch has: this process is one of several that share the cores."""
        classifier = Classifier(model, reading or self.reading, device=self.wanted, threads=torch.get_num_threads())
        return measure(classifier, HoldoutSet(self.holdout.images, self.holdout.labels), attacks)

    def drawn(self, images: int, seed: int) -> CalibrationSet:
        """Calibration images from those that do not judge."""
        return drawn(LabelledImages(self.pool.images, self.pool.labels), images, seed)

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
        found = {"altered": max(attack.asr.rate for attack in self._facing(model, changed).attacks)}
        twin, _ = convert(model, self.reading, self.facts)
        for samples in (5, 50):
            attack = self.attack
            weights = relearnt(twin.to(self.device), self.pool, attack.trigger, attack.target, source=attack.source, samples=samples, seed=seed)
            if not all(np.isfinite(values).all() for values in weights.values()):
                continue  # it diverged: nothing can be said of it
            with tempfile.TemporaryDirectory() as folder, suppress(ModelRefused):  # nor where weights are so large that it answers NaN
                files, _ = write_back(model, ["model.onnx"], weights, Path(folder))
                found[f"relearnt_{samples}"] = self.measured(files["model.onnx"]).attacks[0].asr.rate
        return found

    def beside(self, job: Job, twin: Path) -> Row:
        """What a clean network of the same kind does, twin being its folder: on the same images, with the same trigger."""
        return self._row(job, self._facing(twin / "model.onnx", [self.attack], read_spec(twin / "audit.yaml").input), 0.0, "")

    def failed(self, job: Job, error: Exception) -> Row:
        """A purification that came to nothing."""
        return self._row(job, self.before, 0.0, printable(f"{type(error).__name__}: {error}"))

    def _row(self, job: Job, after: Measurement, seconds: float, error: str, *, altered: float = nan, relearnt_5: float = nan, relearnt_50: float = nan) -> Row:
        before, attack = self.before, after.attacks[0]
        return Row(
            **asdict(job),
            judges=self.judges,
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
            device=device_name(self.device),
            model=sha256(self.model),
            error=error,
        )


def all_images(spec: AuditSpec) -> LabelledImages:
    """All the images that a spec names."""
    paths = [path for path in (spec.data.images, spec.data.calibration, spec.data.holdout) if path is not None]
    parts = [read(path, labels=spec.labels) for path in paths]
    return LabelledImages(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def drawn(pool: LabelledImages, images: int, seed: int) -> CalibrationSet:
    """So many of the pool, by chance, each class in its share; 1 stands for one a class, however rare.  Raises ValueError when there are too few."""
    if images == ONE_A_CLASS:
        of_each = [np.flatnonzero(pool.labels == label) for label in np.unique(pool.labels)]
        images, pool = len(of_each), pool.at(np.sort(np.concatenate([rows[: min(map(len, of_each))] for rows in of_each])))
    if images > len(pool):
        raise ValueError(f"{images} calibration images are asked for, and {len(pool)} are left beside those that judge")
    if images == len(pool):
        return CalibrationSet(pool.images, pool.labels)
    return split(pool, calibration=images, seed=seed)[0]


def _attack(spec: AuditSpec) -> KnownAttack:
    trigger = spec.triggers[0]
    built = trigger.build(3 if spec.input is None else spec.input.depth)
    return KnownAttack(name=trigger.name, trigger=built, target=spec.target_of(trigger), source=spec.source_of(trigger))


_victims: dict[str, Victim] = {}  # of a worker process: a victim is measured once


def _work(job: Job, judges: int, device: str, depth: bool, twin: Path | None) -> Row:
    torch.use_deterministic_algorithms(True, warn_only=True)
    if job.victim not in _victims:
        _victims.clear()
        _victims[job.victim] = Victim(Path(job.victim), judges=judges, device=device)
    victim = _victims[job.victim]
    try:
        return victim.purified(job, depth=depth) if twin is None else victim.beside(job, twin)
    except (AuditError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        return victim.failed(job, error)


def compare(
    jobs: Iterable[Job],
    rows_file: Path,
    *,
    judges: int,
    device: str,
    workers: int | None = None,
    depth: bool = False,
    twins: Sequence[Path] = (),
    listener: Callable[[Row, int, int], None] | None = None,
) -> list[Row]:
    """Make what is missing of the jobs, each row written as soon as it is there; returns the rows of all of them.

    judges: hold-out images a victim.  depth: also see whether backdoors come back.  twins: folders of clean networks, whose ASR is what a perfect repair would
    leave; each for the victims of its kind.  listener: told each new row, how many are done and how many there are.
    """
    jobs = list(jobs)
    beside = {Job(victim, TWIN, twin.name, 0, 0): twin for victim in {job.victim for job in jobs} for twin in twins if kind_of(twin) == kind_of(Path(victim))}
    digests = {victim: sha256(Path(victim) / "model.onnx") for victim in {job.victim for job in jobs}}
    known = {row.job: row for row in (replace(row, victim=_place(row, digests)) for row in table.load(Row, rows_file))}

    def made(job: Job) -> bool:
        row = known.get(job)
        if row is None or row.error or row.model != digests[job.victim] or row.judges != judges:
            return False
        return not (depth and isnan(row.altered)) or job in beside

    missing = [job for job in [*jobs, *beside] if not made(job)]
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(rows_file, table.to_csv(Row, known.values()))
    with processes(side_by_side(device, workers)) as pool:
        pending = {pool.submit(_work, job, judges, device, depth, beside.get(job)): job for job in missing}
        try:
            for done, future in enumerate(as_completed(pending), start=1):
                row = future.result()
                known[row.job] = row
                table.append(rows_file, row)
                if listener is not None:
                    listener(row, done, len(missing))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what nobody would write down is not begun
            raise
    atomic_write(rows_file, table.to_csv(Row, known.values()))  # a row that was made again stands once
    return [known[job] for job in jobs]


def _place(row: Row, digests: Mapping[str, str]) -> str:
    """Where the victim of a row lies now, known by its model, and by the name of its folder where several have the same.  digests: folder -> of its model."""
    here = [victim for victim, digest in digests.items() if digest == row.model]
    return min(here, key=lambda victim: (victim != row.victim, Path(victim).name != Path(row.victim).name), default=row.victim)


def kind_of(victim: Path) -> tuple[str, str] | None:
    """Data set and network of a victim, as its card says; None where it has none."""
    try:
        recipe = json.loads((victim / "card.json").read_text())["recipe"]
        return str(recipe["data"]), str(recipe["network"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
