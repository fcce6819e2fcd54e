"""The report in a few lines: the before/after table, what was not looked for, and both as Markdown."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.findings import Outcome, printable
from pipeline.report.model import AuditReport
from pipeline.results import Attack, Measurement, Rate, Target, onward
from pipeline.verdict import Verdict

SENTENCES = {
    Verdict.ACCEPT: "Nothing was found that the policy forbids. This is evidence, not proof.",
    Verdict.REPAIRED: "The submitted file fails the policy; the repaired file passes it.",
    Verdict.REJECT: "This file must not go into production: what was found in it is not repaired.",
    Verdict.INCONCLUSIVE: "No judgement: something that had to be looked at was not, or could not be believed.",
}

_STAGES_OF = {
    "parity": ("import", "convert"),
    "submitted": ("measure",),
    "detection": ("detect", "search"),
    "purified": ("purify", "write", "measure"),
}


@dataclass(frozen=True)
class Row:
    """A rate before and after the repair; None where it was not measured.  without: of an ASR, what it is without the trigger, before and after."""

    name: str
    metric: Literal["ACC", "ASR", "RA"]
    kind: Literal["clean", "known", "recovered"]
    target: Target
    before: Rate | None
    after: Rate | None
    source: int | None = None
    without: tuple[Rate | None, Rate | None] = (None, None)

    @property
    def change(self) -> float | None:
        """after - before, in percentage points."""
        return None if self.before is None or self.after is None else 100 * (self.after.rate - self.before.rate)

    @property
    def better(self) -> bool | None:
        """Whether the change is to the good: ASR should fall, ACC and RA should rise.  None when the two intervals overlap."""
        if self.before is None or self.after is None or (self.before.low <= self.after.high and self.after.low <= self.before.high):
            return None
        return (self.after.rate < self.before.rate) == (self.metric == "ASR")


def summary_rows(report: AuditReport) -> list[Row]:
    """Clean accuracy, then ASR and RA of each attack, in the order they were measured."""
    return rows_between(report.submitted, report.purified)


def rows_between(before: Measurement | None, after: Measurement | None) -> list[Row]:
    """The same for two measurements, of the submitted and of the repaired file."""
    rows = []
    if before or after:
        rows.append(Row("clean images", "ACC", "clean", None, before.clean if before else None, after.clean if after else None))
    old, new = dict(_attacks(before)), dict(_attacks(after))
    for key in old | new:
        name, kind, target, _ = key
        a, b = old.get(key), new.get(key)
        source = next(attack.source for attack in (a, b) if attack)
        without = a.untriggered if a else None, b.untriggered if b else None
        rows.append(Row(name, "ASR", kind, target, a.asr if a else None, b.asr if b else None, source, without))
        rows.append(Row(name, "RA", kind, target, a.ra if a else None, b.ra if b else None, source))
    return rows


def worst_class(report: AuditReport) -> tuple[int, Rate, Rate] | None:
    """The class whose accuracy the repair costs most, before and after; None where nothing was repaired or nothing is lost on any."""
    if report.submitted is None or report.purified is None:
        return None
    pairs = enumerate(zip(report.submitted.by_class, report.purified.by_class, strict=True))
    lost = [(label, one, other) for label, (one, other) in pairs if one is not None and other is not None and other.rate < one.rate]
    return max(lost, key=lambda row: row[1].rate - row[2].rate, default=None)


def _attacks(measurement: Measurement | None) -> Iterator[tuple[tuple[str, Literal["known", "recovered"], Target, int], Attack]]:
    seen: Counter[tuple[str, str, Target]] = Counter()
    for attack in measurement.attacks if measurement else ():
        seen[attack.name, attack.kind, attack.target] += 1
        yield (attack.name, attack.kind, attack.target, seen[attack.name, attack.kind, attack.target]), attack


@dataclass(frozen=True)
class Gap:
    """Something that was not looked for, and why."""

    what: str
    why: str


def gaps(report: AuditReport) -> list[Gap]:
    """What this audit did not look for: a reader must know what the verdict does not rest on."""
    found = [Gap(f"check {check.name}", check.note or check.outcome) for check in report.checks if check.outcome in (Outcome.SKIPPED, Outcome.ERRORED)]
    if report.submitted is None:
        found.append(Gap("accuracy and known triggers", why(report, "submitted")))
    elif not any(attack.kind == "known" for attack in report.submitted.attacks):
        found.append(Gap("known triggers", "none was given"))
    if report.detection is None:
        found.append(Gap("triggers nobody told us about", why(report, "detection")))
    if report.parity is None:
        found.append(Gap("agreement of onnxruntime and the differentiable copy", why(report, "parity")))
    if report.bound and report.bound.parameters < report.bound.of:
        found.append(
            Gap(f"{report.bound.of - report.bound.parameters:,} of {report.bound.of:,} parameters", "write-back does not reach them: they cannot be repaired")
        )
    found.append(Gap("triggers unlike any that was given or searched for", "a search that finds nothing proves no absence"))
    if report.purified:
        found.append(Gap("whether the backdoor comes back", "a repaired model can learn a backdoor again from few images, and an altered trigger can wake one"))
    return found


def why(report: AuditReport, section: Literal["parity", "submitted", "detection", "purified"]) -> str:
    """Why a section of the report is null, from the stages that would have filled it."""
    stages = [stage for stage in report.stages if stage.name.lower().startswith(_STAGES_OF[section])]
    for stage in stages:
        if stage.outcome in ("failed", "skipped"):
            return stage.note or f"{stage.name} {'failed' if stage.outcome == 'failed' else 'was skipped'}"
    failed = next((stage.name for stage in report.stages if stage.outcome == "failed"), None)
    return "no answer was recorded" if stages else f"{failed} failed" if failed else "not part of this audit"


def percent(share: float) -> str:
    """A share in 0..1 as text."""
    return f"{100 * share:.1f} %"


def interval(rate: Rate) -> str:
    """The 95 % interval of a rate as text."""
    return f"{100 * rate.low:.1f}\N{EN DASH}{100 * rate.high:.1f}"


def target_text(target: Target, labels: list[str] | None, source: int | None = None) -> str:
    """A target as text: its index and label, or what takes its place; and the source, where the trigger has one."""
    if source is not None:
        return f"{target_text(target, labels)}, from {target_text(source, labels)}"
    if target is None:
        return "any other"
    if (steps := onward(target)) is not None:
        return f"label + {steps}"
    return f"{target} ({labels[int(target)]})" if labels and int(target) < len(labels) else str(target)


def markdown(report: AuditReport, *, table: bool = True) -> str:
    """The verdict, its reasons and the before/after table as GitHub-flavoured Markdown; whatever the file says stays text.  table: with that table."""
    lines = [f"**{report.verdict}**: {SENTENCES[report.verdict]}", ""]
    if report.reasons:
        lines += [*(f"- {escaped(reason.text)}" for reason in report.reasons), ""]
    rows = summary_rows(report)
    if rows and table:
        lines += ["| rate | target | submitted | repaired |", "|---|---|---|---|"]
        lines += [
            f"| {escaped(row.name)}, {row.metric} | {_target_cell(row, report.labels)} | {before} | {after} |"
            for row in rows
            for before, after in [map(_rate_cell, (row.before, row.after), row.without)]
        ]
        lines += ["", "Rates with hits / total and 95 % Wilson intervals."]
    elif not rows:
        lines += [f"Nothing was measured: {escaped(why(report, 'submitted'))}."]
    return "\n".join(lines) + "\n"


def _target_cell(row: Row, labels: list[str] | None) -> str:
    return "" if row.kind == "clean" else escaped(target_text(row.target, labels, row.source))


def _rate_cell(rate: Rate | None, without: Rate | None) -> str:
    return rate_text(rate) + (f", {percent(without.rate)} without the trigger" if without else "")


def rate_text(rate: Rate | None) -> str:
    """A rate as text, with hits, total and interval; a dash where there is none."""
    return f"{percent(rate.rate)} ({rate.hits:,} / {rate.total:,}; {interval(rate)})" if rate else "\N{EN DASH}"


def escaped(text: str) -> str:
    """`text` so that Markdown, and the HTML inside it, read it as text: no links, no code, no table cells."""
    text = html.escape(printable(text), quote=False).replace("@", "&#64;").replace("$", "&#36;")  # some renderers know no backslash before these
    text = re.sub(r":(?! )", "&#58;", text)  # nor before this one, MLflow's for one; before a blank it makes no link
    return re.sub(r"([\\`*_{}\[\]()+\-.!|~=])|(?<!&)(#)", r"\\\1\2", text)
