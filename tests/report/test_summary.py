"""The before/after table, what was not looked for, and Markdown."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from pipeline.findings import Check, Outcome
from pipeline.report.model import AuditReport, Stage
from pipeline.report.summary import Row, escaped, gaps, markdown, summary_rows, target_text, why, worst_class
from pipeline.results import Attack, Rate
from pipeline.verdict import Reason

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b|c",
    "**bold** _em_ `code` ~~gone~~",
    "[text](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example <https://evil.example> mail@evil.example",
    "# heading",
    "- item",
    "1. item",
    "x\n\n# heading",
    "&lt;b&gt; &#60;i&#62; \\*",
    "$x^2$",
]


def rendered(text: str) -> str:
    return str(MarkdownIt("gfm-like", {"linkify": False}).render(text))


def test_rows_are_accuracy_and_then_asr_and_ra_of_each_attack(full: AuditReport) -> None:
    rows = summary_rows(full)
    assert [(row.name, row.metric) for row in rows[:5]] == [
        ("clean images", "ACC"),
        ("trojan", "ASR"),
        ("trojan", "RA"),
        ("all|to|all", "ASR"),
        ("all|to|all", "RA"),
    ]
    assert rows[1].before == Rate.of(4500, 4500)
    assert rows[1].after == Rate.of(104, 4500)
    assert [row.without for row in rows[1:4]] == [(Rate.of(90, 4500), Rate.of(117, 4500)), (None, None), (None, None)]


def test_the_table_says_what_goes_to_the_target_without_the_trigger(full: AuditReport) -> None:
    (line,) = (line for line in markdown(full).splitlines() if line.startswith("| trojan, ASR"))
    assert "2.0 % without the trigger" in line
    assert "2.6 % without the trigger" in line
    assert "without" not in next(line for line in markdown(full).splitlines() if line.startswith("| trojan, RA"))


def test_an_attack_that_was_measured_on_one_side_only_keeps_its_row(full: AuditReport) -> None:
    assert full.submitted is not None
    assert full.purified is not None
    more = Attack(name="late", kind="recovered", target=4, asr=Rate.of(1, 9), ra=Rate.of(8, 9), changed=Rate.of(9, 9))
    report = full.model_copy(update={"purified": full.purified.model_copy(update={"attacks": [more]})})
    by_name = {(row.name, row.metric): row for row in summary_rows(report)}
    assert by_name["trojan", "ASR"].after is None
    assert by_name["late", "ASR"].before is None
    assert by_name["late", "RA"].after == more.ra


def test_attacks_with_one_name_are_paired_in_their_order(full: AuditReport) -> None:
    assert full.submitted is not None
    assert full.purified is not None
    first, second = (Attack(name="twin", kind="known", target=1, asr=Rate.of(hits, 9), ra=Rate.of(0, 9), changed=Rate.of(9, 9)) for hits in (3, 5))
    report = full.model_copy(
        update={
            "submitted": full.submitted.model_copy(update={"attacks": [first, second]}),
            "purified": full.purified.model_copy(update={"attacks": [first, second]}),
        }
    )
    asr = [row for row in summary_rows(report) if row.metric == "ASR"]
    assert [(row.before, row.after) for row in asr] == [(first.asr, first.asr), (second.asr, second.asr)]


def test_there_are_no_rows_when_nothing_was_measured(minimal: AuditReport) -> None:
    assert summary_rows(minimal) == []


@pytest.mark.parametrize(
    ("metric", "before", "after", "better"),
    [("ASR", 90, 10, True), ("ASR", 10, 90, False), ("RA", 10, 90, True), ("ACC", 90, 10, False), ("ACC", 50, 51, None), ("ASR", 50, 50, None)],
)
def test_better_means_a_lower_asr_and_a_higher_accuracy(metric: str, before: int, after: int, better: bool | None) -> None:
    row = Row("x", metric, "known", 1, Rate.of(before, 100), Rate.of(after, 100))  # type: ignore[arg-type]
    assert row.better is better
    assert row.change == pytest.approx(after - before)


def test_gaps_name_skipped_and_broken_checks_and_no_others(full: AuditReport) -> None:
    named = {gap.what: gap.why for gap in gaps(full)}
    assert named["check graph.dynamic"] == "no gate was found to force"
    assert named["check graph.functions"] == "ran out of memory at 4 GiB"
    assert not {"check file.intake", "check graph.gates"} & named.keys()


def test_gaps_name_every_stage_that_gave_no_answer(full: AuditReport, minimal: AuditReport) -> None:
    looked = {"accuracy and known triggers", "triggers nobody told us about", "agreement of onnxruntime and the differentiable copy"}
    assert looked <= {gap.what for gap in gaps(minimal)}
    assert not looked & {gap.what for gap in gaps(full)}


def test_gaps_say_that_no_trigger_was_given(full: AuditReport) -> None:
    assert full.submitted is not None
    report = full.model_copy(update={"submitted": full.submitted.model_copy(update={"attacks": []}), "checks": [Check(name="x", outcome=Outcome.PASSED)]})
    assert "known triggers" in {gap.what for gap in gaps(report)}
    assert "known triggers" not in {gap.what for gap in gaps(full)}


@pytest.mark.parametrize(
    ("stages", "answer"),
    [
        ([Stage(name="detect", outcome="failed", seconds=1, note="killed by SIGKILL")], "killed by SIGKILL"),
        ([Stage(name="detect", outcome="skipped", seconds=0)], "detect was skipped"),
        ([Stage(name="scan", outcome="failed", seconds=0)], "scan failed"),
        ([Stage(name="detect", outcome="ran", seconds=0)], "no answer was recorded"),
        ([], "not part of this audit"),
    ],
)
def test_why_a_section_is_null(minimal: AuditReport, stages: list[Stage], answer: str) -> None:
    assert why(minimal.model_copy(update={"stages": stages}), "detection") == answer


def test_targets_as_text() -> None:
    assert target_text(1, ["cat", "dog"]) == "1 (dog)"
    assert target_text(7, ["cat", "dog"]) == "7"
    assert target_text("next", None) == "label + 1"
    assert target_text(None, None) == "any other"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_markdown(text: str) -> None:
    shown = rendered(f"- x {escaped(text)}")
    assert set(re.findall(r"<(\w+)", shown)) == {"ul", "li"}
    assert not re.search(r"(?<!\\)[$@]", escaped(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_breaks_neither_table_nor_list(full: AuditReport, text: str) -> None:
    attack = Attack(name=text, kind="known", target=0, asr=Rate.of(1, 2), ra=Rate.of(1, 2), changed=Rate.of(2, 2))
    assert full.submitted is not None
    report = full.model_copy(
        update={
            "reasons": [Reason(code="x", text=text)],
            "labels": [text],
            "submitted": full.submitted.model_copy(update={"attacks": [attack]}),
            "purified": None,
        }
    )
    shown = rendered(markdown(report))
    assert set(re.findall(r"<(\w+)", shown)) == {"p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert shown.count("<td>") == 4 * shown.count("<tr>") - 4
    assert shown.count("<ul>") == shown.count("<li>") == 1


def test_markdown_without_a_measurement_says_why(minimal: AuditReport) -> None:
    assert "Nothing was measured: the scan failed." in markdown(minimal)
    assert "|" not in markdown(minimal)


def test_colons_need_no_backslash() -> None:
    assert escaped("a backdoor: see https://there") == "a backdoor: see https&#58;//there", "MLflow's pages would show it"
    assert rendered(escaped("onnx::Conv_1: b:")) == "<p>onnx::Conv_1: b:</p>\n", "and it is text as before"


def test_markdown_without_its_table(full: AuditReport) -> None:
    short, whole = markdown(full, table=False), markdown(full)
    assert whole.startswith(short.rstrip()) and "| rate |" in whole
    assert "| rate |" not in short and "Nothing was measured" not in short and short.count("\n- ") == len(full.reasons)


def test_the_class_that_pays_most(full: AuditReport) -> None:
    found = worst_class(full)
    assert found is not None and found[0] == 9 and found[1].hits - found[2].hits == 65
    assert worst_class(full.model_copy(update={"purified": None})) is None
