"""A network that forgets its clean pictures keeps its short cut, and shows it more clearly; what is chosen by it, and what is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import read_spec
from pipeline.convert.to_torch import convert
from pipeline.images import CalibrationSet, HoldoutSet, LabelledImages, read, split
from pipeline.purify import forgetting
from pipeline.purify.dose import Config, Dose
from pipeline.purify.forgetting import forgetful
from pipeline.purify.minimax import stamp
from pipeline.purify.shortcuts import borne_out, clear, clearest, compared, forgotten
from pipeline.purify.trials import Trials
from pipeline.scan import scan
from pipeline.search.examples import Examples
from pipeline.search.patches import Patches, Shifts
from pipeline.search.targeted import Targeted
from pipeline.search.warps import Warps
from pipeline.twin import TorchTwin

FOLDER = Path(__file__).resolve().parents[2] / "models" / "cifar10_trojan"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trojan() -> tuple[TorchTwin, Examples, Tensor, Tensor, Tensor, int]:
    """The demonstration's network, ten images to forget; of the hold-out images that are not of the target pictures, triggered ones and labels; the target."""
    spec = read_spec(FOLDER / "audit.yaml")
    assert spec.input is not None and spec.data.holdout is not None
    ten = split(read(spec.data.calibration), calibration=10, seed=0)[0]
    holdout = read(spec.data.holdout)
    held = HoldoutSet(holdout.images[:400], holdout.labels[:400])
    (trigger,) = spec.triggers
    target = spec.target_of(trigger)
    assert isinstance(target, int)
    others = held.labels != target
    pictures = LabelledImages(held.images[others], held.labels[others]).pictures()
    stamped = trigger.build(3)(pictures)
    x, triggered = (torch.from_numpy(part.transpose(0, 3, 1, 2).copy()) for part in (pictures, stamped))
    twin = convert(FOLDER / "model.onnx", spec.input, scan(FOLDER / "model.onnx").model)[0]
    return twin, Examples.of(twin, CalibrationSet(ten.images, ten.labels)), x, triggered, torch.from_numpy(held.labels[others].copy()), target


def test_what_clean_pictures_are_is_forgotten_before_the_trigger(trojan: tuple[TorchTwin, Examples, Tensor, Tensor, Tensor, int]) -> None:
    twin, ten, x, triggered, labels, target = trojan
    forgot = forgetful(twin, ten, 0.7, generator())
    with torch.no_grad():
        before, after = twin.logits(x).softmax(1), forgot.logits(x).softmax(1)
        there = forgot.logits(triggered).softmax(1)
    assert float(before.gather(1, labels[:, None]).mean()) > 1.2 * float(after.gather(1, labels[:, None]).mean())
    assert float((there.argmax(1) == target).float().mean()) > 0.95
    assert float(there[:, target].mean()) > 0.9
    assert torch.equal(forgetful(twin, ten, 0.7, generator()).logits(x[:8]), forgot.logits(x[:8])), "a seed settles it"
    assert torch.equal(twin.logits(x).softmax(1), before), "and the network itself is as it was"


def test_it_stops_where_enough_is_forgotten(trojan: tuple[TorchTwin, Examples, Tensor, Tensor, Tensor, int]) -> None:
    """Networks get there after different numbers of steps, and further on the short cuts are gone too."""
    twin, ten, *_ = trojan

    def certain(config: forgetting.Config) -> float:
        weights = forgetting.forget(twin, ten, 0.0, config, generator())
        with torch.no_grad():
            answers = twin.logits(ten.pictures, weights).log_softmax(1)
        return float(-answers.mean() / math.log(answers.shape[1]) - 1)

    usual, quick = forgetting.Config(), replace(forgetting.CONFIG, rate=forgetting.CONFIG.rate * 4)
    assert certain(replace(usual, steps=0)) > 3 * usual.indifferent
    assert certain(replace(quick, indifferent=0.0)) < usual.indifferent / 2, "it would have gone on"
    assert usual.indifferent / 2 < certain(quick) < usual.indifferent * 2
    assert certain(usual) == pytest.approx(certain(quick), rel=0.5)
    assert certain(replace(usual, indifferent=1e9)) == certain(replace(usual, steps=0))


class Corner:
    """Class 1 where the first pixel is bright, or where all is, as `share` has it; else class 0."""

    def __init__(self, share: float) -> None:
        self.share = share

    def logits(self, x: Tensor, weights: object = None) -> Tensor:
        bright = (1 - self.share) * x[:, :, 0, 0].mean(1) + self.share * x.mean((1, 2, 3))
        return 8 * torch.stack([0.5 - bright, bright - 0.5], 1)


def test_a_critic_chooses_what_it_falls_for_too() -> None:
    x = torch.zeros(64, 3, 8, 8)
    goal = Corner(0).logits(x).log_softmax(1)

    def corner(critic: Corner | None) -> float:
        chosen = Trials(12)(Corner(1), {}, x, goal, generator(), critic=critic)  # type: ignore[arg-type]
        return float(chosen[:, :, 0, 0].mean())

    assert corner(Corner(0)) > 1.5 * corner(None)


def test_stamped_pictures_are_what_the_network_says_they_are() -> None:
    """They are shown so changed that their own class no longer holds."""
    x = torch.rand((8, 3, 8, 8), generator=generator())
    steps = Shifts(torch.tensor([1, 2]), x[:1], generator(), count=4)
    own = torch.zeros(8, dtype=torch.long)
    stamped = stamp([steps], [1.0], 8, lambda index: x[index], own, generator(), said=lambda x: torch.full((len(x),), 3))
    assert stamped.own.tolist() == [3] * 8 and set(stamped.aims.tolist()) <= {0, 1}


Found = Callable[..., Targeted]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """A search of a kind whose smallest change, to one class, is so large, the others being of 10 or more."""

    def made(kind: type[Targeted], smallest: float, target: int = 4) -> Targeted:
        one = kind(torch.arange(5), torch.zeros(1, 1, 4, 4), generator())
        sizes = torch.tensor([10.0, 10, 10, 10, 10])
        sizes[(target + 1) % 5], sizes[target] = 12, smallest
        monkeypatch.setattr(one, "sizes", lambda: sizes)
        return one

    return made


def test_of_a_kind_the_search_is_kept_in_which_more_stands_out(found: Found) -> None:
    patch, bend, sharp, dull, sharpest = found(Patches, 2.0), found(Warps, 9.0), found(Warps, 4.0), found(Patches, 6.0), found(Patches, 1.0)
    dose = Dose.of(Config(), 500, 10)

    def kept(submitted: list[Targeted], forgetful: list[Targeted]) -> list[Targeted]:
        return [one for one, _ in clearest(submitted, forgetful, dose)]

    assert kept([patch, bend], [dull, sharp]) == [patch, sharp]
    assert kept([patch], [sharpest]) == [patch], "both are as clear as counts"
    assert kept([patch], [sharp]) == [patch, sharp], "a kind that was looked for in one of them alone"
    assert kept([bend], [bend, sharp, bend]) == [sharp], "a kind that was looked for more than once"


def test_what_stands_out_counts_as_far_as_the_other_network_bears_it_out(found: Found) -> None:
    """A short cut is in both, and what stands out by chance is another class in each."""
    one, dose = found(Patches, 2.0), Dose.of(Config(), 500, 10)
    for size, borne in ((1.0, 1.0), (5.0, 1.0), (8.0, 0.25), (10.0, 0.0)):
        assert borne_out(one, found(Patches, size)) == pytest.approx(borne)
    assert borne_out(one, found(Patches, 1.0, target=2)) == 0
    ((_, worth),) = clearest([one], [found(Patches, 8.0)], dose)
    assert worth == pytest.approx(clear(one) / 4) == pytest.approx(4.0)
    assert [worth for _, worth in clearest([one], [found(Patches, 1.0, target=2)], dose)] == [0.0], "each by chance"
    assert [worth for _, worth in clearest([one], [], dose)] == [clear(one)], "nobody else to ask"


def test_what_one_search_does_not_see_another_of_the_same_network_may(found: Found) -> None:
    """Warps are sought in the forgetful network twice."""
    one, dose = found(Warps, 2.0), Dose.of(Config(), 500, 10)
    for others in ([found(Warps, 1.0, target=2), found(Warps, 4.0)], [found(Warps, 4.0), found(Warps, 1.0, target=2)]):
        assert (one, clear(one)) in clearest([one], others, dose)


def test_a_class_that_the_other_network_was_not_searched_for_is_not_borne_out(found: Found) -> None:
    one, other = found(Patches, 2.0), found(Patches, 2.0)
    other.classes = torch.arange(10, 15)
    assert borne_out(one, other) == 0


def test_beside_what_stands_out_most_others_count_less() -> None:
    assert compared([1.5, 6.0, 0.0], [81.0, 9.0, 0.0]) == pytest.approx([1.5, 6.0 / 3, 0.0])
    assert compared([6.0, 0.0], [9.0, 0.0]) == [6.0, 0.0], "alone it counts in full"
    assert compared([0.0], [0.0]) == [0.0]


@pytest.mark.parametrize(
    ("images", "classes", "most", "away"),
    [(101, 10, 1 / 4, 1 / 2), (500, 10, 1 / 4, 1 / 2), (5000, 43, 1 / 4, 1 / 2), (41, 4, 1 / 6, 1 / 6), (71, 7, 1 / 6, 1 / 3), (21, 2, 1 / 18, 1 / 18)],
)
def test_with_more_than_a_few_images_a_patch_weighs_less(images: int, classes: int, most: float, away: float) -> None:
    """A warp does not: it is everywhere in a picture.  Among few classes one stands out by chance."""
    dose = Dose.of(Config(), images, classes)
    assert (dose.most, dose.away, dose.bent) == pytest.approx((most * Config().most, away * Config().most, Config().most))


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (10, 10), (100, 10), (40, 4), (430, 43)])
def test_with_few_images_what_leaves_a_class_weighs_as_a_warp(images: int, classes: int) -> None:
    """It is found and unlearnt on pictures that pose.  A patch is not: the pictures that it leads furthest astray are chosen, which is as much again."""
    dose = Dose.of(Config(), images, classes)
    assert (dose.most, dose.away, dose.bent) == (Config().most / 2, Config().most, Config().most)


def test_the_fewer_images_there_are_the_more_are_varied_and_the_less_is_changed() -> None:
    doses = [Dose.of(Config(), images, 10) for images in (1, 10, 100, 200, 500, 5000)]
    assert doses[-1] == doses[-2], "enough is enough"
    for fewer, more in pairwise(doses[:-1]):
        assert Config().varied > fewer.varied > more.varied >= Config().varied / 2
        assert fewer.rate < more.rate <= Config().rate
        assert fewer.rho < more.rho <= Config().rho
        assert fewer.nu < more.nu <= Config().nu


def test_a_note_says_what_it_showed() -> None:
    one = Patches(torch.arange(3), torch.rand((1, 3, 8, 8), generator=generator()), generator())
    with torch.no_grad():
        one.parameters[0][1] -= 3.0
    assert forgotten(one).startswith("in a copy that has forgotten its pictures, the patch to class 1 stands out: the median is ")
