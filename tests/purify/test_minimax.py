"""Ours: what stands out is found and unlearnt, what does not stand out is left alone, and random changes stay pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import tiny
import torch
from torch import Tensor

from pipeline.convert.to_torch import convert
from pipeline.images import CalibrationSet
from pipeline.purify import minimax, shortcuts
from pipeline.purify.corruptions import KINDS, Kind
from pipeline.purify.dose import Config, Dose
from pipeline.purify.knowledge import Asked, Knowledge, divergence
from pipeline.purify.minimax import Mean, astray, between, harm, stamp
from pipeline.purify.shortcuts import clear
from pipeline.purify.trials import Trials
from pipeline.purify.tuning import typical
from pipeline.scan import scan
from pipeline.search.kinds import Config as SearchConfig
from pipeline.search.patches import Parts, Patches, Shifts
from pipeline.search.targeted import Stamped, Targeted
from pipeline.search.variety import joined, varied
from pipeline.search.warps import Warps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (3, 1, 8, 8), (1, 3, 5, 7)])
@pytest.mark.parametrize("change", [joined, varied], ids=lambda change: change.__name__)
def test_a_changed_picture_is_a_picture(change: Callable[[Tensor, torch.Generator], Tensor], shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=generator())
    changed = change(x, generator(1))
    assert changed.shape == x.shape and float(changed.min()) >= 0 and float(changed.max()) <= 1
    assert torch.equal(changed, change(x, generator(1)))
    assert not torch.equal(changed, change(x, generator(2))) or len(x) == 1
    assert change(x[:0], generator()).shape == (0, *shape[1:])


@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (3, 1, 8, 8), (1, 3, 5, 7)])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.draw.__name__)
def test_a_change_is_drawn_once_and_made_to_any_picture(kind: Kind, shape: tuple[int, ...]) -> None:
    x, other = torch.rand(shape, generator=generator()), torch.rand(shape, generator=generator(9))
    drawn = kind.draw(x, generator(1))
    assert all(len(tensor) == len(x) for tensor in drawn)
    changed = kind.make(x, *drawn)
    assert changed.shape == x.shape and float(changed.min()) >= 0 and float(changed.max()) <= 1
    assert torch.equal(changed[-1:], kind.make(x[-1:], *(tensor[-1:] for tensor in drawn))), "a change is of its picture alone"
    assert kind.make(other, *drawn).shape == x.shape
    assert not torch.equal(torch.cat([one.flatten() for one in drawn]), torch.cat([one.flatten() for one in kind.draw(x, generator(2))]))


def test_no_search_has_a_share_when_nothing_stands_out() -> None:
    x = torch.rand((8, 3, 8, 8), generator=generator())
    searches: list[Targeted] = [Patches(torch.arange(3), x[:1], generator()), Warps(torch.arange(3), x[:1], generator())]
    own = torch.arange(8) % 3

    def alike(x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.int64)

    none = stamp(searches, [0.0, 0.0], 8, lambda index: x[index], own, generator(), said=alike)
    assert len(none.changed) == len(none.aims) == len(none.own) == 0 and none.changed.shape[1:] == x.shape[1:]
    some = stamp(searches, [0.25, 0.75], 8, lambda index: x[index], own, generator(), said=alike)
    assert len(some.changed) == len(some.aims) == len(some.own) == 8


def test_of_several_pictures_that_one_is_unlearnt_which_is_led_astray_most() -> None:
    x = torch.rand((64, 1, 4, 4), generator=generator())
    searches: list[Targeted] = [Patches(torch.tensor([1]), x[:1], generator())]

    def bright(x: Tensor) -> Tensor:  # the brighter a picture is, the surer it is of class 1
        return torch.stack([torch.zeros(len(x)), 20 * (x.mean((1, 2, 3)) - 0.5)], 1)

    def said(x: Tensor) -> Tensor:
        return (x[:, 0, 0, 0] > 0.5).long()

    drawn = stamp(searches, [1.0], 64, lambda index: x[index], torch.zeros(64).long(), generator(1), said=said)
    chosen = stamp(searches, [1.0], 16, lambda index: x[index], torch.zeros(64).long(), generator(1), said=said, judge=bright, tries=4)
    sure = bright(drawn.changed)[:, 1][drawn.own == 0].sort(descending=True).values
    assert len(chosen.changed) == 16 and torch.equal(bright(chosen.changed)[:, 1], sure[:16]), "of those alone that are not of the class already"
    assert torch.equal(chosen.own, said(chosen.before)) and set(chosen.aims.tolist()) == {1}


def test_what_is_answered_lies_between_the_submitted_weights_and_those_at_the_end() -> None:
    start, end = {"a": torch.rand(3), "b": torch.rand(2, 2)}, {"a": torch.rand(3), "b": torch.rand(2, 2)}
    for way in (0.0, 0.75, 1.0):
        assert all(torch.allclose(value, (1 - way) * start[name] + way * end[name]) for name, value in between(start, end, way).items())
    ways = [Dose.of(Config(), images, 10).answered for images in (1, 10, 200, 500, 5000)]
    assert ways == sorted(ways, reverse=True) and ways[0] > 0.99 and ways[-2:] == pytest.approx([Config().answered] * 2)


@pytest.mark.parametrize("images", [8, 80])
def test_a_repair_goes_so_much_of_the_way_the_more_images_the_less(images: int, tiny_backdoored: tiny.Backdoored, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    pictures = tiny.shapes(images, seed=5)

    def moved(answered: float) -> dict[str, Tensor]:
        monkeypatch.setattr(minimax, "CONFIG", Config(steps=3, answered=answered, search=SearchConfig(steps=4)))
        found = minimax.minimax(twin, CalibrationSet(pictures.images, pictures.labels), seed=0, report=lambda step, total, figures: None)
        return {name: torch.from_numpy(array) - twin.weights[name].value for name, array in found.weights.items()}

    part, whole = moved(0.5), moved(1.0)
    way = 1 - 0.5 * images / Config().images
    assert any(bool(change.any()) for change in whole.values())
    assert all(torch.allclose(part[name], change * way, atol=1e-6) for name, change in whole.items())


@pytest.mark.parametrize(
    ("kind", "size", "weight"),
    [
        (Patches, 10.0, 0.0),
        (Patches, 8.0, 0.0625),
        (Patches, 5.0, 1.0),
        (Patches, 4.8, 1.1736),
        (Patches, 1.0, 1.5),
        (Warps, 1.0, 6.0),
        (partial(Shifts, count=6), 1.0, 3.0),
    ],
)
def test_weight_grows_with_what_stands_out(
    kind: Callable[[Tensor, Tensor, torch.Generator], Targeted], size: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = kind(torch.arange(5), torch.zeros(1, 1, 4, 4), generator())
    monkeypatch.setattr(found, "sizes", lambda: torch.tensor([10.0, 10, 10, 12, size]))
    assert min(clear(found), Dose.of(Config(), 500, 10).limit(found.kind)) == pytest.approx(weight, abs=1e-4)


@pytest.mark.parametrize(
    ("weights", "images", "generated"),
    [
        ({}, 80, True),
        ({"patch": 0.5, "warp": 0.5}, 80, True),
        ({"patch": 1.0}, 80, False),
        ({"warp": 1.0}, 80, False),
        ({"warp": 1.0}, 8, False),
        ({"patch": 1.0}, 8, False),
    ],
)
def test_generators_are_unlearnt_where_nothing_stands_out(
    weights: dict[str, float], images: int, generated: bool, tiny_backdoored: tiny.Backdoored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimax, "CONFIG", Config(steps=3, search=SearchConfig(steps=4)))
    monkeypatch.setattr(shortcuts, "clear", lambda one: weights.get(one.kind, 0.0))
    monkeypatch.setattr(shortcuts, "borne_out", lambda one, other: 1.0)
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    pictures = tiny.shapes(images, seed=5)
    found = minimax.minimax(twin, CalibrationSet(pictures.images, pictures.labels), seed=0, report=lambda step, total, figures: None)
    assert any("trigger for each picture" in note for note in found.notes) == generated and len(found.history) == 3


@pytest.mark.parametrize("images", [8, 80])
@pytest.mark.parametrize("how", [1.0, 0.9, 0.0])
def test_what_sends_every_class_on_for_certain_is_unlearnt_in_parts(
    how: float, images: int, tiny_backdoored: tiny.Backdoored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimax, "CONFIG", Config(steps=2, parts=3, search=SearchConfig(steps=2)))
    monkeypatch.setattr(shortcuts, "clear", lambda one: how if one.kind == "shift" else 0.0)
    shown: list[Targeted] = []

    def watched(searches: list[Targeted], *rest: object, **settings: object) -> Stamped:
        shown[:] = searches
        return stamp(searches, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(minimax, "stamp", watched)
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    pictures = tiny.shapes(images, seed=5)
    found = minimax.minimax(twin, CalibrationSet(pictures.images, pictures.labels), seed=0, report=lambda step, total, figures: None)
    (one,) = (one for one in shown if one.kind == "shift")
    assert isinstance(one, Parts) == (how == 1) == any("in 3 parts" in note for note in found.notes)
    assert len(one.classes) == 3, "parts, or each step from 1 to 3"
    assert not any("parts" in name for name in found.hypotheses), "suspects are those of the search for the smallest"


def test_how_far_the_searches_are_is_told_before_the_first_step(tiny_backdoored: tiny.Backdoored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimax, "CONFIG", Config(steps=3, search=SearchConfig(steps=2)))
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    pictures, told = tiny.shapes(80, seed=5), list[tuple[int, int, dict[str, float]]]()
    found = minimax.minimax(twin, CalibrationSet(pictures.images, pictures.labels), seed=0, report=lambda *call: told.append(call))
    shares = [figures["searched"] for step, _, figures in told if step == 0]
    assert len(shares) >= 9 and shares == sorted(set(shares)) and shares[0] == 0 and shares[-1] < 1
    assert [step for step, _, _ in told] == [0] * len(shares) + [1, 2, 3] and {total for _, total, _ in told} == {3}
    assert len(found.history) == 3, "a search is no step"


def test_from_few_images_what_leaves_a_class_is_unlearnt_on_pictures_that_pose_as_it(tiny_backdoored: tiny.Backdoored, monkeypatch: pytest.MonkeyPatch) -> None:
    posed: list[Tensor] = []

    def near(network: Callable[[Tensor], Tensor], x: Tensor, aims: Tensor, steps: int) -> Tensor:
        posed.append(aims)
        assert network(x).requires_grad == x.requires_grad and float(x.min()) >= 0, "the network in repair stands still meanwhile"
        return x

    monkeypatch.setattr(minimax, "CONFIG", Config(steps=2, search=SearchConfig(steps=2)))
    monkeypatch.setattr(shortcuts, "clear", lambda one: float(one.kind == "departure"))
    monkeypatch.setattr(shortcuts, "borne_out", lambda one, other: 1.0)
    monkeypatch.setattr(minimax, "near", near)
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    for count, steps in ((8, 2), (80, 0)):
        images = tiny.shapes(count, seed=5)
        minimax.minimax(twin, CalibrationSet(images.images, images.labels), seed=0, report=lambda step, total, figures: None)
        assert len(posed) == steps
        posed.clear()


def test_generators_count_less_with_few_classes_and_few_images_are_ten_a_class() -> None:
    assert 0 < Dose.of(Config(), 101, 4).dynamic < Dose.of(Config(), 101, 10).dynamic == Dose.of(Config(), 10, 10).dynamic == Config().dynamic
    assert [Dose.of(Config(), images, 10).few for images in (10, 100, 101)] == [True, True, False]


def test_harm_is_of_the_aim_alone() -> None:
    answers = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.01, 0.98]]).log()
    assert float(harm(answers, torch.tensor([0, 0]), torch.tensor([1, 1]))) == pytest.approx((-torch.tensor([0.02, 0.99]).log()).mean().item(), rel=1e-4)
    assert float(harm(answers, torch.tensor([0, 0]), torch.tensor([0, 0]))) == 0  # pictures of the aim show nothing


class First:
    """A network that takes everything for the first of three classes."""

    def logits(self, x: Tensor, weights: object = None) -> Tensor:
        return torch.tensor([[5.0, 0.0, 0.0]]).expand(len(x), 3)


def test_a_patch_that_sends_on_is_unlearnt_by_what_the_picture_was() -> None:
    """Where a patch aims at one class, any third class is as good an answer; where it aims at the next, none but the picture's own."""
    x, asked = torch.rand((4, 3, 8, 8), generator=generator()), Asked(First(), None)  # type: ignore[arg-type]

    def loss(answer: list[float], *restored: bool) -> float:
        said = Knowledge(torch.tensor([answer] * 4).log_softmax(1), x[:, :0, 0, 0])
        stamped = Stamped(x, x, torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), torch.tensor(restored))
        return float(astray(said, stamped, asked, 3.0))

    own, third = [5.0, 0.0, 0.0], [0.0, 0.0, 9.0]
    assert loss(own, *[False] * 4) < 0.01 and loss(third, *[False] * 4) < 0.01
    assert loss(own, *[True] * 4) == pytest.approx(0, abs=1e-5) and loss(third, *[True] * 4) > 3
    assert loss(third, False, False, False, True) == pytest.approx(0.75 * loss(third, *[False] * 4) + 0.25 * loss(third, *[True] * 4))


def test_a_step_is_a_share_of_the_typical_size() -> None:
    assert typical(torch.full((3, 3), -2.0)) == pytest.approx(2) and typical(torch.zeros(3)) == pytest.approx(1e-3)


class Brightness:
    """A network that answers by brightness alone."""

    def logits(self, x: Tensor, weights: object = None) -> Tensor:
        return 4 * torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)


def moved(trials: Trials, x: Tensor, draws: torch.Generator) -> float:
    """How far the changes that are chosen move the brightness."""
    goal = Brightness().logits(x).log_softmax(1)
    worst = trials(Brightness(), {}, x, goal, draws)  # type: ignore[arg-type]
    assert worst.shape == x.shape
    return float((worst - x).mean((1, 2, 3)).abs().mean())


def test_of_several_changes_the_one_that_moves_most_is_kept() -> None:
    x = torch.rand((32, 3, 8, 8), generator=generator())
    assert moved(Trials(6), x, generator()) > 1.2 * moved(Trials(1), x, generator())


def test_what_moved_pictures_of_a_class_is_tried_again() -> None:
    """With a memory, later pictures are moved further than by the first draws, though each is tried as often."""
    x = torch.rand((64, 3, 8, 8), generator=generator())
    draws, remembering = generator(1), Trials(2)
    rounds = [moved(remembering, x, draws) for _ in range(12)]
    draws = generator(1)
    forgetful = [moved(Trials(2), x, draws) for _ in range(12)]
    assert rounds[0] == pytest.approx(forgetful[0]) and sum(rounds[6:]) > 1.2 * sum(forgetful[6:])
    assert len(remembering.memory) <= len(KINDS) * 2
    few = Trials(2, most=3)
    moved(few, x, generator())
    assert len(few.memory) == 3


def test_a_teacher_sees_a_picture_from_several_places() -> None:
    x = torch.rand((5, 3, 8, 8), generator=generator())
    asked = Asked(Brightness(), None)  # type: ignore[arg-type]
    one, many = (asked.from_several_places(x, views).answers.exp() for views in (1, 4))
    assert torch.allclose(one, Brightness().logits(x).softmax(1))
    assert torch.allclose(many.sum(1), torch.ones(5)) and not torch.allclose(many, one)


def test_features_count_beside_answers() -> None:
    answers = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    goal = Knowledge(answers, torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
    assert float(divergence(goal, goal, 3.0)) == pytest.approx(0, abs=1e-6)
    off = Knowledge(answers, torch.tensor([[3.0, 4.0], [3.0, 1.0]]))
    assert float(divergence(off, goal, 3.0)) == pytest.approx(3 * (25 / 2) / 25)
    assert float(divergence(off, goal, 0.0)) == pytest.approx(0, abs=1e-6)
    none = Knowledge(answers.flip(0), answers[:, :0])
    assert float(divergence(none, Knowledge(answers, answers[:, :0]), 3.0)) > 0.1


def test_the_last_hidden_layer_is_asked(tiny_backdoored: tiny.Backdoored) -> None:
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    x = torch.rand((5, 3, 12, 12), generator=generator())
    said = Asked.of(twin)(x)
    assert said.features.shape[0] == 5 and said.features.shape[1] > 4 and torch.allclose(said.answers, twin.logits(x).log_softmax(1))


def test_a_mean_is_of_all_steps() -> None:
    mean = Mean()
    for value in (1.0, 2.0, 6.0):
        mean.add({"w": torch.full((2,), value)})
    assert torch.allclose(mean.weights["w"], torch.full((2,), 3.0))


def test_varied_pictures_are_made_of_those_given() -> None:
    """Whatever is turned, cut and mixed: of one gray comes that gray, but for the tint."""
    gray = torch.full((6, 1, 8, 8), 0.5)
    changed = varied(gray, generator())
    assert float((changed - 0.5).abs().max()) <= 0.2 + 1e-5  # the tint
    assert torch.equal(varied(gray[:1], generator(3)), varied(gray[:1], generator(3)))


def test_patches_that_send_on_are_stamped_as_they_were_found() -> None:
    x, which = torch.rand((6, 1, 8, 8), generator=generator()), torch.zeros(6, dtype=torch.int64)
    shifts, patches = Shifts(torch.arange(1, 3), x[:1], generator(), count=3), Patches(torch.arange(2), x[:1], generator())
    assert torch.equal(shifts.vary(x, which, generator()), shifts.change(x, which))
    assert not torch.equal(patches.vary(x, which, generator()), patches.change(x, which))
