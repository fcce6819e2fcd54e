"""How sure: a network is held against reference models, and those against one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.detect.bank import KINDS, Reference, Scale, Standing, alone, nearest, read, references


def standings(*, patch: float = 1.3, warp: float = 1.2, median: float = 0.03) -> dict[str, Standing]:
    """So many times smaller than a median that is a share of the picture."""
    return {"patch": Standing(patch, median / patch), "warp": Standing(warp, 0.05 / warp)}


def bank(clean: int = 20, backdoored: int = 20, *, images: int = 100) -> list[Reference]:
    """Clean ones have patches up to 1.6 times smaller than usual; half of the others stand out by their patch, a quarter by a warp, a quarter by nothing."""
    random = np.random.default_rng(0)
    rows = []
    for place in range(clean + backdoored):
        is_one = place >= clean
        patch, warp, median = random.uniform(1.1, 1.6), random.uniform(1.1, 1.3), random.uniform(0.03, 0.05)
        if is_one and place % 2:
            patch = random.uniform(3, 9)
        elif is_one and place % 4:
            warp = random.uniform(3, 9)
        rows.append(Reference(f"model {place}", images, is_one, standings(patch=patch, warp=warp, median=median)))
    return rows


def test_what_stands_out_is_likely_and_what_is_usual_is_not() -> None:
    scale = Scale.of(bank())

    def score(**given: float) -> float:
        return scale.score(standings(**given))

    assert score(patch=6.0) > 0.8 and score(warp=6.0) > 0.8
    assert score() < 0.5
    assert score(patch=1.3) < score(patch=2.0) < score(patch=3.0), "the more it stands out the likelier"
    assert score(patch=2.5, median=0.01) > score(patch=2.5) > score(patch=2.5, median=0.3), "and the smaller it is"
    assert scale.score({}) == 0 == scale.score({"unheard": Standing(9.0, 0.001)}) and 0 <= score(patch=1e9) <= 1


def test_reference_models_are_judged_without_themselves() -> None:
    rows = bank()
    scores = alone(rows)
    assert len(scores) == len(rows) and scores != [Scale.of(rows).score(one.standings) for one in rows]
    found = [score >= 0.5 for score, one in zip(scores, rows, strict=True) if one.backdoored]
    assert 0.7 <= sum(found) / len(found) < 1, "a quarter has nothing that stands out"
    assert sum(score >= 0.5 for score, one in zip(scores, rows, strict=True) if not one.backdoored) <= 2


@pytest.mark.parametrize("rows", [bank(0, 5), bank(5, 0), []], ids=["no clean ones", "no backdoored ones", "nothing"])
def test_a_bank_of_one_sort_is_refused(rows: list[Reference]) -> None:
    with pytest.raises(ValueError, match="clean and backdoored"):
        Scale.of(rows)


def test_the_number_of_images_chooses_the_rows() -> None:
    rows = [*bank(images=10), *bank(images=100)]
    assert {one.images for one in nearest(rows, 500)} == {100} == {one.images for one in nearest(rows, 60)}
    assert {one.images for one in nearest(rows, 1)} == {10} == {one.images for one in nearest(rows, 12)}


def test_the_bank_that_ships() -> None:
    rows = references()
    for images in {one.images for one in rows}:
        some = nearest(rows, images)
        clean = [one for one in some if not one.backdoored]
        assert len(clean) >= 10 and len(some) - len(clean) >= 15
        assert len({one.name for one in some}) == len(some)
        assert all(set(one.standings) <= set(KINDS) and all(0 < it.share < 1 <= it.outlier for it in one.standings.values()) for one in some)
        scores = alone(some)
        right = [(score >= 0.5) == one.backdoored for score, one in zip(scores, some, strict=True)]
        assert sum(right) / len(right) > 0.7


def test_a_kind_that_was_not_searched_for_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bank.csv").write_text("model,images,attack,patch,warp,shift,departure,addition\na,1,clean,0.3 0.2 0.1 0.4,0.1 0.1,0.05 0.1 0.15,,\n")
    (one,) = read(tmp_path / "bank.csv")
    assert one.images == 4, "one of each class"
    expected = {"patch": (2.5, 0.1), "warp": (1.0, 0.1), "shift": (2.0, 0.05)}
    assert {kind: (it.outlier, it.share) for kind, it in one.standings.items()} == {kind: pytest.approx(pair) for kind, pair in expected.items()}
    assert not one.backdoored
