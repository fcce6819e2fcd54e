"""The stages of an audit, each a function from files to files: what a child process runs.

`python -m pipeline.stages STAGE FD PARENT MEMORY FILE_SIZE` reads one request from stdin and answers on descriptor FD, as
`pipeline.sandbox` describes.  A stage imports what it needs when it runs, so that a scan does not wait for torch; what takes long
to import is imported before the request comes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from pipeline.artifact import ModelArtifact
from pipeline.errors import AuditError, ConversionFailed, Defect, StageFailed
from pipeline.images import CalibrationSet, HoldoutSet, InputSpec
from pipeline.results import (
    DetectResult,
    GateSeen,
    GatesResult,
    ImportResult,
    IntakeResult,
    Measurement,
    ModelFacts,
    PlotsResult,
    PurifyResult,
    ReadingResult,
    ScanResult,
    Unbound,
    WriteBackResult,
)
from pipeline.sandbox import confine

if TYPE_CHECKING:
    from pipeline.evaluate.session import Classifier
    from pipeline.twin import TorchTwin

Json = dict[str, Any]
PARITY_IMAGES = (8, 64)  # at least and at most
GATE_IMAGES = 256  # at most
PARITY_PIXELS = 2**19  # of one channel, all images together


class Desk:
    """Where a stage works: its own folder for what it makes, and a line to the parent for how far it is."""

    def __init__(self, folder: Path, send: Callable[[Json], None]) -> None:
        self.folder = folder
        self._send = send

    def report(self, text: str, done: int, total: int, metrics: dict[str, float] | None = None) -> None:
        """Tell the parent."""
        self._send({"event": "progress", "text": text, "done": done, "total": total, "metrics": metrics or {}})

    def counter(self, text: str) -> Callable[[int, int], None]:
        """A progress function of what is done and what there is."""
        return lambda done, total: self.report(text, done, total)

    def model(self, artifact: Json) -> Path:
        """The artifact's model file, with its external data beside it under the right names."""
        files = artifact["files"]
        if len(files) == 1:
            return Path(files["model.onnx"])
        folder = self.folder.parent / "model"
        if not folder.exists():
            for name, path in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)  # copies: onnx refuses external data that is a link
        return folder / "model.onnx"


def intake(desk: Desk, *, source: str) -> IntakeResult:
    """Take the submitted file and its external data in."""
    from pipeline.scan.intake import take_in

    copies = take_in(Path(source), desk.folder)
    return IntakeResult(model=ModelArtifact(files={name: str(path) for name, path in copies.items()}))


def scan(desk: Desk, *, model: Json) -> ScanResult:
    """Look at the file and its graph, without running them."""
    from pipeline.scan import scan

    return scan(desk.model(model))


def read(desk: Desk, *, model: Json, facts: Json, calibration: Json | None, wanted: Json | None, output: Json, device: str) -> ReadingResult:
    """Settle how the model reads pictures and answers: as the spec says, or by what scores best on calibration images."""
    import numpy as np

    from pipeline.config import OutputSpec
    from pipeline.evaluate.reading import assume_reading, settle_reading

    path, shape, said = desk.model(model), ModelFacts.model_validate(facts).input_shape, OutputSpec.model_validate(output)
    reading = None if wanted is None else InputSpec.model_validate(wanted)
    asked: dict[str, Any] = {"reading": reading, "output": said.name, "probabilities": said.probabilities, "device": device}
    if calibration is None:
        settled, classifier = assume_reading(path, shape, **asked)
        images = None
    else:
        images = CalibrationSet.load(calibration)
        settled, classifier = settle_reading(path, shape, images, **asked, progress=desk.counter("trying readings"))
    np.savez(desk.folder / "reference.npz", **_numbered(_reference(classifier, images)))
    return settled.model_copy(update={"reference": str(desk.folder / "reference.npz")})


def _reference(classifier: Classifier, images: CalibrationSet | None) -> dict[str, Any]:
    """Pictures and what onnxruntime answers to them, for the torch twin to be compared with."""
    import numpy as np

    size, depth = classifier.reading.size, classifier.reading.depth
    pictures = noise = np.random.default_rng(0).random((2, *size, depth), np.float32)
    if images is not None:
        most = int(np.clip(PARITY_PIXELS // (size[0] * size[1]), *PARITY_IMAGES))
        pictures = images.at(np.unique(np.linspace(0, len(images) - 1, most).astype(np.int64))).pictures()  # folders come class by class
    others = {f"output {name}": rows for name, rows in classifier.rows(pictures, classifier.floats).items() if name != classifier.output}
    return {
        "noise": noise,
        "noise scores": classifier(noise),
        "pictures": pictures,
        "scores": classifier(pictures),
        "x": classifier.tensor(pictures[:1]),
        **others,
    }


def measure(
    desk: Desk,
    *,
    model: Json,
    holdout: Json,
    reading: Json,
    triggers: list[Json],
    recovered: list[Json],
    output: str | None,
    probabilities: bool,
    device: str,
) -> Measurement:
    """Clean accuracy, and ASR and RA of every trigger, known or recovered, on the hold-out images."""
    from pipeline.evaluate.measurement import KnownAttack, measure
    from pipeline.evaluate.session import Classifier
    from pipeline.triggers import trigger_spec

    images = HoldoutSet.load(holdout)
    channels = images.images.shape[3]
    kinds: list[tuple[Literal["known", "recovered"], list[Json]]] = [("known", triggers), ("recovered", recovered)]
    attacks = [
        KnownAttack(name=given["name"], trigger=trigger_spec(given).build(channels), target=given["target"], source=given["source"], kind=kind)
        for kind, some in kinds
        for given in some
    ]
    classifier = Classifier(desk.model(model), InputSpec.model_validate(reading), device=device, output=output, probabilities=probabilities)
    return measure(classifier, images, attacks, progress=desk.counter("images measured"))


def gates(desk: Desk, *, model: Json, calibration: Json, reading: Json, output: str | None, probabilities: bool, device: str) -> GatesResult:
    """Watch the gates that the scan found on clean images, hold them to either side, and cut them out where no image's label changes by that."""
    from pipeline.cutting import cut_out
    from pipeline.evaluate.session import Classifier

    load = partial(Classifier, reading=InputSpec.model_validate(reading), device=device, output=output, probabilities=probabilities)
    pictures = CalibrationSet.load(calibration).pictures()[:GATE_IMAGES]
    return cut_out(desk.model(model), list(model["files"]), pictures, desk.folder, load=load, progress=desk.counter("gates watched"))


def import_model(desk: Desk, *, model: Json, facts: Json, reading: Json, reference: str, output: str, probabilities: bool) -> ImportResult:
    """Make the torch twin, and compare it with what onnxruntime answered; where they part, find the first such node."""
    from pipeline.convert.parity import compare, first_divergence, tolerance, unreached
    from pipeline.convert.to_torch import bound, convert

    path, spec, known, theirs = desk.model(model), InputSpec.model_validate(reading), ModelFacts.model_validate(facts), named(Path(reference))
    twin, copy = convert(path, spec, known, output=output, probabilities=probabilities)
    allowed = tolerance(copy)
    noise = compare(twin, theirs["noise scores"], theirs["noise"], tolerance=allowed)
    parity = compare(twin, theirs["scores"], theirs["pictures"], tolerance=allowed)
    if not parity.holds:
        from pipeline.evaluate.session import run_all

        parity = parity.model_copy(update={"first_divergence": first_divergence(copy, twin, theirs["x"], run_all)})
    others = {}
    for name, rows in theirs.items():
        if name.startswith("output "):
            with suppress(ConversionFailed):  # it is not the one that counts
                other, _ = convert(path, spec, known, output=name.removeprefix("output "))
                others[name.removeprefix("output ")] = compare(other, rows, theirs["pictures"], tolerance=allowed)
    left = [Unbound(name=name, why="no gradient reaches it") for name in unreached(twin, theirs["pictures"][:1])]
    return ImportResult(parity=parity, noise=noise, others=others, bound=bound(twin, copy), unbound=[*twin.unbound, *left], batch=twin.batch)


def _learner(desk: Desk, *, model: Json, facts: Json, reading: Json, output: str | None, probabilities: bool, seed: int, device: str) -> TorchTwin:
    """The torch twin, on its device, in a process whose draws are seeded and whose memory stays."""
    import torch

    from pipeline.allocator import keep_freed_memory
    from pipeline.convert.to_torch import convert
    from pipeline.twin import choose_device

    keep_freed_memory()
    place = choose_device(device)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    twin, _ = convert(desk.model(model), InputSpec.model_validate(reading), ModelFacts.model_validate(facts), output=output, probabilities=probabilities)
    return twin.to(place)


def purify(
    desk: Desk,
    *,
    model: Json,
    facts: Json,
    reading: Json,
    calibration: Json,
    output: str | None,
    probabilities: bool,
    method: str,
    preset: str,
    seed: int,
    device: str,
) -> PurifyResult:
    """Find new values for the weights, on the torch twin, from calibration images alone."""
    import numpy as np

    from pipeline.purify import methods
    from pipeline.twin import device_name

    twin = _learner(desk, model=model, facts=facts, reading=reading, output=output, probabilities=probabilities, seed=seed, device=device)
    started = time.monotonic()
    purified = methods()[method](
        twin,
        CalibrationSet.load(calibration),
        preset=preset,
        seed=seed,
        report=lambda step, total, figures: desk.report(f"{method}, step", step, total, figures),
    )
    seconds = time.monotonic() - started
    paths = {name: desk.folder / name for name in ("weights.npz", "masks.npz", "perturbation.npy")}
    np.savez(paths["weights.npz"], **_numbered(purified.weights))
    np.savez_compressed(paths["masks.npz"], **_numbered(purified.masks))
    if purified.perturbation is not None:
        np.save(paths["perturbation.npy"], purified.perturbation, allow_pickle=False)
    return PurifyResult(
        method=method,
        preset=preset,
        seconds=seconds,
        device=device_name(twin.device),
        weights=str(paths["weights.npz"]),
        masks=str(paths["masks.npz"]),
        perturbation=str(paths["perturbation.npy"]) if purified.perturbation is not None else None,
        hypotheses=purified.hypotheses,
        history=purified.history,
        notes=purified.notes,
    )


def detect(
    desk: Desk,
    *,
    model: Json,
    facts: Json,
    reading: Json,
    calibration: Json,
    output: str | None,
    probabilities: bool,
    seconds: float,
    seed: int,
    device: str,
) -> DetectResult:
    """Search for triggers that nobody told of, on the torch twin, from calibration images alone."""
    import numpy as np

    from pipeline.detect import bank
    from pipeline.detect.detect import METHOD
    from pipeline.detect.detect import detect as search
    from pipeline.twin import device_name

    twin = _learner(desk, model=model, facts=facts, reading=reading, output=output, probabilities=probabilities, seed=seed, device=device)
    images = CalibrationSet.load(calibration)
    started = time.monotonic()
    found = search(
        twin,
        images,
        seed=seed,
        seconds=seconds,
        folder=desk.folder,
        told=lambda kind, done, total: desk.report(f"searching for a {kind}", done, total),
    )
    np.save(desk.folder / "shown.npy", found.differences, allow_pickle=False)
    references = bank.nearest(bank.references(), len(images))
    scores = list(zip(bank.alone(references), references, strict=True))
    return DetectResult(
        hypotheses=found.hypotheses,
        method=METHOD,
        score=found.score,
        sizes=found.sizes,
        shown=str(desk.folder / "shown.npy"),
        clean=[score for score, one in scores if not one.backdoored],
        backdoored=[score for score, one in scores if one.backdoored],
        complete=found.complete,
        seconds=time.monotonic() - started,
        device=device_name(twin.device),
        notes=found.notes,
    )


def write_back(desk: Desk, *, model: Json, weights: str) -> WriteBackResult:
    """Put the new values into the submitted graph, and prove that nothing else changed."""
    from pipeline.convert.write_back import write_back

    files, changes = write_back(desk.model(model), list(model["files"]), named(Path(weights)), desk.folder)
    return WriteBackResult(model=ModelArtifact(files={name: str(path) for name, path in files.items()}), changes=changes)


def plots(
    desk: Desk, *, gates: list[Json], detected: Json | None, suspected: float, purified: Json | None, submitted: Json, after: Json | None, max_asr: float
) -> PlotsResult:
    """Draw what people would rather look at than read."""
    import numpy as np

    from pipeline.report import plots
    from pipeline.report.summary import rows_between

    rows = rows_between(Measurement.model_validate(submitted), Measurement.model_validate(after) if after else None)
    drawn = {"before_after": plots.before_after(rows, max_asr=max_asr)}
    if seen := [gate for gate in map(GateSeen.model_validate, gates) if gate.path]:
        drawn["gates"] = plots.gates(seen)
    if detected is not None:
        found = DetectResult.model_validate(detected)
        marked: dict[str, list[str]] = {}
        for one in found.hypotheses:
            if one.score >= suspected:
                marked.setdefault(one.kind, []).append(one.aim)
        drawn["suspects"] = plots.suspects(found.sizes, marked, {one.kind: one.unit for one in found.hypotheses})
        drawn["recovered"] = plots.perturbation(np.load(found.shown, allow_pickle=False), titles=[one.text for one in found.hypotheses])
    if purified is not None:
        result = PurifyResult.model_validate(purified)
        if masks := named(Path(result.masks)):
            drawn["masks"] = plots.mask_histogram(masks)
        drawn["history"] = plots.history(result.history)
        if result.perturbation is not None:
            drawn["perturbation"] = plots.perturbation(np.load(result.perturbation, allow_pickle=False), titles=result.hypotheses)
    for name, png in drawn.items():
        (desk.folder / f"{name}.png").write_bytes(png)
    return PlotsResult(plots={name: str(desk.folder / f"{name}.png") for name in drawn})


def record(desk: Desk, *, request: Json) -> BaseModel:
    """Write the audit to MLflow: in a child, since MLflow opens the model that it is given."""
    from pipeline.tracking import RecordRequest, record

    return record(RecordRequest.model_validate(request))


def fetch(desk: Desk, *, request: Json) -> BaseModel:
    """Download a version out of the registry."""
    from pipeline.registry import FetchRequest, fetch

    return fetch(FetchRequest.model_validate(request), desk.folder)


def annotate(desk: Desk, *, request: Json) -> BaseModel:
    """Write onto a version what came of its audit."""
    from pipeline.registry import NoteRequest, annotate

    return annotate(NoteRequest.model_validate(request))


def list_versions(desk: Desk, *, request: Json) -> BaseModel:
    """List versions in the registry."""
    from pipeline.registry import ListRequest, list_versions

    return list_versions(ListRequest.model_validate(request))


def open_log(desk: Desk, *, request: Json) -> BaseModel:
    """Begin the MLflow run of a fleet."""
    from pipeline.logbook import OpenRequest, open_log

    return open_log(OpenRequest.model_validate(request))


def close_log(desk: Desk, *, request: Json) -> BaseModel:
    """Finish the MLflow run of a fleet."""
    from pipeline.logbook import CloseRequest, close_log

    return close_log(CloseRequest.model_validate(request))


STAGES: dict[str, Callable[..., BaseModel]] = {
    "intake": intake,
    "scan": scan,
    "read": read,
    "measure": measure,
    "gates": gates,
    "import": import_model,
    "detect": detect,
    "purify": purify,
    "write-back": write_back,
    "plots": plots,
    "record": record,
    "fetch": fetch,
    "annotate": annotate,
    "list-versions": list_versions,
    "open-log": open_log,
    "close-log": close_log,
}


SLOW = {
    "import": ("pipeline.convert.to_torch", "pipeline.convert.parity"),
    "detect": ("pipeline.convert.to_torch", "pipeline.detect.detect"),
    "purify": ("pipeline.convert.to_torch", "pipeline.purify"),
}
"""What takes seconds to import, by stage."""


def _numbered(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays for an .npz: names of a submitted file are no names of archive members."""
    import numpy as np

    names = np.frombuffer(json.dumps(list(arrays)).encode(), np.uint8)
    return {"names": names, **{str(row): array for row, array in enumerate(arrays.values())}}


def named(path: Path) -> dict[str, Any]:
    """What `_numbered` wrote: initializer name -> array."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[str(row)] for row, name in enumerate(json.loads(archive["names"].tobytes()))}


def main() -> None:
    """Run one stage, as a child of `pipeline.sandbox`."""
    name = sys.argv[1]
    descriptor, parent, memory, file_size = map(int, sys.argv[2:6])
    confine(parent=parent, memory=memory, file_size=file_size)
    with os.fdopen(descriptor, "w", buffering=1) as line:

        def send(event: Json) -> None:
            line.write(json.dumps(event) + "\n")
            line.flush()

        try:
            for module in SLOW.get(name, ()):
                import_module(module)
            given = json.load(sys.stdin)
            answer = STAGES[name](Desk(Path(given["folder"]), send), **given["request"])
            send({"event": "answer", "answer": answer.model_dump(mode="json")})
        except AuditError as error:
            send({"event": "error", "type": type(error).__name__, "text": str(error)})
        except MemoryError:
            send({"event": "error", "type": StageFailed.__name__, "text": f"the {name} stage ran into its memory limit, {memory} bytes"})
        except Exception as error:
            traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
            limit = _limit_met(error)
            kind, how = (StageFailed, f"ran into its {limit} limit") if limit else (Defect, "failed")
            send({"event": "error", "type": kind.__name__, "text": f"the {name} stage {how}: {text}"})


def _limit_met(error: Exception) -> str | None:
    """Which limit an exception tells of: allocators, the loader and torch each have words of their own for it."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "file size"
    words = ("allocate memory", "bad_alloc", "failed to map segment", "out of memory")
    return "memory" if any(word in str(error).lower() for word in words) or getattr(error, "errno", None) == errno.ENOMEM else None


if __name__ == "__main__":
    main()
