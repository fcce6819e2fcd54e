"""What a person sees while an audit runs and when it is done: progress on stderr, the result on stdout."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.report.model import AuditReport
from pipeline.report.summary import SENTENCES, interval, percent, summary_rows, target_text
from pipeline.results import ImportAnswer, Parity, Rate, ScanResult, Unbound
from pipeline.sandbox import Progress as Moved

COLOURS = {"ACCEPT": "green", "REPAIRED": "cyan", "REJECT": "red", "INCONCLUSIVE": "yellow"}
SHOWN = ("searched", "loss", "mask_mean", "accuracy", "pruned")
MARKS = {"ran": "[green]✓[/]", "reused": "[blue]↺[/]", "failed": "[red]✗[/]", "skipped": "[dim]–[/]"}
EVERY = 60.0  # seconds from one line of progress to the next where there is no terminal: long work that says nothing looks dead, to a CI system as well
PACE = 300.0  # seconds that what is left is reckoned from


class Display:
    """A line a stage, with a bar for the one that runs, and how long that may take.  Without a terminal, a plain line a minute and when a stage ends."""

    def __init__(self, *, quiet: bool) -> None:
        """Write to stderr, or nothing when `quiet`."""
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        plain = not self.console.is_terminal
        self.progress = Progress(*columns, *times, console=self.console, transient=True, disable=plain, speed_estimate_period=PACE)
        self.task: TaskID | None = None
        self.due = 0.0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """A line of plain text."""
        self.console.print(Text(text))

    def started(self, stage: str) -> None:
        """Show a stage that begins."""
        self._clear()
        self.task = self.progress.add_task(escape(stage), total=None, figures="")
        self.due = time.monotonic() + EVERY

    def moved(self, progress: Moved) -> None:
        """Move the bar of the stage that runs."""
        if self.task is not None:
            figures = ", ".join(f"{name} {progress.metrics[name]:.3g}" for name in SHOWN if name in progress.metrics)
            description = escape(f"{progress.stage}: {progress.text}")
            self.progress.update(self.task, description=description, completed=progress.done, total=progress.total or None, figures=figures)
            if not self.console.is_terminal and time.monotonic() >= self.due:
                self.due = time.monotonic() + EVERY
                self.say(", ".join(filter(None, [f"{progress.stage}: {progress.text}{self._far(progress)}", figures])))

    def _far(self, progress: Moved) -> str:
        if not progress.total:
            return ""
        left = next(task.time_remaining for task in self.progress.tasks if task.id == self.task)
        return f" {progress.done} of {progress.total}" + (f", some {max(1, round(left / 60))} min left of this" if left else "")

    def ended(self, stage: str, outcome: str, seconds: float) -> None:
        """Leave a line for a stage that ended."""
        self._clear()
        took = "" if outcome == "skipped" else f"{seconds:6.1f} s"
        self.console.print(f"{MARKS[outcome]} {escape(stage):<14} [dim]{outcome:<7} {took}[/]")

    def _clear(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None


def show(report: AuditReport, *, folder: str) -> None:
    """The verdict, its reasons and the before/after table, on stdout."""
    console = Console(highlight=False)
    colour = COLOURS[report.verdict]
    console.print(Text.assemble((f" {report.verdict} ", f"bold reverse {colour}"), " ", SENTENCES[report.verdict]))
    for reason in report.reasons:
        console.print(Text(f"  • {reason.text}"), soft_wrap=True)
    if rows := summary_rows(report):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("rate", "target", "submitted", "95 %", "repaired", "95 %"):
            table.add_column(title, justify="left" if title in ("rate", "target") else "right")
        for row in rows:
            target = "" if row.kind == "clean" else target_text(row.target, report.labels, row.source)
            table.add_row(Text(f"{row.metric} {row.name}"), Text(target), *_cells(row.before), *_cells(row.after))
        console.print()
        console.print(table)
    if report.purified is not None and report.purified.method == "auto":
        console.print()
        for note in report.purified.notes:
            console.print(Text(f"auto: {note}", "dim"), soft_wrap=True)
    reused = [stage.name for stage in report.stages if stage.outcome == "reused"]
    console.print()
    if reused:
        console.print(Text(f"reused from an earlier audit: {', '.join(reused)}"))
    if report.mlflow:
        console.print(Text(f"MLflow run {report.mlflow.run_id} in {report.mlflow.tracking_uri}"), soft_wrap=True)
    console.print(Text(f"report and files in {folder}"), soft_wrap=True)


def show_review(found: dict[str, Any]) -> None:
    """What became of a version, on stdout."""
    console, which = Console(highlight=False), f"{found['name']}/{found['version']}"
    if found["reused"]:
        console.print(Text(f"{which} was reviewed before, as it is and as it is asked for now: {found['verdict']}. Nothing was done."), soft_wrap=True)
        return
    report = AuditReport.model_validate(found["report"])
    console.print(Text.assemble((f" {report.verdict} ", f"bold reverse {COLOURS[report.verdict]}"), f" {which}: ", SENTENCES[report.verdict]))
    for reason in report.reasons:
        console.print(Text(f"  • {reason.text}"), soft_wrap=True)
    if found["repaired"]:
        console.print(Text(f"the repaired model is version {found['repaired']}"))
    for alias, version in found["aliases"].items():
        console.print(Text(f"the alias {alias} is on version {version}" if version else f"the alias {alias} was taken away"))


def show_fleet(found: dict[str, Any]) -> None:
    """Every model of a fleet with its verdict, on stdout."""
    console, table = Console(highlight=False), Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "verdict", "before", "reasons"):
        table.add_column(title)
    for name, model in found["models"].items():
        colour = COLOURS.get(model["verdict"], "magenta")
        before = "unchanged" if model["unchanged"] else "same" if model["before"] == model["verdict"] else model["before"] or "new"
        table.add_row(Text(name), Text(model["verdict"], colour), Text(before), Text(", ".join(model["reasons"])))
    console.print(table)
    counts = Counter(model["verdict"] for model in found["models"].values())
    console.print(Text(f"{len(found['models'])} models: {', '.join(f'{number} {verdict}' for verdict, number in sorted(counts.items()))}"))
    console.print(Text(f"MLflow run {found['run_id']}, and one of each audit under it"), soft_wrap=True)


def _cells(rate: Rate | None) -> tuple[str, str]:
    return (percent(rate.rate), interval(rate)) if rate else ("–", "")


def show_scan(found: dict[str, Any]) -> None:
    """What a scan found, on stdout."""
    result = ScanResult.model_validate(found)
    console, model = Console(highlight=False), result.model
    console.print(Text(f"opset {model.opset}, {model.producer}, {model.nodes} nodes, {model.parameters} parameters, sha256 {model.sha256}"), soft_wrap=True)
    operators = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in model.operators.items())
    console.print(Text(f"input {model.input_name} {model.input_shape}, operators: {operators}"), soft_wrap=True)
    for check in result.checks:
        mark = {"passed": "[green]✓[/]", "failed": "[red]✗[/]", "skipped": "[dim]–[/]", "errored": "[yellow]![/]"}[check.outcome]
        console.print(f"{mark} {escape(check.name)} {escape(check.note)}")
    for finding in result.findings:
        console.print(Text(f"{finding.severity.upper()} {finding.rule}: {finding.message} {finding.where}"), soft_wrap=True)
    console.print(Text("No images were used: accuracy, triggers and weights were not looked at."))


def show_import(answer: ImportAnswer) -> None:
    """Whether a model can be audited, on stdout."""
    console, model, bound, reading = Console(highlight=False), answer.model, answer.bound, answer.input
    verdict = Text(" YES ", "bold reverse green") if answer.holds else Text(" NO ", "bold reverse red")
    sentence = "This model can be audited and repaired." if answer.holds else "The copy does not agree with the model: it can be measured, and not repaired."
    console.print(Text.assemble(verdict, " ", sentence))
    shape = "x".join("?" if axis is None else str(axis) for axis in model.input_shape)
    how = (
        f"{reading.layout} {reading.size[0]}x{reading.size[1]} {reading.channels}, scale {reading.scale:g}, mean {list(reading.mean)}, std {list(reading.std)}"
    )
    guess = "" if not answer.input_guessed else " (guessed from calibration accuracy)" if answer.images else " (the plainest that fits: give --data or `input`)"
    judged = "calibration images" if answer.images else "noise alone: give --data IMAGES"
    lines = {
        "model": f"opset {model.opset}, {model.producer}, {model.nodes} nodes, {model.bytes} bytes, sha256 {model.sha256}",
        "operators": ", ".join(f"{name} x{count}" if count > 1 else name for name, count in model.operators.items()),
        "input": f"{model.input_name} {shape}, read as {how}{guess}",
        "output": f"{answer.output.name}, {'probabilities' if answer.output.probabilities else 'logits'}" + (" (found)" if answer.output.guessed else ""),
        "batch": "any" if answer.batch is None else f"{answer.batch} at a time: the graph holds it fast",
        "parity": f"{_parity(answer.parity)} on {judged}" + (f"; {_parity(answer.noise)} on noise" if answer.images else ""),
        **{f"parity of {name}": _parity(parity) for name, parity in answer.others.items()},
        "bound": f"{bound.parameters:,} of {bound.of:,} parameters ({percent(bound.parameters / max(bound.of, 1))}) in {bound.initializers} initializers",
    }
    for title, line in lines.items():
        console.print(Text.assemble((f"{title:<10} ", "bold"), line), soft_wrap=True)
    if (parted := answer.parity.first_divergence) is not None:
        console.print(
            Text(f"first differing node: {parted.operator} {parted.node}, onnxruntime {parted.onnxruntime:g}, torch {parted.torch:g}"), soft_wrap=True
        )
    for why, names in _by_reason(answer.unbound).items():
        console.print(Text(f"left alone: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}: {why}"), soft_wrap=True)
    for finding in answer.findings:
        console.print(Text(f"{finding.severity.upper()} {finding.rule}: {finding.message} {finding.where}"), soft_wrap=True)


def _parity(parity: Parity) -> str:
    agreed = parity.label_agreement
    return f"{parity.max_relative_difference:.1e} (at most {parity.tolerance:g}), labels {agreed.hits}/{agreed.total}"


def _by_reason(unbound: list[Unbound]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in unbound:
        found.setdefault(entry.why, []).append(entry.name)
    return found
