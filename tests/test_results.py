"""Rates, against scipy and by their properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binomtest

from pipeline.results import Parity, Rate

COUNTS = st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@given(COUNTS)
def test_the_interval_is_wilsons(counts: tuple[int, int]) -> None:
    hits, total = counts
    rate = Rate.of(hits, total)
    expected = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert rate.low == pytest.approx(expected.low, abs=1e-9)
    assert rate.high == pytest.approx(expected.high, abs=1e-9)


@given(COUNTS)
def test_the_rate_lies_in_its_interval(counts: tuple[int, int]) -> None:
    rate = Rate.of(*counts)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert rate.low < rate.high
    assert rate.rate * rate.total == pytest.approx(rate.hits)
    assert Rate.model_validate_json(rate.model_dump_json()) == rate


@given(COUNTS)
def test_misses_mirror_hits(counts: tuple[int, int]) -> None:
    hits, total = counts
    rate, mirrored = Rate.of(hits, total), Rate.of(total - hits, total)
    assert rate.low == pytest.approx(1 - mirrored.high, abs=1e-12)


@given(COUNTS)
def test_more_images_say_more(counts: tuple[int, int]) -> None:
    hits, total = counts
    one, ten = Rate.of(hits, total), Rate.of(10 * hits, 10 * total)
    assert ten.high - ten.low < one.high - one.low


def test_certainty_is_never_claimed() -> None:
    assert Rate.of(0, 100).high == pytest.approx(0.0370, abs=1e-4)
    assert Rate.of(100, 100).low == pytest.approx(0.9630, abs=1e-4)


@pytest.mark.parametrize(("hits", "total"), [(2, 1), (-1, 3)])
def test_impossible_counts(hits: int, total: int) -> None:
    with pytest.raises((ValidationError, ValueError)):
        Rate.of(hits, total)


@pytest.mark.parametrize(
    ("difference", "hits", "holds"),
    [(0.0, 10, True), (1e-3, 10, True), (1.1e-3, 10, False), (0.0, 9, False), (float("nan"), 10, False), (float("inf"), 10, False)],
)
def test_parity_holds(difference: float, hits: int, holds: bool) -> None:
    assert Parity(max_relative_difference=difference, label_agreement=Rate.of(hits, 10)).holds is holds
