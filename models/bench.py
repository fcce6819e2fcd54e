"""Compare purifiers on the reference model: `python -m models.bench` (or `make bench`), about half an hour on two cores.

Every run goes through the file: imported, purified, written back, measured with onnxruntime.  The 1,000 images that ship are cut
in two: 500 judge every run, and calibration images are drawn from the other 500, seeded and stratified, the same for every
preset.  Rows go to a CSV as they are made, and a killed run goes on from there; the page is written from the CSV.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from pipeline.artifact import atomic_write, sha256
from pipeline.config import AuditSpec, read_spec
from pipeline.convert.to_torch import convert
from pipeline.convert.write_back import write_back
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.images import CalibrationSet, HoldoutSet, LabelledImages, read, split
from pipeline.provenance import packages
from pipeline.purify import methods
from pipeline.results import Measurement
from pipeline.scan import scan
from pipeline.twin import choose_device, device_name

SIZES = (10, 50, 200, 500)
PRESETS = ("paper", "default")
SEEDS = (0, 1, 2)
PAGE = Path("docs") / "benchmarks.md"
HEADINGS = {"acc": "ACC %", "asr": "ASR %", "ra": "RA %", "der": "DER", "seconds": "seconds"}


@dataclass(frozen=True)
class Row:
    """One purification.  acc, asr, ra: in 0..1 on the hold-out images.  seconds: of the purifier alone."""

    preset: str
    images: int
    seed: int
    acc: float
    asr: float
    ra: float
    der: float
    seconds: float
    model: str


def der(before: Measurement, after: Measurement) -> float:
    """Defence effectiveness rating: (max(0, ΔASR) - max(0, ΔACC) + 1) / 2 (BackdoorBench, Wu et al., NeurIPS 2022)."""
    lost = max(0.0, before.clean.rate - after.clean.rate)
    won = max(0.0, before.attacks[0].asr.rate - after.attacks[0].asr.rate)
    return (won - lost + 1) / 2


class Bench:
    """The reference model, its images cut in two, and what it measures before any purification."""

    def __init__(self, folder: Path, device: str) -> None:
        self.model, self.spec, self.device = folder / "model.onnx", read_spec(folder / "audit.yaml"), choose_device(device)
        assert self.spec.input is not None and self.spec.data.calibration is not None and self.spec.data.holdout is not None
        self.reading = self.spec.input
        parts = [read(self.spec.data.calibration), read(self.spec.data.holdout)]
        shipped = LabelledImages(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))
        self.pool, self.holdout = split(shipped, calibration=max(SIZES), seed=0)
        self.facts = scan(self.model).model
        self.attack = _attack(self.spec)
        self.before = self.measured(self.model)

    def measured(self, model: Path) -> Measurement:
        """A file on the hold-out images."""
        return measure(Classifier(model, self.reading, device=self.device.type), HoldoutSet(self.holdout.images, self.holdout.labels), [self.attack])

    def run(self, preset: str, images: int, seed: int) -> Row:
        """One purification, through the file."""
        drawn = self.pool if images == len(self.pool) else split(self.pool, calibration=images, seed=seed)[0]
        twin, _ = convert(self.model, self.reading, self.facts)
        started = time.monotonic()
        purified = methods()["awm"](
            twin.to(self.device), CalibrationSet(drawn.images, drawn.labels), preset=preset, seed=seed, report=lambda step, total, figures: None
        )
        seconds = time.monotonic() - started
        with tempfile.TemporaryDirectory() as folder:
            files, _ = write_back(self.model, ["model.onnx"], purified.weights, Path(folder))
            after = self.measured(files["model.onnx"])
        attack = after.attacks[0]
        return Row(preset, images, seed, after.clean.rate, attack.asr.rate, attack.ra.rate, der(self.before, after), round(seconds, 1), sha256(self.model))


def _attack(spec: AuditSpec) -> KnownAttack:
    (trigger,) = spec.triggers
    target = spec.target_of(trigger)
    return KnownAttack(name=trigger.name, trigger=trigger.build(3), target=target)


def load(path: Path, model: str) -> list[Row]:
    """The rows of an earlier run on the same model."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        kinds = {field.name: {"int": int, "float": float, "str": str}[str(field.type)] for field in fields(Row)}
        rows = [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in csv.DictReader(file)]
    return [row for row in rows if row.model == model]


def page(bench: Bench, rows: list[Row]) -> str:
    """docs/benchmarks.md."""
    before = bench.before
    versions = ", ".join(f"{name} {version}" for name, version in packages().items() if name in ("torch", "onnxruntime-gpu", "onnx2torch"))
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`; do not edit by hand.",
        "",
        "## AWM on the reference model: the paper's settings and ours",
        "",
        f"The model that ships (`models/cifar10_trojan`), submitted: ACC {100 * before.clean.rate:.1f} %, ASR {100 * before.attacks[0].asr.rate:.1f} % on the"
        f" {len(bench.holdout)} hold-out images that judge every row. Calibration images are drawn from {len(bench.pool)} others, the same for both presets;"
        f" 10 is one a class. Mean ± standard deviation over seeds {', '.join(map(str, SEEDS))}, which draw the images and seed the purifier"
        f" (with {len(bench.pool)} images there is one draw). Each file was imported, purified, written back, and measured with onnxruntime."
        " ASR leaves out images of the target class; DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2. Seconds are the purifier's alone.",
        "",
        "| images | preset | " + " | ".join(HEADINGS.values()) + " |",
        "|---:|---|" + "---:|" * len(HEADINGS),
    ]
    for images in SIZES:
        for preset in PRESETS:
            some = [row for row in rows if row.images == images and row.preset == preset]
            if some:
                lines.append(f"| {images} | {preset} | " + " | ".join(_cells(some)) + " |")
    where = f"On {platform.machine()}, {torch.get_num_threads()} threads, {device_name(bench.device)}; {versions}."
    lines += ["", f"{where} Machines are shared: read the seconds as ratios.", ""]
    return "\n".join(lines)


def _cells(rows: list[Row]) -> Iterator[str]:
    for name in HEADINGS:
        factor, digits = {"der": (1, 3), "seconds": (1, 0)}.get(name, (100, 1))
        values = [factor * float(asdict(row)[name]) for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        yield f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("build") / "bench-awm.csv", help="where rows are kept (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with resources.as_file(resources.files("models.cifar10_trojan")) as folder:
        bench = Bench(folder, options.device)
        rows = load(options.rows, sha256(bench.model))
        done = {(row.preset, row.images, row.seed) for row in rows}
        options.rows.parent.mkdir(parents=True, exist_ok=True)
        for images, seed, preset in ((images, seed, preset) for images in SIZES for seed in SEEDS for preset in PRESETS):
            if (preset, images, seed) in done:
                continue
            row = bench.run(preset, images, seed)
            new = not options.rows.exists()
            with options.rows.open("a", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Row)])
                if new:
                    writer.writeheader()
                writer.writerow(asdict(row))
            rows.append(row)
            print(
                f"{preset:8} {images:4} images seed {seed}: ACC {row.acc:.3f} ASR {row.asr:.3f} DER {row.der:.3f} {row.seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        atomic_write(PAGE, page(bench, rows).encode())
    print(PAGE)


if __name__ == "__main__":
    main()
