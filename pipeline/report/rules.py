"""What the codes of findings and reasons mean, for readers who meet them outside the report."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

from pipeline.findings import Severity

Level = Literal["error", "warning", "note", "none"]
MODEL, POISONED, REBUILT = "AML.T0010.003", "AML.T0018.000", "AML.T0018.001"  # MITRE ATLAS: supply chain, poisoned model, changed architecture


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a code means.

    level: as a reason of the verdict: `error` speaks against the file, `warning` keeps from judging it, `note` changes nothing, `none` speaks for it or
    says what another code says.  severity: None where it is not about security.  atlas: techniques of MITRE ATLAS.  check: of the scan, that finds it.
    """

    what: str
    advice: str
    level: Level
    severity: Severity | None = None
    atlas: tuple[str, ...] = ()
    check: str = ""


_UNKNOWN: Final = Rule(what="Something that the audit says of the file.", advice="Read report.html.", level="warning")
_AGAIN: Final = "More calibration images, or the other preset; else reject the file."

RULES: Final[dict[str, Rule]] = {
    "verdict.reject": Rule(what="The audit rejects the file.", advice="Do not deploy the file.", level="error", severity=Severity.HIGH, atlas=(MODEL,)),
    "verdict.repaired": Rule(
        what="The submitted file fails the policy, and a repaired file passes it.",
        advice="Never deploy the submitted file; deploy the repaired one if your policy allows repairs.",
        level="error",
        severity=Severity.HIGH,
        atlas=(MODEL,),
    ),
    "verdict.inconclusive": Rule(what="The audit cannot judge the file.", advice="Do not deploy the file before it can be judged.", level="warning"),
    "graph.gate-past-the-weights": Rule(
        what="The pixels decide something that reaches the scores past the learned layers.",
        advice="Deploy the file it was cut out of, where there is one; else reject: a change of weights is no repair of it.",
        level="error",
        severity=Severity.HIGH,
        atlas=(REBUILT, MODEL),
        check="graph.bypass",
    ),
    "graph.data-dependent-control-flow": Rule(
        what="Which branch runs, or how often a loop does, depends on the pixels.",
        advice="Deploy the file it was cut out of, where there is one; else reject: no image classifier needs it.",
        level="error",
        severity=Severity.HIGH,
        atlas=(REBUILT, MODEL),
        check="graph.control-flow",
    ),
    "graph.nondeterministic": Rule(
        what="Chance, or the other images of a batch, has a say in the answers.",
        advice="Ask the vendor why; what is measured on the file is one draw.",
        level="error",
        severity=Severity.MEDIUM,
        atlas=(MODEL,),
        check="graph.determinism",
    ),
    "file.non-finite-weights": Rule(
        what="Stored weights are NaN or infinite.",
        advice="Reject, or ask the vendor why, if it is a constant such as a mask.",
        level="error",
        severity=Severity.HIGH,
        atlas=(MODEL,),
        check="file.finite-weights",
    ),
    "file.training-info": Rule(
        what="The file carries training graphs.",
        advice="Ask the vendor for the file without them.",
        level="error",
        severity=Severity.MEDIUM,
        atlas=(MODEL,),
        check="file.baggage",
    ),
    "file.oversized-text": Rule(
        what="The file carries very much text.",
        advice="Look at what the text is.",
        level="error",
        severity=Severity.LOW,
        atlas=(MODEL,),
        check="file.baggage",
    ),
    "gates.not-cut": Rule(  # the gate is a finding of its own, which speaks against the file unless it is waived
        what="Gates past the learned layers stay in the graph.", advice="Ask the vendor for a file without them.", level="note"
    ),
    "finding.waived": Rule(what="Somebody answers for a finding.", advice="", level="none"),  # said by the finding, which is suppressed
    "submitted.asr": Rule(
        what="A trigger works in the submitted file.",
        advice="Look whether the repaired file passes; else reject.",
        level="error",
        severity=Severity.HIGH,
        atlas=(POISONED, MODEL),
    ),
    "purified.asr": Rule(what="A trigger still works in the repaired file.", advice=_AGAIN, level="error", severity=Severity.HIGH, atlas=(POISONED, MODEL)),
    "detect.suspected": Rule(
        what="The search for unknown triggers suspects a backdoor.",
        advice="Look at the picture in report.html; deploy the repaired file, or reject.",
        level="error",
        severity=Severity.HIGH,
        atlas=(POISONED, MODEL),
    ),
    "submitted.accuracy": Rule(
        what="Clean accuracy is below what the policy asks for.", advice="Check `input` and the labels in audit.yaml first.", level="error"
    ),
    "purified.accuracy": Rule(what="The accuracy of the repaired file is below what the policy asks for.", advice=_AGAIN, level="error"),
    "purified.accuracy-drop": Rule(what="The repair costs too much accuracy.", advice=_AGAIN, level="error"),
    "purified.class-drop": Rule(what="The repair costs too much accuracy on a class.", advice=_AGAIN, level="error"),
    "purify.not-done": Rule(what="The weights fail, and nothing was repaired.", advice="Let `purify.when` in audit.yaml be `auto`, or reject.", level="error"),
    "policy.passes": Rule(what="The file passes the policy.", advice="", level="none"),
    "purify.passes": Rule(what="The repaired file passes the policy.", advice="", level="none"),
    "detect.absent": Rule(what="No search for unknown triggers came to its end.", advice="More `detect.seconds` in audit.yaml, or a GPU.", level="warning"),
    "measure.absent": Rule(what="The submitted file was not measured.", advice="Read the reason beside this one.", level="warning"),
    "images.too-few": Rule(what="There are too few hold-out images.", advice="Give more images.", level="warning"),
    "*.missing-classes": Rule(what="There is no image of some class.", advice="Give images of every class.", level="warning"),
    "trigger.no-effect": Rule(what="A known trigger changes no pixel.", advice="Check its place, mask and strength.", level="warning"),
    "import.parity": Rule(
        what="onnxruntime and the differentiable copy differ.", advice="The file can be measured, not repaired; report the operator.", level="warning"
    ),
    "*.constant": Rule(what="Every clean image gets one class.", advice="Check `input` in audit.yaml; else the model is broken.", level="warning"),
    "*.near-constant": Rule(what="Nearly every clean image gets one class.", advice="Check `input` in audit.yaml.", level="warning"),
    "*.unrepeatable": Rule(what="Asked twice, the file answers differently.", advice="Figures are draws: ask the vendor why.", level="warning"),
    "*.no-probabilities": Rule(what="Scores that should be probabilities are none.", advice="Check `output` in audit.yaml.", level="warning"),
    "read.guessed": Rule(what="How the model reads images was guessed.", advice="Say it in `input` in audit.yaml.", level="note"),
    "read.output-guessed": Rule(what="Which output holds the scores was guessed.", advice="Say it in `output` in audit.yaml.", level="note"),
    "plots.failed": Rule(what="The report has no pictures.", advice="The verdict stands.", level="note"),
    "record.failed": Rule(what="MLflow did not take the record.", advice="`onnx-audit record OUT` sends it.", level="note"),
    "*.failed": Rule(what="A stage gave no answer.", advice="Read the text; raise `limits` in audit.yaml; run again: what finished is kept.", level="warning"),
    "*.errored": Rule(what="A check stumbled over the file, which is no pass.", advice="Look at the file by hand.", level="warning"),
    "*.skipped": Rule(what="A check was not made.", advice="Read the text.", level="warning"),
}
"""By code, or by pattern where a code has a name in it; the first that fits holds."""


def rule_of(code: str) -> Rule:
    """What a code means; a code that nobody wrote down keeps from judging, so that it is not overlooked."""
    return next((rule for pattern, rule in RULES.items() if fnmatchcase(code, pattern)), _UNKNOWN)
