"""Long work side by side: processes of their own, which share the cores."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from pipeline.allocator import keep_freed_memory
from pipeline.sandbox import die_with


def side_by_side(device: str, workers: int | None = None) -> int:
    """How many at once: what was asked for, else one a core, and one on a GPU."""
    return workers or (1 if device == "cuda" else len(os.sched_getaffinity(0)))


def processes(count: int, *, threads: int | None = None) -> ProcessPoolExecutor:
    """So many processes, which end with this one.  threads: of each; by default its share of the cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads take the cores from one another, and from whatever else runs here
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what PyTorch asks for to be deterministic on CUDA
    threads = threads or max(1, len(os.sched_getaffinity(0)) // count)
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(), threads))


def _begin(parent: int, threads: int) -> None:
    die_with(parent)
    keep_freed_memory()
    torch.set_num_threads(threads)
