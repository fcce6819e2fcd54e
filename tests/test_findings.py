"""Text of a submitted file, made fit to print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.findings import Finding, Severity, printable


@given(st.text(st.characters(exclude_categories=[])), st.integers(0, 50))
def test_always_printable_and_never_long(text: str, limit: int) -> None:
    shown = printable(text, limit=limit)
    assert shown.isprintable()
    assert len(shown) <= limit + 1
    shown.encode()  # no lone surrogates


@given(st.text(st.characters(categories=["L", "N", "P"]), max_size=300))
def test_plain_text_is_left_alone(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("evil", ["\x1b[2J", "a\nb", "\r", "\u202egnp", "\u2028", "\x00", "\x9b31m", "\ud800"])
def test_what_moves_a_terminal_is_replaced(evil: str) -> None:
    assert "\N{REPLACEMENT CHARACTER}" in printable(evil)
    finding = Finding(rule="r", severity=Severity.LOW, message=evil, where=evil)
    assert finding.message.isprintable() and finding.where.isprintable()


def test_a_cut_is_shown() -> None:
    assert printable("x" * 301) == "x" * 300 + "…"
    assert printable("x" * 300) == "x" * 300
    assert printable(b"\xff") == "b'\\xff'"


def test_severities_rank() -> None:
    assert sorted(Severity, key=lambda severity: severity.rank) == ["info", "low", "medium", "high", "critical"]


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        Finding(rule="r", severity="low", message="m", colour="red")
