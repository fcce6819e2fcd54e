"""What several tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import tiny
import torch
from third_party import CORPUS

torch.set_num_threads(1)  # tiny networks are quicker so, most of all on a busy machine
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored, and then so do the commands that tests interrupt


@pytest.fixture(scope="session")
def tiny_backdoored(tmp_path_factory: pytest.TempPathFactory) -> tiny.Backdoored:
    """A small trained classifier with a backdoor, its images and its trigger.  Copy the files before changing them."""
    return tiny.train_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_clean(tmp_path_factory: pytest.TempPathFactory) -> tiny.Backdoored:
    """The same without a backdoor."""
    return tiny.train_tiny(tmp_path_factory.mktemp("clean"), rate=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the test's own, by a shorter name."""
    return tmp_path


@pytest.fixture
def corpus() -> Path:
    """Third-party models, which a user's machine has not."""
    if not CORPUS.is_dir():
        pytest.skip(f"no third-party models at {CORPUS}; $ONNX_AUDIT_CORPUS names another folder")
    return CORPUS
