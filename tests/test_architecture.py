"""The arrows of the design, held by lint, and what no file may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("pipeline", "flows", "models") for path in (ROOT / folder).rglob("*.py"))
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sins(source: str) -> list[str]:
    """What in a source could run code that lies in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"torch.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "onnx.reference.ReferenceEvaluator"}:
                found.append(called)
            if called == "np.load" and not any(word.arg == "allow_pickle" for word in node.keywords):
                found.append("np.load without allow_pickle=False")
            found += ["allow_pickle" for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"]
            found += ["register_custom_ops" for _ in [0] if called.endswith("register_custom_ops_library")]
    return found


def test_the_contracts_between_packages_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Contracts: " in ended.stdout and " 0 broken" in ended.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_what_lies_in_another(path: Path) -> None:
    assert sins(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "np.load('x', allow_pickle=True)", "np.load('x')", "eval('1')",
     "options.register_custom_ops_library('x.so')", "import joblib.numpy_pickle", "yaml.load(x)"],
)  # fmt: skip
def test_the_watchman_sees(source: str) -> None:
    assert sins(source)


def test_the_watchman_lets_pass() -> None:
    assert sins("import numpy as np\nnp.load('x', allow_pickle=False)\nnp.save('x', y, allow_pickle=False)\nmodel.eval()") == []
    assert len(SOURCES) > 40


def test_the_library_is_light_to_import() -> None:
    code = "import sys, pipeline, pipeline.config, pipeline.results, pipeline.sandbox, pipeline.artifact; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    assert "pipeline.config" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "mlflow", "prefect", "matplotlib"}
