"""Backdoors in the graph: watch the gates that the scan finds, and cut them out.  Joins scan, convert and evaluate, as the stages do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from pipeline.artifact import ModelArtifact
from pipeline.convert.cut import cut, exposed, held
from pipeline.convert.stored import parse
from pipeline.evaluate.gates import classify, watch
from pipeline.evaluate.session import Classifier
from pipeline.results import GateSeen, GatesResult
from pipeline.scan.bypass import gates


@dataclass(frozen=True)
class Bench:
    """Where graphs are written to be run.  beside: external data of the submitted file, in the folder `source`.  load: opens a file."""

    source: Path
    beside: Sequence[str]
    folder: Path
    load: Callable[[Path], Classifier]

    def run(self, name: str, proto: ModelProto) -> Classifier:
        """A graph, written into a folder of its own with copies of its external data."""
        folder = self.folder / name
        for other in self.beside:
            if not (folder / other).exists():
                (folder / other).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.source / other, folder / other)
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        return self.load(folder / "model.onnx")

    def hold(self, graph: ModelProto, value: str, constant: Any) -> Classifier:
        """A graph in which a value is a constant."""
        return self.run("held", held(graph, {value: constant}))


def cut_out(
    model: Path, files: Sequence[str], pictures: NDArray[np.float32], folder: Path, *, load: Callable[[Path], Classifier], progress: Callable[[int, int], None]
) -> GatesResult:
    """Watch the gates on (N, H, W, C) clean pictures, hold them to either side, and make them constants where no picture's label changes by that.

    files: names of the model and of its external data.  folder: what is made goes there.  load: opens a file as it is measured.
    """
    others = [name for name in files if name != "model.onnx"]
    bench = Bench(model.parent, others, folder, load)
    submitted = parse(model)
    labels = classify(bench.run("submitted", submitted), pictures)
    seen: dict[str, GateSeen] = {}
    constants: dict[str, Any] = {}
    left, removed = submitted, 0
    while found := gates(left, model.parent):
        new = {gate.value: gate for gate in found if gate.value not in constants}
        if None in new or not new:
            return GatesResult(gates=list(seen.values()), why="a gate lies inside control flow or a function, or comes back when it is cut")
        for name in sorted(filter(None, new)):
            progress(len(seen), len(seen) + len(new))
            watched = watch(bench.run("exposed", exposed(left, [name])), name, partial(bench.hold, left), pictures)
            if watched is None:
                return GatesResult(gates=list(seen.values()), why=f"the gate {name!r} is no number")
            joins = {"path": new[name].path, "crossed": new[name].crossed, "other": new[name].other}
            seen[name], constants[name] = watched.seen.model_copy(update=joins), watched.constant
        left, removed = cut(submitted, constants)
    changed = int((classify(bench.run("cut", left), pictures) != labels).sum())
    if changed:
        return GatesResult(gates=list(seen.values()), why=f"{changed} of {len(pictures)} clean images change their label without the gates")
    written = {name: str(folder / "cut" / name) for name in ("model.onnx", *others)}
    return GatesResult(gates=list(seen.values()), cut=ModelArtifact(files=written), removed=removed)
