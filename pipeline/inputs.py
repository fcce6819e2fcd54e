"""What an audit is given, brought into the store: a spec, images split in two, triggers with their files."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.artifact import ModelArtifact, Store
from pipeline.config import AuditSpec, Data
from pipeline.errors import BadInput, ImagesRefused, SpecRefused
from pipeline.images import CalibrationSet, HoldoutSet, LabelledImages, read, shared, split
from pipeline.provenance import version
from pipeline.results import Value
from pipeline.sandbox import Limits


class Inputs(Value):
    """JSON all through, files as digests, so that it can key what is computed from it.

    calibration, holdout: {"images": digest, "labels": digest}.  triggers: as in the spec, with digests for paths, and target and
    source resolved.  shape: (H, W, C) of the images.  calibrated: the classes that calibration images are of.
    """

    calibration: dict[str, str]
    holdout: dict[str, str]
    triggers: list[dict[str, Any]]
    shape: tuple[int, int, int]
    calibrated: frozenset[int]


class Job(Value):
    """An audit that any machine can make that has the store: no path is in it, and every file is a digest.

    name: what the model is called in the report and the record.  spec: without images and triggers, which `inputs` holds.
    """

    name: str
    model: ModelArtifact
    spec: AuditSpec
    inputs: Inputs
    seed: int = 0
    device: str = "auto"

    @classmethod
    def of(cls, name: str, model: ModelArtifact, spec: AuditSpec, inputs: Inputs, **how: Any) -> Job:
        """A job of what `prepare` has prepared."""
        return cls(name=name, model=model, spec=spec.model_copy(update={"data": Data(), "triggers": []}), inputs=inputs, **how)

    @property
    def key(self) -> str:
        """What its audit follows from, when no stage fails: see `audit_key`."""
        return audit_key(self.model.digest, self.spec, self.inputs, seed=self.seed, device=self.device)


def audit_key(model: str, spec: AuditSpec, inputs: Inputs, *, seed: int, device: str, failures: Collection[str] = ()) -> str:
    """SHA-256, in hex, of everything that the result follows from, and of what failed: the same key is the same result.

    model: digest of the artifact.
    """
    settings = spec.model_dump(mode="json", exclude={"data", "triggers", "limits"})
    images = {"calibration": inputs.calibration, "holdout": inputs.holdout}
    holding = [waiver.expires >= today() for waiver in spec.policy.waivers]
    return digest([model, settings, images, inputs.triggers, seed, device, version(), sorted(failures), holding])


def today() -> datetime.date:
    """The day, in UTC, that waivers expire by."""
    return datetime.datetime.now(datetime.UTC).date()


def prepare(spec: AuditSpec, data: Path | None, *, seed: int, store: Store) -> Inputs:
    """Read, check, split and keep everything but the model.  Raises BadInput."""
    calibration, holdout = _images(spec, data, seed)
    shape = calibration.images.shape[1:]
    if holdout.images.shape[1:] != shape:
        raise ImagesRefused(f"calibration images are {shape} and hold-out images {holdout.images.shape[1:]}; one size is expected")
    triggers = []
    for trigger in spec.triggers:
        aims = {"target": spec.target_of(trigger), "source": spec.source_of(trigger)}
        try:
            trigger.build(shape[2])(holdout.pictures()[:1])
        except ValueError as error:
            raise SpecRefused(f"trigger {trigger.name!r}: {error}") from error
        files = {field: store.put(Path(path)) for field, path in trigger.files().items()}
        triggers.append({**trigger.model_dump(mode="json"), **files, **aims})
    classes = frozenset(map(int, calibration.labels))
    return Inputs(calibration=_keep(calibration, store), holdout=_keep(holdout, store), triggers=triggers, shape=shape, calibrated=classes)


def _images(spec: AuditSpec, data: Path | None, seed: int) -> tuple[CalibrationSet, HoldoutSet]:
    one = data or spec.data.images
    if one is not None:
        return split(read(one, labels=spec.labels), calibration=spec.purify.images, seed=seed)
    if spec.data.calibration is None or spec.data.holdout is None:
        raise SpecRefused("no images: give --data IMAGES, or `data` with `calibration` and `holdout` (or `images`, to be split) in the spec")
    calibration = read(spec.data.calibration, labels=spec.labels)
    holdout = read(spec.data.holdout, labels=spec.labels)
    if equal := shared(calibration, holdout):
        raise ImagesRefused(f"{equal} hold-out images also lie among the calibration images; what judges a repair must not have made it")
    if spec.purify.images is not None and spec.purify.images < len(calibration):
        calibration, _ = split(calibration, calibration=spec.purify.images, seed=seed)
    return CalibrationSet(calibration.images, calibration.labels), HoldoutSet(holdout.images, holdout.labels)


def _keep(images: LabelledImages, store: Store) -> dict[str, str]:
    with store.scratch() as folder:
        return {name: store.put(path) for name, path in images.save(folder).items()}


def digest(value: Any) -> str:
    """SHA-256, in hex, of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_model_path(path: Path, *, most_bytes: float) -> Path:
    """An existing plain file, made absolute.  Raises BadInput."""
    if not path.exists():
        raise BadInput(f"there is no file {path}: give the path of an .onnx model")
    if not path.is_file():
        raise BadInput(f"{path} is not a file: give the path of an .onnx model")
    if path.stat().st_size > most_bytes:
        raise BadInput(f"{path} has {path.stat().st_size} bytes; the limit is {most_bytes:.0f} (`limits.file_gib` in the spec)")
    return path.resolve()  # a link of the user's own, as caches make them, is followed here and nowhere else


def limits(spec: AuditSpec, device: str) -> Limits:
    """The spec's limits; CUDA reserves more address space than there is memory, so the limit on that is lifted where it may run."""
    cuda = device == "cuda" or (device == "auto" and Path("/dev/nvidiactl").exists())
    return Limits(seconds=spec.limits.seconds, memory=None if cuda else int(spec.limits.memory_gib * 2**30))
