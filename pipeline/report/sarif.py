"""report.sarif (SARIF 2.1.0): what speaks against the file, as code scanning shows it.

It is about the submitted file, whatever the gate makes of a repaired one.  `error` is what the verdict rests on; `warning` what keeps from judging, and
findings that the policy lets pass; `note` the rest.  A waived finding is suppressed.  Text from the file is plain text in every message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from pipeline.findings import Finding, Severity, printable
from pipeline.report.model import AuditReport
from pipeline.report.rules import Level, rule_of
from pipeline.report.summary import SENTENCES
from pipeline.verdict import Verdict

Json = dict[str, Any]
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MOST = 5000  # results: code scanning takes 25,000 and shows 5,000; a hostile file can have a million
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
SCORES = {Severity.LOW: "3.0", Severity.MEDIUM: "5.5", Severity.HIGH: "8.0", Severity.CRITICAL: "9.5"}  # on the scale of CVSS, as code scanning sorts


@dataclass(frozen=True, kw_only=True)
class _Result:
    """where: the place in the model, of a finding.  about: what else it is about, of a reason."""

    code: str
    level: Level
    text: str
    where: str = ""
    about: str = ""
    waiver: str = ""


def render_sarif(report: AuditReport) -> bytes:
    """The report as SARIF: the same report gives the same bytes."""
    results = sorted(_results(report), key=lambda result: LEVELS.index(result.level))
    shown, uri = results[:MOST], _uri(report)
    codes = list(dict.fromkeys(result.code for result in shown))
    prints = _fingerprints(report, shown)
    run = {
        "tool": {"driver": {"name": "onnx-audit", "version": report.provenance.version, "rules": [_descriptor(code) for code in codes]}},
        "automationDetails": {"id": f"onnx-audit/{uri}/"},  # the category of the alerts: one for each model of a repository
        "invocations": [_invocation(report, more=len(results) - len(shown))],
        "artifacts": [
            {"location": {"uri": uri}, "roles": ["analysisTarget"], "length": report.model.bytes, "hashes": {"sha-256": report.model.sha256}},
        ],
        "results": [_as_json(result, codes.index(result.code), uri, seen) for result, seen in zip(shown, prints, strict=True)],
        "properties": {"verdict": str(report.verdict)},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2).encode() + b"\n"


def _results(report: AuditReport) -> Iterator[_Result]:
    """The verdict, every finding, and every reason that does not repeat a finding or speak for the file."""
    if report.verdict is not Verdict.ACCEPT:
        code = f"verdict.{report.verdict.lower()}"
        yield _Result(code=code, level=rule_of(code).level, text=SENTENCES[report.verdict])
    decisive = {(reason.code, reason.about) for reason in report.reasons}
    waivers = [reason for reason in report.reasons if reason.code == "finding.waived"]  # in the order of the findings
    level: Level
    for finding in report.findings:
        decides = (finding.rule, finding.where) in decisive
        waiver = None if decides else next((reason for reason in waivers if reason.about == finding.rule), None)
        if waiver is not None:
            waivers.remove(waiver)
        level = "error" if decides else "note" if waiver else _level(finding)
        yield _Result(code=finding.rule, level=level, text=finding.message, where=finding.where, waiver=waiver.text if waiver else "")
    found = {finding.rule for finding in report.findings}
    for reason in report.reasons:
        if reason.code not in found and (level := rule_of(reason.code).level) != "none":
            yield _Result(code=reason.code, level=level, text=reason.text, about=reason.about)


def _level(finding: Finding) -> Level:
    return "warning" if finding.severity.rank >= Severity.MEDIUM.rank else "note"


def _descriptor(code: str) -> Json:
    rule = rule_of(code)
    secure = {"security-severity": SCORES[rule.severity]} if rule.severity in SCORES else {}
    return {
        "id": code,
        "shortDescription": {"text": rule.what},
        "fullDescription": {"text": rule.what},
        "help": {"text": rule.advice or rule.what},
        "properties": {**secure, "tags": [*(["security"] if secure else []), *rule.atlas]},
    }


def _invocation(report: AuditReport, *, more: int) -> Json:
    failed = [f"Stage {stage.name}: {stage.note or 'failed'}" for stage in report.stages if stage.outcome == "failed"]
    said = [("error", text) for text in failed] + ([("note", f"{more} more results are in report.json.")] if more else [])
    notifications = [{"level": level, "message": {"text": _plain(text)}} for level, text in said]
    return {"executionSuccessful": not failed, "toolExecutionNotifications": notifications}


def _as_json(result: _Result, index: int, uri: str, fingerprint: str) -> Json:
    location: Json = {"physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}}}
    if result.where:
        location["logicalLocations"] = [{"fullyQualifiedName": printable(result.where)}]
    return {
        "ruleId": result.code,
        "ruleIndex": index,
        "level": result.level,
        "message": {"text": _plain(result.text)},
        "locations": [location],
        "partialFingerprints": {"primaryLocationLineHash": fingerprint},  # the only name that code scanning reads
        "suppressions": [{"kind": "external", "status": "accepted", "justification": printable(result.waiver)}] if result.waiver else [],
    }


def _fingerprints(report: AuditReport, results: list[_Result]) -> Iterator[str]:
    """The same for the same bytes, rule and place, and for nothing else: what somebody dismissed for one file is not dismissed for the next."""
    seen: Counter[str] = Counter()
    for result in results:
        said = "\n".join((report.model.sha256, result.code, printable(result.where or result.about)))
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        seen[digest] += 1
        yield f"{digest}:{seen[digest]}"


def _plain(text: str) -> str:
    """`text` as a SARIF message: there [words](address) is a link and {0} a placeholder, even in plain text."""
    return re.sub(r"([\\\[\]])", r"\\\1", printable(text)).replace("{", "{{").replace("}", "}}")


def _uri(report: AuditReport) -> str:
    """The file as the command named it, which in CI is its path in the repository; its name alone where that was absolute or is not known."""
    path = PurePosixPath(report.model.path)
    for word in report.provenance.command or ():
        given = PurePosixPath(word)
        count = len(given.parts)
        if count and not given.is_absolute() and ".." not in given.parts and path.parts[-count:] == given.parts:
            return quote(str(given))
    return quote(path.name)
