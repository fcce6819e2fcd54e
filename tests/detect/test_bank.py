"""How sure: a network is held against reference models, and those against one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.detect.bank import KINDS, Reference, Scale, alone, nearest, read, references


def bank(clean: int = 20, backdoored: int = 20, *, images: int = 100) -> list[Reference]:
    """Clean ones have patches up to 1.6 times smaller than usual; half of the others stand out by their patch, a quarter by a warp, a quarter by nothing."""
    random = np.random.default_rng(0)
    rows = []
    for place in range(clean + backdoored):
        is_one = place >= clean
        patch, warp = random.uniform(1.1, 1.6), random.uniform(1.1, 1.3)
        if is_one and place % 2:
            patch = random.uniform(3, 9)
        elif is_one and place % 4:
            warp = random.uniform(3, 9)
        rows.append(Reference(f"model {place}", images, is_one, {"patch": patch, "warp": warp}))
    return rows


def test_what_stands_out_is_likely_and_what_is_usual_is_not() -> None:
    scale = Scale.of(bank())

    def score(**outliers: float) -> float:
        return scale.probability(scale.most(outliers))

    assert score(patch=6.0, warp=1.2) > 0.8 and score(patch=1.3, warp=6.0) > 0.8
    assert score(patch=1.3, warp=1.2) < 0.5
    assert score(patch=1.3) < score(patch=2.0) < score(patch=3.0), "the more it stands out the likelier"
    assert scale.deviation("warp", 2.0) > scale.deviation("patch", 2.0), "what is unusual of a warp is usual of a patch"
    assert score(unheard=9.0) == 0.0 and 0 <= score(patch=1e9) <= 1


def test_reference_models_are_judged_without_themselves() -> None:
    rows = bank()
    scores = alone(rows)
    assert len(scores) == len(rows) and scores != [Scale.of(rows).probability(Scale.of(rows).most(one.outliers)) for one in rows]
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
        assert all(set(one.outliers) <= set(KINDS) and all(value >= 1 for value in one.outliers.values()) for one in some)
        scores = alone(some)
        right = [(score >= 0.5) == one.backdoored for score, one in zip(scores, some, strict=True)]
        assert sum(right) / len(right) > 0.7


def test_a_kind_that_was_not_searched_for_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bank.csv").write_text("model,images,attack,patch,warp,shift,departure,addition\na,10,clean,1.2,1.1,1.3,nan,\n")
    (one,) = read(tmp_path / "bank.csv")
    assert one.outliers == {"patch": 1.2, "warp": 1.1, "shift": 1.3} and not one.backdoored
