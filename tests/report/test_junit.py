"""junit.xml: it fails exactly when the command does, and is XML whatever a submitted file's names say."""

from __future__ import annotations

import random
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import BIDI, SCRIPT

from pipeline.findings import Check, Finding, Outcome, Severity
from pipeline.report.junit import MOST, render_junit
from pipeline.report.model import AuditReport, Stage
from pipeline.report.rules import RULES
from pipeline.verdict import Reason, Verdict

GATE = Finding(rule="graph.gate-past-the-weights", severity=Severity.HIGH, message="a gate", where="n3")
FAILED = Check(name="graph.bypass", outcome=Outcome.FAILED)
PASSES = Reason(code="policy.passes", text="Everything passes.")
ASR = Reason(code="submitted.asr", text="Trigger 'trojan' sends 100.0 %.", about="trojan")


def suite_of(report: AuditReport, **options: Any) -> ElementTree.Element:
    suites = ElementTree.fromstring(render_junit(report, **options))
    assert suites.tag == "testsuites"
    (suite,) = suites
    return suite


def cases(report: AuditReport, **options: Any) -> dict[str, str]:
    """The outcome of each case, by its name."""
    return {case.attrib["name"]: outcome(case) for case in suite_of(report, **options)}


def outcome(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag != "system-out"), "passed")


def fails(report: AuditReport, **options: Any) -> bool:
    return bool({"failure", "error"} & set(cases(report, **options).values()))


def synthetic(full: AuditReport, minimal: AuditReport, seed: int) -> AuditReport:
    """A report of anything at all: reasons, checks and stages drawn without sense, sections left out."""
    chance = random.Random(seed)
    names = ["trojan", "all|to|all", GATE.where, "", "graph.bypass"]
    codes = [code.replace("*", chance.choice(["submitted", "purified", "scan", "graph.bypass"])) for code in RULES]
    update: dict[str, Any] = {
        "verdict": chance.choice(list(Verdict)),
        "reasons": [Reason(code=code, text=f"{code} says so", about=chance.choice(names)) for code in chance.sample(codes, chance.randrange(8))],
        "checks": [Check(name=name, outcome=chance.choice(list(Outcome))) for name in ("graph.bypass", "file.baggage", "file.new")],
        "findings": chance.choice([[], [GATE], full.findings]),
        "stages": [Stage(name=name, outcome=chance.choice(["ran", "reused", "failed", "skipped"]), seconds=1.0) for name in ("scan", "plots", "record")],
    }
    update |= {section: chance.choice([None, getattr(full, section)]) for section in ("parity", "submitted", "detection", "purified")}
    return chance.choice([full, minimal]).model_copy(update=update)


@pytest.mark.parametrize("accept_repaired", [False, True])
def test_it_fails_exactly_when_the_command_does(full: AuditReport, minimal: AuditReport, accept_repaired: bool) -> None:
    seen = set()
    for seed in range(400):
        report = synthetic(full, minimal, seed)
        code = report.verdict.exit_code(accept_repaired=accept_repaired)
        assert fails(report, accept_repaired=accept_repaired) == (code != 0), seed
        seen.add(code)
    assert seen == {0, 1, 3}


@pytest.mark.parametrize(
    ("verdict", "accept_repaired", "expected"),
    [
        (Verdict.ACCEPT, False, "passed"),
        (Verdict.REPAIRED, False, "failure"),
        (Verdict.REPAIRED, True, "passed"),
        (Verdict.REJECT, True, "failure"),
        (Verdict.INCONCLUSIVE, True, "error"),
    ],
)
def test_each_verdict(full: AuditReport, verdict: Verdict, accept_repaired: bool, expected: str) -> None:
    assert cases(full.model_copy(update={"verdict": verdict}), accept_repaired=accept_repaired)["verdict"] == expected


def test_counts_and_seconds_are_those_of_the_cases(full: AuditReport) -> None:
    suite = suite_of(full)
    found = [outcome(case) for case in suite]
    assert int(suite.attrib["tests"]) == len(found) > 15
    for plural, one in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[plural]) == found.count(one) > 0
    assert float(suite.attrib["time"]) == pytest.approx(sum(stage.seconds for stage in full.stages), abs=0.01)


def test_a_trigger_that_works_fails_unless_the_repaired_file_is_what_ships(full: AuditReport) -> None:
    report = full.model_copy(update={"reasons": [ASR]})
    name = "trigger trojan, to 2 (bird)"
    for accept_repaired, expected in ((False, "failure"), (True, "skipped")):
        found = {case.attrib["classname"]: outcome(case) for case in suite_of(report, accept_repaired=accept_repaired) if case.attrib["name"] == name}
        assert found == {"onnx-audit.submitted": expected, "onnx-audit.purified": "passed"}


def test_a_trigger_that_works_still_fails_in_the_repaired_file(full: AuditReport) -> None:
    report = full.model_copy(update={"verdict": Verdict.REJECT, "reasons": [ASR.model_copy(update={"code": "purified.asr"})]})
    (case,) = [case for case in suite_of(report) if case.attrib["classname"] == "onnx-audit.purified" and "trojan" in case.attrib["name"]]
    (failure,) = case
    assert failure.tag == "failure"
    assert failure.attrib["message"] == ASR.text
    assert "ASR 2.3 %" in str(failure.text)


def test_a_finding_fails_its_check(full: AuditReport) -> None:
    reason = Reason(code=GATE.rule, text="a gate (n3)", about="n3")
    report = full.model_copy(update={"verdict": Verdict.REJECT, "reasons": [reason], "findings": [GATE], "checks": [FAILED]})
    assert cases(report)["graph.bypass"] == "failure"


def test_a_waived_finding_is_skipped_and_one_below_the_policy_passes(full: AuditReport) -> None:
    report = full.model_copy(update={"verdict": Verdict.ACCEPT, "reasons": [PASSES], "findings": [GATE], "checks": [FAILED]})
    assert cases(report)["graph.bypass"] == "passed"
    waived = Reason(code="finding.waived", text="waived by ann", about=GATE.rule)
    assert cases(report.model_copy(update={"reasons": [PASSES, waived]}))["graph.bypass"] == "skipped"


def test_a_check_that_found_something_unheard_of_has_not_passed(full: AuditReport) -> None:
    report = full.model_copy(update={"findings": [], "checks": [FAILED]})
    assert cases(report.model_copy(update={"verdict": Verdict.REJECT}))["graph.bypass"] == "error"
    assert cases(report.model_copy(update={"verdict": Verdict.ACCEPT}))["graph.bypass"] == "skipped"


@pytest.mark.parametrize(("code", "expected"), [("detect.suspected", "failure"), ("detect.absent", "error")])
def test_the_search(full: AuditReport, code: str, expected: str) -> None:
    report = full.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reasons": [Reason(code=code, text="so")]})
    assert cases(report)["unknown triggers"] == expected
    assert cases(report.model_copy(update={"reasons": []}))["unknown triggers"] == "passed"


def test_what_was_not_looked_at_says_why(minimal: AuditReport) -> None:
    found = cases(minimal)
    assert found["scan"] == "error"
    assert {found[name] for name in ("measure", "measured", "unknown triggers", "parity")} == {"skipped"}
    messages = {case.attrib["name"]: case[0].attrib["message"] for case in suite_of(minimal) if len(case)}
    assert messages["scan"] == "killed after 60 s"
    assert messages["measured"] == "the scan failed"


FORBIDDEN = [chr(code) for code in [*range(0x20), 0x7F, 0x85, 0x202E, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF, 0x1FFFE]]


def test_what_xml_cannot_hold_does_not_break_it(full: AuditReport) -> None:
    hostile = f"]]>&<!--{''.join(FORBIDDEN)}{SCRIPT}{BIDI}"
    assert full.submitted is not None
    attack = full.submitted.attacks[0].model_copy(update={"name": hostile})  # past the types that clean it
    update = {
        "submitted": full.submitted.model_copy(update={"attacks": [attack]}),
        "reasons": [Reason.model_construct(code="submitted.asr", text=hostile, about=hostile)],
        "stages": [Stage.model_construct(name=hostile, outcome="failed", seconds=1.0, note=hostile)],
        "findings": [GATE.model_copy(update={"message": hostile, "where": hostile})],
        "checks": [FAILED],
    }
    xml = render_junit(full.model_copy(update=update))
    assert not [character for character in FORBIDDEN if character != "\n" and character in xml.decode()]
    (stage,) = [case for case in ElementTree.fromstring(xml).iter("testcase") if case.attrib["classname"] == "onnx-audit.stages"]
    assert stage.attrib["name"].startswith("]]>&<!--") and SCRIPT in stage.attrib["name"]
    assert {case.tag for case in ElementTree.fromstring(xml).iter()} <= {"testsuites", "testsuite", "testcase", "failure", "error", "skipped", "system-out"}


def test_a_flood_of_findings_is_cut_and_counted(full: AuditReport) -> None:
    report = full.model_copy(update={"verdict": Verdict.ACCEPT, "findings": [GATE] * (MOST + 7), "reasons": [PASSES], "checks": [FAILED]})
    (case,) = [case for case in suite_of(report) if case.attrib["name"] == "graph.bypass"]
    lines = str(case[0].text).splitlines()
    assert len(lines) == MOST + 1
    assert lines[-1] == "7 more are in report.json"


def test_the_same_report_gives_the_same_bytes(full: AuditReport) -> None:
    assert render_junit(full, accept_repaired=True) == render_junit(full, accept_repaired=True)
