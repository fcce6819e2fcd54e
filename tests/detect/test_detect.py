"""The search finds a backdoor that nobody told of, and what it recovers is a trigger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from pipeline.convert.to_torch import convert
from pipeline.detect.bank import Scale
from pipeline.detect.detect import anomaly_index, detect, likely
from pipeline.detect.recovered import trigger_of
from pipeline.errors import ImagesRefused
from pipeline.images import CalibrationSet
from pipeline.scan import scan
from pipeline.search.additions import Additions, Faint
from pipeline.search.kinds import Searched
from pipeline.search.patches import Departures, Patches, Shifts
from pipeline.search.targeted import Targeted
from pipeline.search.warps import Warps
from pipeline.triggers import trigger_spec


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_an_untold_trigger_is_found_and_works(tiny_backdoored: tiny.Backdoored, tmp_path: Path) -> None:
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    images = tiny.shapes(100, seed=5)
    told: list[str] = []
    found = detect(
        twin, CalibrationSet(images.images, images.labels), seed=1, seconds=600, folder=tmp_path, told=lambda kind, done, total: told.append(kind)
    )  # fmt: skip
    first = found.hypotheses[0]
    assert first.score == pytest.approx(found.score) == max(one.score for one in found.hypotheses) and found.complete
    assert found.score >= 0.75 and found.hypotheses[1].score < 0.5, "likelier than all else"
    assert (first.kind, first.target) == ("patch", tiny_backdoored.trigger.target) and first.outlier > 2 and first.reached.rate > 0.7
    assert len(found.differences) == len(found.hypotheses) and found.differences.shape[1:] == (12, 12, 3)
    assert set(found.sizes) == {"patch", "warp", "shift", "departure", "addition", "faint"} == set(told)
    others = tiny.shapes(200, seed=6)  # images that the search did not see
    trigger = trigger_spec(first.trigger).build(3)
    x = torch.from_numpy(trigger(others.pictures()[others.labels != first.target])).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert float((twin.logits(x).argmax(1) == first.target).float().mean()) > 0.6


def test_nothing_is_found_without_images(tiny_backdoored: tiny.Backdoored, tmp_path: Path) -> None:
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    none = CalibrationSet(np.zeros((0, 12, 12, 3), np.uint8), np.zeros(0, np.int64))
    with pytest.raises(ImagesRefused):
        detect(twin, none, seed=0, seconds=60, folder=tmp_path)


def made(kind: type[Targeted], picture: torch.Tensor) -> Targeted:
    """A change with parameters that are not small."""
    classes = torch.tensor([2, 0])
    one = Shifts(classes + 1, picture, generator(), count=4) if kind is Shifts else kind(classes, picture, generator())
    with torch.no_grad():
        for parameter in one.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator()) * (0.3 if kind is Additions else 1.0))
    return one


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [Patches, Warps, Additions, Faint, Departures], ids=lambda kind: kind.__name__)
def test_a_recovered_trigger_does_what_was_found(kind: type[Targeted], channels: int, tmp_path: Path) -> None:
    """In NumPy, from its files, the same pictures as in torch; 8-bit files allow for a rounding."""
    x = torch.rand((4, channels, 10, 14), generator=generator())
    one = made(kind, x[:1])
    fields = trigger_of(one, 0, tmp_path)
    assert fields["target"] == 2 or kind is Departures
    assert fields["source"] == (2 if kind is Departures else None)
    stamped = np.clip(trigger_spec(fields).build(channels)(x.permute(0, 2, 3, 1).numpy()), 0, 1)
    with torch.no_grad():
        expected = one.change(x, torch.zeros(4, dtype=torch.int64)).permute(0, 2, 3, 1).numpy()
    assert np.abs(stamped - expected).max() < 0.01


def test_a_step_is_a_trigger(tmp_path: Path) -> None:
    one = made(Shifts, torch.rand((1, 3, 8, 8), generator=generator()))
    assert [trigger_of(one, row, tmp_path)["target"] for row in (0, 1)] == ["+3", "next"]


def test_others_that_stand_out_as_well_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Patches(torch.arange(10), torch.zeros(1, 3, 8, 8), generator())
    monkeypatch.setattr(one, "sizes", lambda: torch.tensor([30.0, 31, 4, 29, 5, 33, 30, 28, 3.5, 30]))
    one.reached = torch.tensor([0.9] * 8 + [0.95, 0.9])
    scale = Scale({"patch": np.array([0.3, 0.7])}, {"patch": np.array([0.2, 0.2])}, 1.0, -2.0)
    assert [row for row, _ in likely(one, scale)] == [8, 2, 4]
    one.reached[2] = 0.3
    assert [row for row, _ in likely(one, scale)] == [8, 4], "one that does not do what it should is no hypothesis beside another"


def test_the_index_of_neural_cleanse() -> None:
    one = Patches(torch.arange(5), torch.zeros(1, 3, 8, 8), generator())
    one.sizes = lambda: torch.tensor([10.0, 11, 12, 13, 2])  # type: ignore[method-assign]
    assert anomaly_index(Searched([one])) == pytest.approx((11 - 2) / (1.4826 * 1))
    assert anomaly_index(Searched()) == 0
