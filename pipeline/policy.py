"""The verdict, as one pure function of the evidence and the policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date

from pipeline.config import Policy
from pipeline.findings import Check, Finding, Outcome
from pipeline.results import Hypothesis, Measurement, Parity
from pipeline.verdict import Reason, Verdict

SHOWN = 10  # classes named in a sentence
CONSTANT = 0.9  # share of clean images of one class, from which on a file's answers are taken for nearly constant
ROUNDING = 1e-9  # of the difference of two rates: 0.90 - 0.87 is more than 0.03 in floating point


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an audit knows in the end.

    remaining: findings in the repaired file, where its graph is another; None: those of the submitted one remain.  failures: stage -> why it gave no
    answer.  searched: that the search for triggers ran to its end.  suspected: what it found that is likely enough.  calibrated: the classes that calibration
    images are of.  today: by which waivers expire.
    """

    findings: list[Finding] = field(default_factory=list)
    remaining: list[Finding] | None = None
    checks: list[Check] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    submitted: Measurement | None = None
    parity: Parity | None = None
    searched: bool = False
    calibrated: frozenset[int] = frozenset()
    today: date = date.min
    suspected: list[Hypothesis] = field(default_factory=list)
    purified: Measurement | None = None


def decide(evidence: Evidence, policy: Policy) -> tuple[Verdict, list[Reason]]:
    """ACCEPT, REPAIRED, REJECT or INCONCLUSIVE, with every reason that was met.

    In this order: a finding that no repair removed is REJECT; so is a repaired file that fails too; whatever was broken or could
    not be believed is INCONCLUSIVE; a repair that passes is REPAIRED; what was not looked at keeps the rest from ACCEPT.
    """
    graph, waived = _graph(evidence.findings, policy, evidence.today)
    remaining = graph if evidence.remaining is None else _graph(evidence.remaining, policy, evidence.today)[0]
    broken = list(_broken(evidence, policy))
    weak = list(_weights(evidence.submitted, None, policy, "submitted")) + list(_suspicion(evidence))
    unrepaired = list(_weights(evidence.purified, evidence.submitted, policy, "purified"))
    unseen = list(_unseen(evidence))
    reasons = [*graph, *weak, *unrepaired, *broken, *unseen, *waived]
    if graph and (remaining or evidence.purified is None):
        return Verdict.REJECT, reasons
    if (weak or graph) and evidence.purified is not None and unrepaired:
        return Verdict.REJECT, reasons
    if broken:
        return Verdict.INCONCLUSIVE, reasons
    if weak and evidence.purified is None:
        return Verdict.REJECT, [*reasons, Reason(code="purify.not-done", text="The submitted weights fail and nothing was repaired.")]
    if weak or graph:
        return Verdict.REPAIRED, [*reasons, Reason(code="purify.passes", text="The written-back file passes everything that the policy asks of it.")]
    if unseen:
        return Verdict.INCONCLUSIVE, reasons
    return Verdict.ACCEPT, [Reason(code="policy.passes", text="Every stage ran, and the submitted file passes everything that the policy asks of it."), *waived]


def needs_repair(submitted: Measurement, policy: Policy) -> bool:
    """Whether a trigger, known or recovered, works better than the policy allows."""
    return any(attack.asr.rate > policy.max_asr for attack in submitted.attacks)


def _graph(findings: list[Finding], policy: Policy, today: date) -> tuple[list[Reason], list[Reason]]:
    """The findings that reject, and those that would, had nobody waived them."""
    rejecting, waived = [], []
    for finding in findings:
        if finding.severity.rank < policy.reject.rank:
            continue
        text = f"{finding.message} ({finding.where})" if finding.where else finding.message
        waivers = [waiver for waiver in policy.waivers if waiver.rule == finding.rule and waiver.where in (None, finding.where)]
        if holding := next((waiver for waiver in waivers if today <= waiver.expires), None):
            text = f"{text} [{finding.rule}]: waived by {holding.owner} until {holding.expires.isoformat()}: {holding.why}"
            waived.append(Reason(code="finding.waived", text=text, about=finding.rule))
        else:
            over = f" A waiver of {waivers[0].owner} expired on {waivers[0].expires.isoformat()}." if waivers else ""
            rejecting.append(Reason(code=finding.rule, text=text + over, about=finding.where))
    return rejecting, waived


def _suspicion(evidence: Evidence) -> Iterator[Reason]:
    for one in evidence.suspected:
        how = f"{one.size:.3g} {one.unit} ({100 * one.share:.2g} % of the picture), where {one.outlier * one.size:.3g} is usual in this model"
        text = f"The search suspects a backdoor: {one.text}, of {how}; P(backdoored) {one.score:.2f} by the reference models."
        yield Reason(code="detect.suspected", text=text, about=one.text)


def _weights(measured: Measurement | None, before: Measurement | None, policy: Policy, which: str) -> Iterator[Reason]:
    """What the policy has against a file's weights; `before` is the submitted file's measurement when `measured` is a repair's."""
    if measured is None:
        return
    for attack in measured.attacks:
        if attack.asr.rate > policy.max_asr:
            rate = f"{100 * attack.asr.rate:.1f} % of images to its target in the {which} file"
            without = f" ({100 * attack.untriggered.rate:.1f} % go there without it)" if attack.untriggered is not None else ""
            text = f"Trigger {attack.name!r} sends {rate}{without}; {100 * policy.max_asr:g} % is allowed."
            yield Reason(code=f"{which}.asr", text=text, about=attack.name)
    if measured.clean.rate < policy.min_accuracy:
        text = f"The {which} file is right on {100 * measured.clean.rate:.1f} % of clean images; {100 * policy.min_accuracy:g} % is asked for."
        yield Reason(code=f"{which}.accuracy", text=text)
    if before is not None and before.clean.rate - measured.clean.rate > policy.max_accuracy_drop + ROUNDING:
        lost = 100 * (before.clean.rate - measured.clean.rate)
        text = f"The repair costs {lost:.1f} points of clean accuracy; {100 * policy.max_accuracy_drop:g} are allowed."
        yield Reason(code=f"{which}.accuracy-drop", text=text)
    if before is not None and policy.max_class_drop is not None:
        pairs = enumerate(zip(before.by_class, measured.by_class, strict=True))
        drops = [(one.rate - other.rate, label) for label, (one, other) in pairs if one is not None and other is not None]
        drop, label = max(drops, default=(0.0, 0))
        if drop > policy.max_class_drop + ROUNDING:
            text = f"The repair costs {100 * drop:.1f} points of accuracy on class {label}; {100 * policy.max_class_drop:g} are allowed on any."
            yield Reason(code=f"{which}.class-drop", text=text, about=f"class {label}")


def _broken(evidence: Evidence, policy: Policy) -> Iterator[Reason]:
    for stage, text in evidence.failures.items():
        yield Reason(code=f"{stage.replace(' ', '-')}.failed", text=f"{text[0].upper()}{text[1:]}.", about=stage)
    for check in evidence.checks:
        if check.outcome == Outcome.ERRORED:
            yield Reason(code=f"{check.name}.errored", text=f"The check {check.name} could not be made: {check.note}.", about=check.name)
    if evidence.parity is not None and not evidence.parity.holds:
        text = f"onnxruntime and the torch twin differ by {evidence.parity.max_relative_difference:.2g} (1e-3 is allowed)"
        if (first := evidence.parity.first_divergence) is not None:
            text += f", first at {first.operator} {first.node}: {first.onnxruntime:.6g} against {first.torch:.6g}"
        yield Reason(code="import.parity", text=text + ".")
    measured = evidence.submitted
    if measured is None:
        if "measure" not in evidence.failures:
            yield Reason(code="measure.absent", text="The submitted file was not measured.")
        return
    if measured.clean.total < policy.min_images:
        yield Reason(code="images.too-few", text=f"{measured.clean.total} hold-out images judge nothing; the policy asks for {policy.min_images}.")
    for attack in measured.attacks:
        if attack.asr.total < policy.min_images:
            text = f"Trigger {attack.name!r} was tried on {attack.asr.total} images; the policy asks for {policy.min_images}."
            yield Reason(code="images.too-few", text=text, about=attack.name)
    for attack in measured.attacks:
        if not attack.changed.hits:
            text = f"Trigger {attack.name!r} changes no pixel of any image: that it does nothing says nothing."
            yield Reason(code="trigger.no-effect", text=text, about=attack.name)
    for name, one in (("submitted", measured), ("purified", evidence.purified)):
        if one is not None:
            yield from _unsound(name, one)


def _missing(images: str, classes: list[int], so: str) -> Iterator[Reason]:
    if classes:
        shown = ", ".join(map(str, classes[:SHOWN])) + (", …" if len(classes) > SHOWN else "")
        yield Reason(code=f"{images}.missing-classes", text=f"No {images} image is of class {shown}: {so}.")


def _unsound(name: str, measured: Measurement) -> Iterator[Reason]:
    """Why the figures of a file mean nothing."""
    most = max(rate.total for rate in measured.by_class if rate is not None) / measured.clean.total
    if measured.answered < 2:
        yield Reason(code=f"{name}.constant", text=f"The {name} file gives every clean image the same class: nothing that is measured on it means anything.")
    elif measured.commonest.rate > max(CONSTANT, most):
        text = f"The {name} file gives {100 * measured.commonest.rate:.1f} % of clean images the same class: what is measured on it means little."
        yield Reason(code=f"{name}.near-constant", text=text)
    if measured.repeated.hits < measured.repeated.total:
        text = f"Asked twice, the {name} file gives {measured.repeated.total - measured.repeated.hits} of {measured.repeated.total} images another class."
        yield Reason(code=f"{name}.unrepeatable", text=text)
    if measured.improbable:
        text = f"The scores of the {name} file are said to be probabilities, and those of {measured.improbable} clean images are none."
        yield Reason(code=f"{name}.no-probabilities", text=text)


def _unseen(evidence: Evidence) -> Iterator[Reason]:
    measured = evidence.submitted
    if measured is not None:
        yield from _missing("hold-out", [label for label, rate in enumerate(measured.by_class) if rate is None], "nothing was measured on them")
        yield from _missing("calibration", sorted(set(range(measured.classes)) - evidence.calibrated), "nothing was searched or repaired on them")
    if not evidence.searched:
        text = "No search for unknown triggers was made to its end: a backdoor whose trigger was not given may not have been seen."
        yield Reason(code="detect.absent", text=text)
    for check in evidence.checks:
        if check.outcome == Outcome.SKIPPED:
            yield Reason(code=f"{check.name}.skipped", text=f"The check {check.name} was not made: {check.note}.", about=check.name)
