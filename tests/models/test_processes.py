"""What works side by side works alike."""

from __future__ import annotations

import os

import pytest

from models.processes import processes, side_by_side


def test_whoever_works_on_a_gpu_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with processes(1) as pool:
        assert pool.submit(os.getenv, "CUBLAS_WORKSPACE_CONFIG").result() == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with processes(1) as pool:
        assert pool.submit(os.getenv, "CUBLAS_WORKSPACE_CONFIG").result() == ":16:8", "what somebody chose stays"


def test_one_works_on_a_gpu_and_one_on_each_core() -> None:
    assert (side_by_side("cuda"), side_by_side("cpu"), side_by_side("cuda", 7)) == (1, len(os.sched_getaffinity(0)), 7)
