"""junit.xml: the gate as a test suite.

A case fails, or is an error, exactly when `onnx-audit run` does not end with 0; which of the two is the difference between what speaks against the file and
what keeps from judging it.  What the gate lets pass although something speaks against it is skipped, never passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal
from xml.etree import ElementTree

from pipeline.findings import Check, Outcome, printable
from pipeline.report.model import AuditReport
from pipeline.report.rules import rule_of
from pipeline.report.summary import SENTENCES, rate_text, target_text, why
from pipeline.results import Attack, Measurement
from pipeline.verdict import Reason, Verdict

NAME: Final = "onnx-audit"
MOST = 50  # lines of a case: report.json has them all
COUNTED: Final = {"failures": "failure", "errors": "error", "skipped": "skipped"}


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One thing that was judged.  message: why, in a line.  lines: what there is to know."""

    group: str
    name: str
    outcome: Literal["passed", "failure", "error", "skipped"] = "passed"
    message: str = ""
    lines: tuple[str, ...] = ()
    seconds: float = 0.0


def render_junit(report: AuditReport, *, accept_repaired: bool = False) -> bytes:
    """The report as JUnit XML.  accept_repaired: as the option of `onnx-audit run`, REPAIRED passes."""
    opens = report.verdict.exit_code(accept_repaired=accept_repaired) == 0
    cases = [
        *_stages(report, opens),
        *_checks(report, opens),
        *_figures(report, opens),
        _search(report, opens),
        _parity(report, opens),
        _verdict(report, opens),
    ]
    counts = {plural: str(sum(case.outcome == outcome for case in cases)) for plural, outcome in COUNTED.items()}
    totals = {"name": NAME, "tests": str(len(cases)), **counts, "time": f"{sum(case.seconds for case in cases):.3f}"}
    suites = ElementTree.Element("testsuites", totals)
    suite = ElementTree.SubElement(suites, "testsuite", totals)
    for case in cases:
        _write(suite, case)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _write(suite: ElementTree.Element, case: _Case) -> None:
    """XML has no characters for much of what a hostile name can hold: all text passes `printable` here."""
    given = {"classname": f"{NAME}.{case.group}", "name": printable(case.name), "time": f"{case.seconds:.3f}"}
    element = ElementTree.SubElement(suite, "testcase", given)
    more = [f"{len(case.lines) - MOST} more are in report.json"] if len(case.lines) > MOST else []
    text = "\n".join(printable(line) for line in [*case.lines[:MOST], *more])
    if case.outcome == "passed":
        holder = ElementTree.SubElement(element, "system-out") if text else element
    else:
        holder = ElementTree.SubElement(element, case.outcome, {"message": printable(case.message)})
    holder.text = text or None


def _judged(group: str, name: str, reasons: list[Reason], lines: tuple[str, ...], *, opens: bool) -> _Case:
    """A case that fails by the reasons it is about."""
    against = [reason for reason in reasons if rule_of(reason.code).level in ("error", "warning")]
    if not against:
        return _Case(group=group, name=name, lines=lines)
    fails = any(rule_of(reason.code).level == "error" for reason in against)
    said = tuple(f"{reason.code}: {reason.text}" for reason in against)
    return _Case(group=group, name=name, outcome="skipped" if opens else "failure" if fails else "error", message=against[0].text, lines=said + lines)


def _stages(report: AuditReport, opens: bool) -> Iterator[_Case]:
    for stage in report.stages:
        missed: Literal["error", "skipped"] = "error" if stage.outcome == "failed" and not opens else "skipped"
        outcome = "passed" if stage.outcome in ("ran", "reused") else missed
        yield _Case(group="stages", name=stage.name, outcome=outcome, message=stage.note or stage.outcome, seconds=stage.seconds)


def _checks(report: AuditReport, opens: bool) -> Iterator[_Case]:
    for check in report.checks:
        if check.outcome == Outcome.FAILED:
            yield _found(report, check, opens)
        elif check.outcome == Outcome.PASSED:
            yield _Case(group="scan", name=check.name)
        else:
            missed = opens or check.outcome == Outcome.SKIPPED
            yield _Case(group="scan", name=check.name, outcome="skipped" if missed else "error", message=check.note or check.outcome)


def _found(report: AuditReport, check: Check, opens: bool) -> _Case:
    """A check that found something: it fails if the verdict rests on that."""
    found = [finding for finding in report.findings if rule_of(finding.rule).check == check.name]
    if not found:  # of a rule that nobody wrote down
        return _Case(group="scan", name=check.name, outcome="skipped" if opens else "error", message=check.note or check.outcome)
    rules = {finding.rule for finding in found}
    lines = tuple(f"{finding.severity} {finding.rule} {finding.where}: {finding.message}" for finding in found)
    case = _judged("scan", check.name, [reason for reason in report.reasons if reason.code in rules], lines, opens=opens)
    waived = [reason.text for reason in report.reasons if reason.code == "finding.waived" and reason.about in rules]
    return replace(case, outcome="skipped", message=waived[0]) if waived and case.outcome == "passed" else case


def _figures(report: AuditReport, opens: bool) -> Iterator[_Case]:
    """Accuracy and every trigger, of the submitted and of the repaired file."""
    for which, measured in (("submitted", report.submitted), ("purified", report.purified)):
        if measured is None:
            undone = [reason for reason in report.reasons if which == "purified" and reason.code == "purify.not-done"]
            reason = why(report, "submitted" if which == "submitted" else "purified")
            yield _judged(which, "measured", undone, (), opens=opens) if undone else _Case(group=which, name="measured", outcome="skipped", message=reason)
        else:
            yield from _measured(report, which, measured, opens)


def _measured(report: AuditReport, which: str, measured: Measurement, opens: bool) -> Iterator[_Case]:
    names = {attack.name for attack in measured.attacks}
    rest = [reason for reason in report.reasons if reason.about not in names and reason.code.startswith(f"{which}.")]
    few = [reason for reason in report.reasons if which == "submitted" and reason.code == "images.too-few" and not reason.about]
    yield _judged(which, "accuracy", rest + few, (f"ACC {rate_text(measured.clean)}",), opens=opens)
    for attack in measured.attacks:
        codes = {f"{which}.asr"} | ({"images.too-few", "trigger.no-effect"} if which == "submitted" else set())
        about = [reason for reason in report.reasons if reason.code in codes and reason.about == attack.name]
        lines = (f"ASR {rate_text(attack.asr)}", f"RA {rate_text(attack.ra)}")
        yield _judged(which, _called(attack, report.labels), about, lines, opens=opens)


def _called(attack: Attack, labels: list[str] | None) -> str:
    return f"trigger {attack.name}, to {target_text(attack.target, labels, attack.source)}"


def _search(report: AuditReport, opens: bool) -> _Case:
    reasons = [reason for reason in report.reasons if reason.code in ("detect.suspected", "detect.absent")]
    if report.detection is None and not reasons:
        return _Case(group="search", name="unknown triggers", outcome="skipped", message=why(report, "detection"))
    lines = () if report.detection is None else (f"P(backdoored) {report.detection.score:.2f}, suspected from {report.detection.threshold:g}",)
    return _judged("search", "unknown triggers", reasons, lines, opens=opens)


def _parity(report: AuditReport, opens: bool) -> _Case:
    if report.parity is None:
        return _Case(group="import", name="parity", outcome="skipped", message=why(report, "parity"))
    reasons = [reason for reason in report.reasons if reason.code == "import.parity"]
    return _judged("import", "parity", reasons, (f"largest relative difference {report.parity.max_relative_difference:.2g}",), opens=opens)


def _verdict(report: AuditReport, opens: bool) -> _Case:
    """The case that makes the suite fail with the command, whatever else there is."""
    closed: Literal["failure", "error"] = "error" if report.verdict is Verdict.INCONCLUSIVE else "failure"
    lines = tuple(f"{reason.code}: {reason.text}" for reason in report.reasons)
    sentence = f"{report.verdict}: {SENTENCES[report.verdict]}"
    return _Case(group="gate", name="verdict", outcome="passed" if opens else closed, message=sentence, lines=(sentence, *lines))
