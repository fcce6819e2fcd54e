"""The file and its graph, looked at without running them: one check a file.

A check takes the parsed model and the folder of its external data, and yields findings.  What makes an audit impossible is no
finding but ModelRefused; what goes wrong inside a check is reported as that check's error, and is never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from onnx import ModelProto

from pipeline.artifact import sha256
from pipeline.errors import AuditError
from pipeline.findings import Check, Finding, Outcome
from pipeline.results import ScanResult
from pipeline.scan.baggage import check_baggage
from pipeline.scan.bypass import check_bypass
from pipeline.scan.control_flow import check_control_flow
from pipeline.scan.determinism import check_determinism
from pipeline.scan.expansion import check_expansion
from pipeline.scan.intake import open_model
from pipeline.scan.interface import check_interface, facts
from pipeline.scan.weights import check_finite, check_sizes

CHECKS: dict[str, Callable[[ModelProto, Path], Iterator[Finding]]] = {
    "file.sizes": check_sizes,
    "file.finite-weights": check_finite,
    "file.baggage": check_baggage,
    "graph.control-flow": check_control_flow,
    "graph.bypass": check_bypass,
    "graph.determinism": check_determinism,
}


def scan(path: Path) -> ScanResult:
    """Run every check on a model that was taken in.  Raises ModelRefused."""
    model = open_model(path)
    check_expansion(model)
    check_interface(model)
    findings: list[Finding] = []
    checks: list[Check] = [Check(name="file.opens", outcome=Outcome.PASSED), Check(name="file.interface", outcome=Outcome.PASSED)]
    for name, check in CHECKS.items():
        try:
            found = list(check(model, path.parent))
        except AuditError:
            raise
        except Exception as error:  # a check that stumbles over a hostile file has not passed
            checks.append(Check(name=name, outcome=Outcome.ERRORED, note=f"{type(error).__name__}: {error}"))
            continue
        findings += found
        checks.append(Check(name=name, outcome=Outcome.FAILED if found else Outcome.PASSED))
    return ScanResult(model=facts(model, sha256=sha256(path), size=path.stat().st_size), findings=findings, checks=checks)
