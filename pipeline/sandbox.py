"""Run a stage in a child process that can be killed, with limits.

A submitted model may hang, fill the memory or crash whatever opens it, and a thread stuck in C++ ignores everything but
SIGKILL.  So each stage runs in a process group of its own under a wall clock and rlimits; JSON goes in, JSON comes out, and
death by signal, time or memory is an outcome with a name.

The child writes JSON lines on a descriptor of its own; its stdout and stderr are kept for the error message only.

    {"event": "progress", "text": "AWM", "done": 3, "total": 20, "metrics": {"loss": 0.4}}
    {"event": "answer", "answer": {...}}
    {"event": "error", "type": "ModelRefused", "text": "..."}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifact import Store, is_digest
from pipeline.errors import BY_NAME, Defect, StageFailed, StageKilled
from pipeline.findings import printable

GRACE = 0.05  # seconds between two looks at the clock
MOST_OUTPUT = 64 * 2**20  # bytes of events that a child may send
SECRETS = ("TOKEN", "PASSWORD", "SECRET", "CREDENTIAL", "ACCESS_KEY", "API_KEY", "AWS_", "AZURE_", "GOOGLE_", "MLFLOW_", "DATABRICKS_")
CONNECTED = ("record", "fetch", "annotate", "list-versions", "open-log", "close-log")  # talk to the tracking server, and need what the user has set for it
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a stage may use.

    seconds: wall clock.  memory: bytes of address space; None lifts it, as CUDA must (it reserves far more than it uses).
    file_size: bytes of any one file that is written.
    """

    seconds: float = 900.0
    memory: int | None = 24 * 2**30
    file_size: int = 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage has come: `done` of `total` (0 when not known), and figures worth plotting."""

    stage: str
    text: str
    done: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


Listener = Callable[[Progress], None]


def run(stage: str, request: dict[str, Any], *, store: Store, limits: Limits, listener: Listener | None = None) -> dict[str, Any]:
    """Run one stage of `pipeline.stages` in a child, and return its answer.

    Digests in `request` reach the stage as paths; paths of files that the stage made in its own folder come back as digests.
    Raises the typed error that the stage raised; StageFailed when it was killed or ran into a limit; Defect on a bug of ours.
    """
    with ready(stage, store=store, limits=limits) as ask:
        return ask(request, listener)


@contextmanager
def ready(stage: str, *, store: Store, limits: Limits) -> Iterator[Callable[[dict[str, Any], Listener | None], dict[str, Any]]]:
    """A child that imports what its stage needs while others work, and then answers one request, as `run` says."""
    with store.scratch() as folder:
        (folder / "out").mkdir()
        with _Child(stage, folder=folder, limits=limits) as child:

            def ask(request: dict[str, Any], listener: Listener | None = None) -> dict[str, Any]:
                child.send({"folder": str(folder / "out"), "request": _to_paths(request, store)})
                stored: dict[str, Any] = _to_digests(child.wait(listener), store, folder / "out")
                return stored

            yield ask


def _to_paths(value: Any, store: Store) -> Any:
    if isinstance(value, str) and is_digest(value) and store.holds(value):  # a name in a submitted file may look like one
        return str(store.path(value))
    if isinstance(value, dict):
        return {key: _to_paths(item, store) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_paths(item, store) for item in value]
    return value


def _to_digests(value: Any, store: Store, folder: Path) -> Any:
    if isinstance(value, str) and value.startswith(str(folder) + os.sep):
        path = Path(value)
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file() and not path.is_symlink():
            return store.put(path)
        raise Defect(f"a stage named a file that is not in its own folder: {printable(value)}")
    if isinstance(value, dict):
        return {key: _to_digests(item, store, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_digests(item, store, folder) for item in value]
    return value


class _Child:
    """One running stage.  Leaving the context kills its whole process group, whatever happened."""

    def __init__(self, stage: str, *, folder: Path, limits: Limits) -> None:
        self.stage = stage
        self.limits = limits
        self.log = folder / "log"
        self.reached = ""  # how far it has come, where it says so
        self.read_end, write_end = os.pipe()
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "pipeline.stages", stage, *map(str, (write_end, os.getpid(), limits.memory or 0, limits.file_size))],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_end,),
                    start_new_session=True,
                    cwd=folder,
                    env=_environment(stage),
                )
        except BaseException:
            os.close(self.read_end)
            raise
        finally:
            os.close(write_end)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself, with all that it had started
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        os.close(self.read_end)

    def send(self, request: dict[str, Any]) -> None:
        """Send the one request."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as line:  # of a child that has died, `wait` tells why
            line.write(json.dumps(request).encode())

    def wait(self, listener: Listener | None) -> dict[str, Any]:
        deadline = time.monotonic() + self.limits.seconds
        received, buffer = 0, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.read_end, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._late()
                if not selector.select(left):
                    continue
                chunk = os.read(self.read_end, 65536)
                if not chunk:
                    break
                received += len(chunk)
                if received > MOST_OUTPUT:
                    raise StageFailed(f"the {self.stage} stage sent more than {MOST_OUTPUT} bytes of events")
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    answer = self._event(line, listener)
                    if answer is not None:
                        return answer
        try:
            status = self.process.wait(max(GRACE, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._late() from None
        kind = StageKilled if status < 0 else StageFailed
        raise kind(f"the {self.stage} stage {self._death(status)}")

    def _late(self) -> StageFailed:
        """Said with how far it had come: who gives it more time wants to know how much."""
        return StageFailed(f"the {self.stage} stage was stopped after {self.limits.seconds:g} s, its limit{self.reached}")

    def _event(self, line: bytes, listener: Listener | None) -> dict[str, Any] | None:
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError) as error:
            raise Defect(f"the {self.stage} stage sent an event that is not JSON: {printable(line)}") from error
        if kind == "progress":
            progress = Progress(
                stage=self.stage,
                text=printable(event.get("text", "")),
                done=int(event.get("done", 0)),
                total=int(event.get("total", 0)),
                metrics={str(key): float(value) for key, value in event.get("metrics", {}).items()},
            )
            self.reached = f" ({progress.text} {progress.done} of {progress.total})" if progress.total else ""
            if listener is not None:
                listener(progress)
        elif kind == "answer":
            answer: dict[str, Any] = event["answer"]
            return answer
        elif kind == "error":
            kind_of_error = BY_NAME.get(event["type"], Defect)
            raise kind_of_error(printable(event["text"], limit=2000))
        return None

    def _death(self, status: int) -> str:
        if status < 0:
            try:
                name = signal.Signals(-status).name
            except ValueError:
                name = "unknown"
            return f"was killed by signal {-status} ({name})"
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            log = file.read().decode(errors="replace")
        if "MemoryError" in log or "bad_alloc" in log or "can't allocate memory" in log:
            return f"ran out of memory (limit {self.limits.memory} bytes)"
        last = log.strip().splitlines()[-1:] or ["no output"]
        return f"ended with status {status} and no answer: {printable(last[0])}"


def _environment(stage: str) -> dict[str, str]:
    """What a stage inherits: no secret unless it talks to the tracking server, nothing of Prefect's, and what makes it answer the same twice."""
    hidden = () if stage in CONNECTED else SECRETS
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") and not any(word in name.upper() for word in hidden)}
    roots = [str(Path(__file__).resolve().parents[1]), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(roots),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
        "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime would tell its maker about the model
        # Threads that wait by spinning take the cores from one another when several stages run: 8 times slower was measured.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what PyTorch asks for to be deterministic on CUDA
    }


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def confine(*, parent: int, memory: int, file_size: int) -> None:
    """In the child, before it opens anything: die with the parent, dump no core, keep the limits (0 is none)."""
    die_with(parent)
    for kind, wanted in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size)):
        if wanted or kind == resource.RLIMIT_CORE:
            hard = resource.getrlimit(kind)[1]
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (most, most))
