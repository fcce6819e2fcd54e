"""What the report may drag in."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("pipeline.report", {"torch", "onnx", "onnxruntime", "prefect", "mlflow", "matplotlib", "jinja2"}),
        ("pipeline.report.plots", {"torch", "onnx", "onnxruntime", "prefect", "mlflow", "matplotlib.pyplot"}),
        ("pipeline.report.html", {"torch", "onnx", "onnxruntime", "prefect", "mlflow", "matplotlib"}),
    ],
)
def test_a_renderer_imports_no_engine(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    assert module in loaded
    assert not forbidden & loaded
