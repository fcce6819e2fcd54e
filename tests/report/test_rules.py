"""The codes are written down once, and as the sources and docs/report.md have them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.findings import Severity
from pipeline.report.rules import RULES, rule_of
from pipeline.scan import CHECKS

ROOT = Path(__file__).parents[2]
FOUND = {
    rule: Severity[severity]
    for path in sorted((ROOT / "pipeline" / "scan").glob("*.py"))
    for rule, severity in re.findall(r'rule="([^"]+)",\s*severity=Severity\.(\w+)', path.read_text())
}
REASONS = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "report.md").read_text().split("\n## Reasons\n")[1].split("\n## ")[0], re.MULTILINE)
CODES = sorted({code for cell in REASONS for code in re.findall(r"`([^`]+)`", cell)})


def test_the_sources_were_read() -> None:
    assert len(FOUND) >= 6
    assert len(CODES) > 40


@pytest.mark.parametrize("rule", sorted(FOUND))
def test_a_rule_of_the_scan_is_written_down_with_its_severity_and_check(rule: str) -> None:
    assert RULES[rule].severity == FOUND[rule]
    assert RULES[rule].check in CHECKS


@pytest.mark.parametrize("code", CODES)
def test_every_reason_is_written_down(code: str) -> None:
    assert rule_of(code) in RULES.values()


def test_the_first_pattern_that_fits_holds() -> None:
    assert rule_of("record.failed").level == "note"
    assert rule_of("scan-again.failed").level == "warning"


def test_a_code_that_nobody_wrote_down_is_not_overlooked() -> None:
    assert rule_of("x.y").level == "warning"
