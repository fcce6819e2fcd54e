"""report.html: complete, self-contained, and deaf to what a submitted file's names say."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest
from conftest import BIDI, SCRIPT, TEMPLATE

from pipeline.findings import Finding, Severity
from pipeline.report.html import MOST, PICTURES, render_html
from pipeline.report.model import AuditReport
from pipeline.verdict import Verdict

PNG = b"\x89PNG\r\n\x1a\n of some kind"
HEADINGS = [
    "Before and after",
    "Findings",
    "Search for unknown triggers",
    "Changed initializers",
    "Weights that write-back does not reach",
    "Parity of onnxruntime and the differentiable copy",
    "Stages",
    "What was not looked for",
    "Provenance",
]


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] == "h2" and data.strip():
            self.headings.append(data)
        if self.elements and self.elements[-1] != "style":
            self.text += data


@pytest.fixture
def page(full: AuditReport) -> Page:
    return Page(render_html(full, plots=dict.fromkeys(PICTURES, PNG)))


def test_nothing_runs_and_nothing_is_fetched(page: Page) -> None:
    assert not {"script", "iframe", "object", "embed", "link", "form", "base", "a", "svg"} & set(page.elements)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/png;base64,") for _, name, value in page.attributes if name in ("src", "href"))


def test_the_policy_forbids_scripts_and_connections(page: Page) -> None:
    policy = dict(part.strip().split(" ", 1) for part in next(value for _, name, value in page.attributes if name == "content").split(";"))
    assert policy == {"default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'"}


def test_hostile_names_are_text(page: Page) -> None:
    assert page.text.count(SCRIPT) >= 6
    assert page.text.count(TEMPLATE) >= 3
    assert BIDI not in page.text
    assert BIDI.replace("\u202e", "\N{REPLACEMENT CHARACTER}") in page.text


def test_the_output_with_the_scores_is_shown(page: Page, full: AuditReport) -> None:
    assert full.reading is not None
    assert "probabilities, output " + SCRIPT in " ".join(page.text.split())
    assert "1.4 % of 500 calibration images" in page.text
    plain = full.reading.output.model_copy(update={"name": "y", "probabilities": False, "guessed": False, "scores": {}})
    reading = full.reading.model_copy(update={"output": plain, "guessed": False})
    text = Page(render_html(full.model_copy(update={"reading": reading}), plots={})).text
    assert "logits, output y" in " ".join(text.split())
    assert "guessed" in page.text and "guessed" not in text


def test_hostile_names_that_passed_no_type_are_cleaned_by_the_page(full: AuditReport) -> None:
    assert full.purified is not None
    assert full.purified.changes[2].name != BIDI  # cleaned by its type
    change = full.purified.changes[0].model_copy(update={"operator": BIDI})
    report = full.model_copy(update={"purified": full.purified.model_copy(update={"changes": [change]})})
    assert "\u202e" not in render_html(report, plots={})


def test_every_section_is_there(page: Page) -> None:
    assert [heading for heading in page.headings if heading in HEADINGS] == HEADINGS
    assert "Pictures" in page.headings


def test_sentences_are_apart(page: Page, full: AuditReport) -> None:
    assert full.detection is not None and full.detection.suspected
    assert "a backdoor is suspected. At that threshold" in " ".join(page.text.split())
    clean = full.detection.model_copy(update={"suspected": []})
    assert "nothing is suspected. At that threshold" in " ".join(Page(render_html(full.model_copy(update={"detection": clean}), plots={})).text.split())


def test_a_report_of_nothing_says_why(minimal: AuditReport) -> None:
    page = Page(render_html(minimal, plots={}))
    assert page.headings == HEADINGS
    assert page.text.count("Did not run:") == 5
    assert "the scan failed" in page.text
    assert "None" not in page.text


def test_a_null_section_beside_full_ones_says_why(full: AuditReport) -> None:
    for name in ("reading", "labels", "parity", "bound", "unbound", "submitted", "detection", "purified", "mlflow"):
        page = Page(render_html(full.model_copy(update={name: None}), plots={}))
        assert [heading for heading in page.headings if heading in HEADINGS] == HEADINGS
        assert "None" not in page.text


@pytest.mark.parametrize("verdict", list(Verdict))
def test_each_verdict_has_its_colour_and_sentence(full: AuditReport, verdict: Verdict) -> None:
    source = render_html(full.model_copy(update={"verdict": verdict}), plots={})
    assert f'<body class="{verdict}">' in source
    assert f".{verdict} {{ --verdict: #" in source
    assert f"<h1>{verdict}</h1>" in source


def test_pictures_are_embedded_in_order(page: Page, full: AuditReport) -> None:
    source = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert [value for _, name, value in page.attributes if name == "src"] == [source] * len(PICTURES)
    assert [value for _, name, value in page.attributes if name == "alt"] == list(PICTURES.values())
    with pytest.raises(ValueError, match="portrait"):
        render_html(full, plots={"portrait": PNG})


def test_the_worst_finding_comes_first(page: Page) -> None:
    assert page.text.index("graph.value-gate") < page.text.index("file.metadata-size") < page.text.index("file.doc-string")


def test_a_flood_of_findings_is_cut_and_counted(full: AuditReport) -> None:
    flood = [Finding(rule="x.flood", severity=Severity.LOW, message="again")] * (MOST + 7)
    text = Page(render_html(full.model_copy(update={"findings": flood}), plots={})).text
    assert text.count("x.flood") == MOST
    assert "7 more are in report.json" in text


def test_the_command_is_quoted_for_a_shell(page: Page) -> None:
    assert "onnx-audit run 'vendor model.onnx' --data images/ --seed 7" in page.text


def test_credentials_are_not_shown(page: Page) -> None:
    assert "secret" not in page.text
    assert "https://mlflow.example:5000/base" in page.text
