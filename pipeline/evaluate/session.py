"""A model file as a classifier of pictures, run by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it is read at import: onnxruntime would tell its maker about the model

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.errors import DeviceUnavailable, ModelRefused
from pipeline.findings import printable
from pipeline.images import InputSpec

FLOATS: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}  # ten bits of mantissa would not pass for parity
ort.set_default_logger_severity(3)


def open_session(model: Path | bytes, *, device: str, threads: int | None = None) -> ort.InferenceSession:
    """Open a session on `auto`, `cpu` or `cuda`.  threads: of a CPU; by default one a core.

    Only what runs counts: a silent fall from CUDA to CPU is DeviceUnavailable when CUDA was asked for.  Raises ModelRefused when
    onnxruntime cannot load the file.
    """
    if device != "cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # the CUDA libraries that came with torch
    wanted = ["cpu"] if device == "cpu" else ["cuda", "cpu"]
    available = ort.get_available_providers()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[(PROVIDERS[name], OPTIONS[name]) for name in wanted if PROVIDERS[name] in available],
        )
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        raise ModelRefused(f"onnxruntime cannot load the model: {_first_line(error)}") from error
    if device == "cuda" and session.get_providers()[0] != PROVIDERS["cuda"]:
        raise DeviceUnavailable(
            "CUDA was asked for, and onnxruntime has no CUDA device it can use here: use --device cpu or auto, or install the CUDA libraries"
        )
    return session


class Classifier:
    """Scores of pictures, batch by batch.

    `reading` turns pictures into tensors.  A model with a fixed batch is fed that many at a time, the last ones padded.  output: the
    one that holds the scores; the first float one by default.  probabilities: that they are, which matters where one number an
    image is all there is: see `pair`.  device, threads: as `open_session` has them.
    """

    def __init__(
        self,
        model: Path | bytes,
        reading: InputSpec,
        *,
        device: str = "auto",
        threads: int | None = None,
        output: str | None = None,
        probabilities: bool = False,
    ) -> None:
        self.reading = reading
        self.probabilities = probabilities
        self.session = open_session(model, device=device, threads=threads)
        self.provider: str = self.session.get_providers()[0]
        self.input = self.session.get_inputs()[0]
        outputs = self.session.get_outputs()
        self.floats: list[str] = [value.name for value in outputs if value.type in FLOATS]
        self.output: str = output or next(iter(self.floats), outputs[0].name)
        self.kind = FLOATS.get(self.input.type, np.float32)
        self.shape = [axis if isinstance(axis, int) and axis > 0 else None for axis in self.input.shape]

    def __call__(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, H, W, C) float32 pictures in 0..1 -> (N, K) float32 scores, K of at least 2.  Raises ModelRefused."""
        return pair(self.rows(pictures, [self.output])[self.output], probabilities=self.probabilities)

    def rows(self, pictures: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The same pictures -> those of the `outputs` that answer one row an image, as (N, K) float32.  Raises ModelRefused when none does."""
        x = self.tensor(pictures)
        size = self.shape[0] or len(x)
        answers = [self._run(x[i : i + size], outputs) for i in range(0, len(x), size)]
        batches = dict(zip(outputs, zip(*answers, strict=True), strict=True))
        found = {name: rows[: len(pictures)] for name, parts in batches.items() if (rows := _rows(parts, size)) is not None}
        if not found:
            shown = ", ".join(f"{np.shape(part)} {np.asarray(part).dtype}" for part in answers[0][:4])
            raise ModelRefused(f"a classifier answers one row of scores an image; this model answers {shown} to {size} images")
        return found

    def values(self, pictures: NDArray[np.float32], names: Sequence[str]) -> list[NDArray[Any]]:
        """What these outputs are for one batch of pictures, in whatever shape; a fixed batch is filled up.  Raises ModelRefused."""
        return [np.asarray(value) for value in self._run(self.tensor(pictures[: self.shape[0]]), names)]

    def tensor(self, pictures: NDArray[np.float32]) -> NDArray[Any]:
        """(N, H, W, C) pictures in 0..1 -> the model's own type and shape, the last picture repeated to fill a fixed batch."""
        x = self.reading.tensor(pictures).astype(self.kind, copy=False)
        if self.reading.layout == "flat":  # the model may have axes of length 1 around the flat one
            x = x.reshape([len(x), *(axis or -1 for axis in self.shape[1:])])
        missing = -len(x) % (self.shape[0] or 1)
        return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x

    def _run(self, x: NDArray[Any], outputs: Sequence[str]) -> list[Any]:
        try:
            return list(self.session.run(list(outputs), {self.input.name: x}))
        except Exception as error:  # as above
            raise ModelRefused(f"onnxruntime cannot run the model on {x.shape} tensors: {_first_line(error)}") from error


def _rows(answers: Sequence[Any], images: int) -> NDArray[np.float32] | None:
    """What an output answers to batches of so many images as (N, K) rows; None when it is no such thing."""
    batches = [np.asarray(answer) for answer in answers]
    first = batches[0]
    rows = first.shape[:1] == (images,) and first.size > 0 and sum(axis > 1 for axis in first.shape[1:]) <= 1
    if not rows or not np.issubdtype(first.dtype, np.floating) or any(batch.shape != first.shape for batch in batches):
        return None
    return np.concatenate([batch.reshape(images, -1) for batch in batches]).astype(np.float32)


def pair(scores: NDArray[np.float32], *, probabilities: bool) -> NDArray[np.float32]:
    """(N, K) scores as they are, and those of one unit as (N, 2): label 1 is the unit, label 0 its complement.

    A probability p becomes [1 - p, p], a logit z becomes [0, z].
    """
    if scores.shape[1] > 1:
        return scores
    return np.concatenate([1 - scores if probabilities else np.zeros_like(scores), scores], axis=1)


def run_all(model: bytes, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Every output of a model by name, on the CPU, for one tensor."""
    session = open_session(model, device="cpu")
    names = [output.name for output in session.get_outputs()]
    return {name: np.asarray(value) for name, value in zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True)}


def probable(scores: NDArray[np.float32]) -> bool:
    """Whether (N, K) scores look like probabilities: none negative, each row summing to 1; of one unit, each in 0..1."""
    return improbable_rows(pair(scores, probabilities=True)) == 0


def improbable_rows(scores: NDArray[np.float32]) -> int:
    """How many of (N, K) rows, K of at least 2, are no probabilities."""
    return int(((scores < 0).any(1) | ~np.isclose(scores.sum(1), 1, atol=1e-3)).sum())


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
