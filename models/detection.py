"""Measure the search for unknown triggers on models of which it is known whether they are backdoored: `onnx-audit bench detect`.

A model is a folder as `onnx-audit zoo build` makes it.  Rows go to a CSV as they are made, and a killed run goes on from there.  The same rows, of other
models, are the bank that scores are held against (pipeline/detect/bank.csv).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import as_completed
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch

from models import rows as table
from models.comparison import all_images, drawn
from models.processes import processes, side_by_side
from pipeline.artifact import atomic_write, sha256
from pipeline.config import AuditSpec, read_spec
from pipeline.convert.to_torch import convert
from pipeline.detect.bank import KINDS, Standing, standings
from pipeline.detect.detect import anomaly_index, look
from pipeline.errors import AuditError
from pipeline.findings import printable
from pipeline.images import LabelledImages, split
from pipeline.results import onward
from pipeline.scan import scan
from pipeline.twin import choose_device

JUDGES = 2000  # hold-out images, which no search sees


@dataclass(frozen=True)
class Look:
    """One search to be made.  model: its folder.  images: calibration images; 1 is one a class."""

    model: str
    images: int
    seed: int


@dataclass(frozen=True)
class Row:
    """What a search found.

    truth: what the trigger does, in the words of the search; "" for a clean model.  patch ... faint: the size of each change of the kind, as a share of the
    whole picture, parted by spaces; "" where that was not searched for.  aims: what the smallest of each kind does, in the same order, parted by `;`.
    index: Neural Cleanse's.
    """

    model: str
    data: str
    network: str
    attack: str
    images: int
    seed: int
    truth: str
    patch: str
    warp: str
    shift: str
    departure: str
    addition: str
    faint: str
    aims: str
    index: float
    seconds: float
    sha256: str
    error: str

    @property
    def standings(self) -> dict[str, Standing]:
        """By kind, of those that were searched for."""
        return standings({kind: getattr(self, kind) for kind in KINDS})


def truth_of(spec: AuditSpec) -> str:
    """What the trigger of a model does, in the words of `pipeline.search.targeted.Aim`; "" where it has none."""
    if not spec.triggers:
        return ""
    trigger = spec.triggers[0]
    target, source = spec.target_of(trigger), spec.source_of(trigger)
    if (steps := onward(target)) is not None:
        return f"to each class + {steps}"
    return f"from class {source} to class {target}" if source is not None else f"to class {target}"


def made(job: Look, device: str) -> Row:
    """Search one model."""
    import time

    folder = Path(job.model)
    spec, card = read_spec(folder / "audit.yaml"), json.loads((folder / "card.json").read_text())["recipe"]
    says: dict[str, Any] = {
        "model": folder.name,
        "data": card["data"],
        "network": card["network"],
        "attack": card["attack"],
        "images": job.images,
        "seed": job.seed,
        "truth": truth_of(spec),
        "sha256": sha256(folder / "model.onnx"),
    }
    nothing: dict[str, Any] = dict.fromkeys(KINDS, "") | {"aims": "", "index": nan, "seconds": 0.0}
    if spec.input is None:
        raise ValueError(f"the audit.yaml of {folder} must say how the model reads images")
    try:
        twin = convert(folder / "model.onnx", spec.input, scan(folder / "model.onnx").model)[0].to(choose_device(device))
        _, pool = split(all_images(spec), calibration=JUDGES, seed=0)
        calibration = drawn(LabelledImages(pool.images, pool.labels), job.images, job.seed)
        started = time.monotonic()
        _, _, found = look(twin, calibration, seed=job.seed, seconds=float("inf"))
    except (AuditError, ValueError, RuntimeError) as error:
        return Row(**says, **nothing, error=printable(f"{type(error).__name__}: {error}"))
    seconds = time.monotonic() - started
    aims: dict[str, str] = {one.kind: str(one.aim(int(one.sizes().argmin()))) for one in found.searches}
    sizes: dict[str, Any] = {one.kind: " ".join(f"{size:.4g}" for size in (one.sizes().detach() / one.whole).tolist()) for one in found.searches}
    return Row(
        **says,
        **{kind: sizes.get(kind, "") for kind in KINDS},
        aims=";".join(aims.get(kind, "") for kind in KINDS),
        index=round(anomaly_index(found), 4),
        seconds=round(seconds, 1),
        error="",
    )


def _work(job: Look, device: str) -> Row:
    torch.use_deterministic_algorithms(True, warn_only=True)
    return made(job, device)


def search_all(
    jobs: Iterable[Look], rows_file: Path, *, device: str, workers: int | None = None, listener: Callable[[Row, int, int], None] | None = None
) -> list[Row]:
    """Make what is missing of the jobs, each row written as soon as it is there; returns the rows of all of them."""
    jobs = list(jobs)
    known = {(row.sha256, row.images, row.seed): row for row in table.load(Row, rows_file)}
    key = {job: (sha256(Path(job.model) / "model.onnx"), job.images, job.seed) for job in jobs}
    missing = [job for job in jobs if key[job] not in known or known[key[job]].error]
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(rows_file, table.to_csv(Row, known.values()))
    with processes(side_by_side(device, workers)) as pool:
        pending = {pool.submit(_work, job, device): job for job in missing}
        for done, future in enumerate(as_completed(pending), start=1):
            row = known[key[pending[future]]] = future.result()
            table.append(rows_file, row)
            if listener is not None:
                listener(row, done, len(missing))
    return [known[key[job]] for job in jobs]
