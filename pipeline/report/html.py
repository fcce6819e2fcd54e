"""report.html: one page that needs nothing else, runs nothing, and takes whatever the file says as text."""

from __future__ import annotations

import base64
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.findings import printable
from pipeline.report import summary
from pipeline.report.model import AuditReport

MOST = 200  # rows of a table: a hostile file can have a million; report.json has them all

PICTURES = {
    "gates": "Each gate in the graph: above the way from the image to where it joins, operator by operator; below what it joins.",
    "suspects": "The smallest change of each kind, class by class: what stands far to the left of the others is a short cut. Suspected ones are filled.",
    "recovered": "What the changes that were found add to pictures, in the mean; the likeliest first. Mid-grey is no change.",
    "perturbation": "What the purifier's own search ended with. Mid-grey is no change; each is stretched to its own largest magnitude, written below it.",
    "masks": "How far each layer was masked: weights by mask value, on a logarithmic scale.",
    "history": "The purifier, step by step.",
    "before_after": "Accuracy and attack success, submitted and repaired, with 95 % Wilson intervals.",
}
"""What `plots` may hold, in the order in which the page shows it, and the caption of each."""


def render_html(report: AuditReport, *, plots: Mapping[str, bytes]) -> str:
    """The report as a page.  plots: PNG by name, of those in PICTURES; those that are missing are left out."""
    if unknown := plots.keys() - PICTURES.keys():
        raise ValueError(f"a report has pictures called {', '.join(PICTURES)}; not {', '.join(sorted(unknown))}")
    pictures = [(name, caption, base64.b64encode(plots[name]).decode()) for name, caption in PICTURES.items() if name in plots]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            sentence=summary.SENTENCES[report.verdict],
            rows=summary.summary_rows(report),
            worst=summary.worst_class(report),
            gaps=summary.gaps(report),
            outcomes=Counter(str(check.outcome) for check in report.checks),
            findings=sorted(report.findings, key=lambda finding: -finding.severity.rank),
            pictures=pictures,
            most=MOST,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": summary.percent,
        "interval": summary.interval,
        "size": _size,
        "seconds": _seconds,
        "channels": _channels,
        "shell": shlex.join,
    }
    environment.globals |= {"why": summary.why, "target_text": summary.target_text}
    return environment


def _shown(value: object) -> object:
    """Every value of the page passes here: names that reorder or hide the text around them do not get through."""
    if value is None:
        raise ValueError("the template shows a value that is not there")
    return printable(value, limit=4096) if type(value) is str else value


def _size(count: int) -> str:
    exact = f"{count:,} bytes"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit} ({exact})"
    return exact


def _seconds(duration: float) -> str:
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, seconds = divmod(round(duration), 60)
    return f"{minutes} min {seconds:02d} s"


def _channels(values: tuple[float, ...]) -> str:
    text = ", ".join(f"{value:g}" for value in values)
    return text if len(values) == 1 else f"({text})"
