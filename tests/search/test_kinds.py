"""What stands out is found, whatever kind of change it is, in time and whatever the number of classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.convert.to_torch import convert
from pipeline.images import CalibrationSet
from pipeline.scan import scan
from pipeline.search import targeted
from pipeline.search.additions import Additions, Faint
from pipeline.search.examples import Examples
from pipeline.search.generators import LIKELY, STARTS, Generators
from pipeline.search.kinds import EVERY, Config, search
from pipeline.search.patches import Departures, Parts, Patches, Shifts
from pipeline.search.targeted import Targeted
from pipeline.search.warps import Warps, warp
from pipeline.search.windows import best_windows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_warp_moves_by_pixels() -> None:
    x = torch.rand((1, 1, 8, 8), generator=generator())
    field = torch.zeros(1, 2, 4, 4)
    assert torch.allclose(warp(x, field), x, atol=1e-5)
    field[:, 0] = 1
    assert torch.allclose(warp(x, field)[..., :-1], x[..., 1:], atol=1e-5)  # what was to the right
    field[:, 0], field[:, 1] = 0, 2
    assert torch.allclose(warp(x, field)[..., :-2, :], x[..., 2:, :], atol=1e-5)  # what was below


def short_cut(x: Tensor) -> Tensor:
    """Four classes by the brightness of quarters, and a bright corner of two by two pixels is class 2 whatever else there is."""
    quarters = 10 * torch.stack([x[..., rows, columns].mean((1, 2, 3)) for rows in (slice(0, 4), slice(4, 8)) for columns in (slice(0, 4), slice(4, 8))], 1)
    return quarters + 20 * x[:, :, 6:, 6:].mean((1, 2, 3))[:, None] ** 3 * torch.tensor([0.0, 0, 1, 0])


def searched(found: Targeted, network: Callable[[Tensor], Tensor]) -> Targeted:
    """After 80 steps on 200 dark pictures."""
    x = 0.6 * torch.rand((200, 1, 8, 8), generator=generator(3))
    found.search(network, lambda index: x[index], network(x).argmax(1), generator(), steps=80, count=6)
    return found


EMPTY = torch.zeros(1, 1, 8, 8)


def test_a_short_cut_stands_out_and_is_where_it_is() -> None:
    found = searched(Patches(torch.arange(4), EMPTY, generator()), short_cut)
    sizes = found.sizes().detach()
    assert int(sizes.argmin()) == 2 and found.outlier > 1.4
    opacity = found.parameters[0].detach().sigmoid()[2, 0]
    assert float(opacity[6:, 6:].mean()) > 3 * float(opacity.mean())
    x = torch.rand((64, 1, 8, 8), generator=generator())
    aims = found.stamp(lambda index: x[index], torch.zeros(64, dtype=torch.int64), 64, generator()).aims
    assert int(aims.mode().values) == 2


def bright(own: Tensor) -> Tensor:
    """A picture of each class: its quarter is the brightest."""
    quarters = F.one_hot(own, 4).float().view(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return 0.2 + 0.4 * quarters + 0.1 * torch.rand((len(own), 1, 8, 8), generator=generator(3))


def cornered(sources: list[float]) -> Callable[[Tensor], Tensor]:
    """A network that sees the brightest quarter, the middle of the picture apart; a bright middle turns a share of each source into the next class."""

    def network(x: Tensor) -> Tensor:
        middle = x[:, :, 3:5, 3:5].mean((1, 2, 3))[:, None]
        quarters = 30 * torch.stack([x[..., r, c].mean((1, 2, 3)) for r in (slice(0, 3), slice(5, 8)) for c in (slice(0, 3), slice(5, 8))], 1)
        share = (quarters * 3).softmax(1) * torch.tensor(sources) * middle**3
        return quarters + 60 * share.roll(1, 1)

    return network


def found_by(search: Targeted, network: Callable[[Tensor], Tensor]) -> Targeted:
    x = bright(torch.arange(200) % 4)
    assert torch.equal(network(x).argmax(1), torch.arange(200) % 4)
    search.search(network, lambda index: x[index], torch.arange(200) % 4, generator(), steps=80, count=6)
    return search


def test_a_short_cut_from_each_class_to_the_next_stands_out() -> None:
    found = found_by(Shifts(torch.arange(1, 4), EMPTY, generator(), count=4), cornered([1, 1, 1, 1]))
    sizes = found.sizes().detach()
    assert int(found.classes[sizes.argmin()]) == 1 and found.outlier > 1.4 and str(found.aim(0)) == "to each class + 1"
    x = torch.rand((64, 1, 8, 8), generator=generator())
    stamped = found.stamp(lambda index: x[index], torch.arange(64) % 4, 64, generator())
    assert int(((stamped.aims - stamped.own) % 4).mode().values) == 1


def test_a_short_cut_that_two_in_three_pictures_take_is_small_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As networks learn to send every class on.  Regression: the patch grew, to move the others too."""
    fixed, open_ = bright(torch.arange(200) % 4), cornered([1, 1, 1, 1])

    def network(x: Tensor) -> Tensor:
        shut = x.clone()
        shut[:, :, 3:5, 3:5] = 0.2
        taken = (x[:, 0, 0, 3] * 1000).floor() % 3 > 0  # what a pixel beside the patch says: two in three
        return torch.where(taken[:, None], open_(x), open_(shut))

    assert torch.equal(network(fixed).argmax(1), torch.arange(200) % 4)

    def smallest() -> float:
        found = Shifts(torch.arange(1, 4), EMPTY, generator(), count=4)
        found.search(network, lambda index: fixed[index], torch.arange(200) % 4, generator(), steps=80, count=6)
        assert int(found.classes[found.sizes().argmin()]) == 1
        return float(found.sizes().detach().min())

    found = smallest()
    monkeypatch.setattr(Shifts, "enough", 0.9)
    assert found < 0.7 * smallest()


def test_in_parts_every_patch_sends_on_and_keeps_to_its_places() -> None:
    whole = found_by(Shifts(torch.arange(1, 4), EMPTY, generator(), count=4), cornered([1, 1, 1, 1]))
    assert isinstance(whole, Shifts)
    parts = Parts(whole, EMPTY, generator(), patches=6)
    assert parts.classes.tolist() == [1] * 6 and str(parts.aim(5)) == "to each class + 1"
    found_by(parts, cornered([1, 1, 1, 1]))
    painted = parts.differences(torch.zeros(2, 1, 8, 8)).abs() > 0
    assert isinstance(parts.places, Tensor) and not (painted & (parts.places == 0)).any()
    middle = [frozenset(places[0, 3:5, 3:5].flatten().nonzero().flatten().tolist()) for places in parts.places]
    assert len(set(middle)) > 2, "each is another part of what turns pictures"
    some = torch.tensor([bool(places) for places in middle])
    assert some.sum() > 3 and bool((parts.reached[some] > 0.4).all()), "where there is a part of it at all"
    x = bright(torch.arange(200) % 4)
    drawn = parts.stamp(lambda index: x[index], torch.arange(200) % 4, 300, generator())
    assert bool((drawn.aims == (drawn.own + 1) % 4).all()) and bool(drawn.restored.all())


def test_a_short_cut_from_one_class_stands_out() -> None:
    found = found_by(Departures(torch.arange(4), EMPTY, generator()), cornered([0, 0, 1, 0]))
    assert isinstance(found, Departures)
    sizes = found.sizes().detach()
    assert int(sizes.argmin()) == 2 and found.outlier > 1.4 and str(found.aim(2)) == "from class 2 to class 3"
    x = torch.rand((64, 1, 8, 8), generator=generator())
    stamped = found.stamp(lambda index: x[index], torch.arange(64) % 4, 64, generator())
    assert int(stamped.own.mode().values) == 2 and set(stamped.aims[stamped.own == 2].tolist()) == {3}


@pytest.mark.parametrize("kind", [Patches, Warps])
def test_what_a_change_adds(kind: type[Targeted]) -> None:
    x = torch.rand((5, 3, 8, 8), generator=generator())
    found = kind(torch.arange(3), x[:1], generator())
    assert found.differences(x).shape == (3, 3, 8, 8) and found.sizes().shape == (3,)
    stamped = found.stamp(lambda index: x[index], torch.arange(5) % 3, 5, generator())
    assert stamped.before.shape == stamped.changed.shape == x.shape and stamped.aims.shape == stamped.own.shape == (5,)
    assert float(stamped.changed.min()) >= 0 and float(stamped.changed.max()) <= 1 and not stamped.restored.any()


def test_patches_are_stamped_with_other_edges() -> None:
    """Bolder than they were found, too: a patch of faint opacity is also stamped as a solid one."""
    x = torch.zeros(200, 1, 8, 8)
    found = Patches(torch.arange(1), x[:1], generator())
    with torch.no_grad():
        opacity, pattern = found.parameters
        opacity.fill_(-8)
        opacity[:, :, 6:, 6:] = 0.5  # 0.62 of a pixel
        pattern.fill_(1.0)
    which = torch.zeros(200, dtype=torch.int64)
    with torch.no_grad():
        plain, varied_ones = found.change(x, which), found.vary(x, which, generator())
    corner = varied_ones[:, 0, 6:, 6:].mean((1, 2))
    assert float(corner.max()) > 1.5 * float(plain[:, 0, 6:, 6:].mean()) and float(corner.std()) > 0.05
    assert float(varied_ones[:, 0, :6].max()) < 0.02, "what is not part of the patch stays as it is"


def test_an_added_pattern_stands_out() -> None:
    """Class 2 takes a faint checkerboard for a command."""
    board = 0.06 * (2.0 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2) - 1)

    def network(x: Tensor) -> Tensor:
        seen = (x * board).sum((1, 2, 3)) / board.square().sum()
        return short_cut(x) + 40 * seen[:, None].clamp(0, 1) * torch.tensor([0.0, 0, 1, 0]) - 20 * x[:, :, 6:, 6:].mean((1, 2, 3))[:, None] ** 3

    found = searched(Additions(torch.arange(4), EMPTY, generator()), network)
    assert int(found.sizes().argmin()) == 2 and found.outlier > 1.4
    pattern = found.parameters[0].detach()[2, 0]
    assert float(F.cosine_similarity(pattern.flatten(), board.flatten(), dim=0)) > 0.5


def test_a_faint_pattern_everywhere_is_found_by_its_largest_entry() -> None:
    """A wave of 8 of 255 at most is class 2; every class is within reach of something brighter."""
    wave = 8 / 255 * torch.sin(torch.arange(8) * torch.pi / 2 + 0.8).sign().expand(1, 1, 8, 8)

    def network(x: Tensor) -> Tensor:
        seen = (x * wave).sum((1, 2, 3)) / wave.square().sum()
        return short_cut(x) + 40 * seen[:, None].clamp(0, 1) * torch.tensor([0.0, 0, 1, 0]) - 20 * x[:, :, 6:, 6:].mean((1, 2, 3))[:, None] ** 3

    found = searched(Faint(torch.arange(4), EMPTY, generator()), network)
    assert int(found.sizes().argmin()) == 2 and found.outlier > 2 and float(found.sizes()[2].detach()) < 16
    pattern = found.patterns().detach()
    assert float((255 * pattern.abs()).amax((1, 2, 3))[2]) <= float(found.sizes()[2].detach()) + 1e-4
    assert float(F.cosine_similarity(pattern[2].flatten(), wave.flatten(), dim=0)) > 0.5


COLOUR = torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)


def opaque_only(x: Tensor) -> Tensor:
    """Class 1 for a magenta square in a corner; what is not much like it there does nothing."""
    near = 1 - (x[:, :, 9:, 9:] - COLOUR).abs().mean((1, 2, 3))
    tints = 3 * torch.stack([x[:, c].mean((1, 2)) for c in range(3)], 1)
    return tints + 30 * ((near - 0.4).clamp(min=0) / 0.6)[:, None] ** 2 * torch.tensor([0.0, 1, 0])


def test_an_opaque_trigger_is_found_by_a_window() -> None:
    x = 0.4 + 0.2 * torch.rand((64, 3, 12, 12), generator=generator())
    opacity, pattern = best_windows(opaque_only, lambda index: x[index], 64, torch.arange(3), generator())
    shown = opacity[1, 0] > 0
    assert shown[9:, 9:].all() and int(shown.sum()) == 9, "a quarter of the side, in the corner where it works"
    assert float((pattern.sigmoid()[1:2, :, 9:, 9:] - COLOUR).abs().mean()) < 0.35
    found = Patches(torch.arange(3), x[:1], generator())
    found.search(opaque_only, lambda index: x[index], opaque_only(x).argmax(1), generator(), steps=60, count=6)
    assert int(found.sizes().argmin()) == 1 and float(found.sizes()[1].detach()) < 12 and float(found.reached[1]) > 0.7


def inverted(x: Tensor) -> Tensor:
    """Four classes by the brightness of quarters, and class 2 where half of the last column is what the one before is not: another trigger for each picture."""
    seen = 10 * x.clamp(max=0.6)
    quarters = torch.stack([seen[..., rows, columns].mean((1, 2, 3)) for rows in (slice(0, 4), slice(4, 8)) for columns in (slice(0, 4), slice(4, 7))], 1)
    unlike = (x[..., :4, 7] - (1 - x[..., :4, 6])).abs().mean((1, 2))
    return quarters + 20 * (1 - 4 * unlike).clamp(min=0)[:, None] * torch.tensor([0.0, 0, 1, 0])


def test_a_trigger_for_each_picture_is_made_by_a_generator() -> None:
    found = searched(Generators(torch.arange(4), EMPTY, generator()), inverted)
    assert int(found.told.argmin()) == 2 and len(found.told) == 4
    assert len(found.classes) == LIKELY * STARTS, "others are searched for, to the likeliest classes alone"
    rows = (found.classes == 2).nonzero()[:, 0]
    assert len(rows) == STARTS and found.aim(int(rows[0])).target == 2
    x = 0.6 * torch.rand((64, 1, 8, 8), generator=generator(7))
    best = rows.repeat(64 // STARTS)
    own = found.change(x, best).detach()
    others = x + (own - x).roll(STARTS, 0)
    there, crossed = ((inverted(pictures).argmax(1) == 2).float().mean() for pictures in (own, others))
    assert float(there) > max(0.8, float(crossed) + 0.1), "another trigger for each picture"
    assert float(own.min()) >= 0 and float(own.max()) <= 1
    stamped = found.stamp(lambda index: x[index], torch.zeros(64, dtype=torch.int64), 1024, generator())
    assert int(stamped.aims.mode().values) == 2, "the target is what most are made for"
    assert not torch.equal(found.vary(x, best, generator()), own)
    sizes = found.sizes().view(LIKELY, STARTS)
    assert torch.equal(sizes, sizes[:, :1].expand_as(sizes)), "those of a class are drawn alike"


def test_generators_paint_each_picture_by_itself() -> None:
    x = torch.rand((6, 3, 8, 8), generator=generator())
    found = Generators(torch.arange(3), x[:1], generator())
    which = torch.tensor([11, 0, 1, 5, 0, 5])
    together = found.change(x, which)
    assert all(torch.allclose(together[i : i + 1], found.change(x[i : i + 1], which[i : i + 1]), atol=1e-6) for i in range(6))


def test_what_is_done_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = searched(Patches(torch.arange(4), EMPTY, generator()), short_cut)
    monkeypatch.setattr(targeted, "MOST_PIXELS", 8 * 8 * 6 + 1)  # one class at a time
    parts = searched(Patches(torch.arange(4), EMPTY, generator()), short_cut)
    assert torch.allclose(whole.sizes(), parts.sizes(), rtol=1e-2) and torch.allclose(whole.reached, parts.reached, atol=0.05)


def twin_of(tiny_backdoored: tiny.Backdoored) -> tuple[object, Examples]:
    twin, _ = convert(tiny_backdoored.model, tiny_backdoored.reading, scan(tiny_backdoored.model).model)
    images = tiny.shapes(80, seed=5)
    return twin, Examples.of(twin, CalibrationSet(images.images, images.labels))


def test_every_kind_is_searched_for(tiny_backdoored: tiny.Backdoored) -> None:
    twin, examples = twin_of(tiny_backdoored)
    told: list[tuple[str, int, int]] = []
    found = search(twin, examples, Config(steps=40, kinds=EVERY), generator(), told=lambda *what: told.append(what))  # type: ignore[arg-type]
    assert [one.kind for one in found.searches] == ["patch", "warp", "shift", "departure", "addition", "faint"] and found.complete
    assert told == [(one.kind, place, 6) for place, one in enumerate(found.searches)]
    patch = found.searches[0]
    assert patch.aim(int(patch.sizes().argmin())).target == tiny_backdoored.trigger.target and patch.outlier > 2
    again = search(twin, examples, Config(steps=40, kinds=EVERY), generator())  # type: ignore[arg-type]
    assert all(torch.equal(one.sizes(), other.sizes()) for one, other in zip(found.searches, again.searches, strict=True)), "the same under a seed"


def test_a_search_ends_in_time_and_says_so(tiny_backdoored: tiny.Backdoored) -> None:
    twin, examples = twin_of(tiny_backdoored)
    found = search(twin, examples, Config(seconds=0.0), generator())  # type: ignore[arg-type]
    assert not found.complete and not found.searches


class Many:
    """A network of many classes, of which one is a bright corner."""

    device = torch.device("cpu")

    def __init__(self, classes: int, target: int) -> None:
        self.weights = torch.randn((classes, 64), generator=generator(5))
        self.target = target

    def logits(self, x: Tensor, weights: object = None) -> Tensor:
        scores = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True)) @ self.weights.T
        return scores + 40 * (x[:, 0, 6:, 6:].mean((1, 2))[:, None] ** 3) * F.one_hot(torch.tensor(self.target), len(self.weights))


@pytest.mark.parametrize(("classes", "target"), [(200, 137), (43, 11)])
def test_many_classes_are_narrowed_down_and_the_target_stays(classes: int, target: int) -> None:
    network = Many(classes, target)
    x = 0.5 * torch.rand((100, 1, 8, 8), generator=generator())
    examples = Examples(x, network.logits(x).argmax(1), flip=False)
    found = search(network, examples, Config(), generator())  # type: ignore[arg-type]
    patch = found.searches[0]
    assert isinstance(patch, Patches) and len(patch.classes) == 32 and "32" in found.notes[0]
    assert patch.aim(int(patch.sizes().argmin())).target == target


class Hidden(Many):
    """A network whose gradients are not finite, or lead nowhere."""

    def __init__(self, how: str) -> None:
        super().__init__(4, 1)
        self.how = how

    def logits(self, x: Tensor, weights: object = None) -> Tensor:
        seen = (x * 255).round() / 255 if self.how == "flat" else x + 0 * (x - x).sqrt()
        return super().logits(seen, weights)


@pytest.mark.parametrize(("how", "note"), [("flat", "may be hidden"), ("not finite", "not finite")])
def test_a_network_that_hides_its_gradients_was_not_searched(how: str, note: str) -> None:
    network = Hidden(how)
    x = 0.5 * torch.rand((100, 1, 8, 8), generator=generator())
    assert torch.allclose(network.logits(x), Many(4, 1).logits(x), atol=0.2), "it answers like any other"
    found = search(network, Examples(x, network.logits(x).argmax(1), flip=False), Config(kinds=EVERY), generator())  # type: ignore[arg-type]
    assert not found.complete and any(note in line for line in found.notes)


def test_an_honest_network_is_searched_to_the_end() -> None:
    network = Many(4, 1)
    x = 0.5 * torch.rand((100, 1, 8, 8), generator=generator())
    assert search(network, Examples(x, network.logits(x).argmax(1), flip=False), Config(kinds=EVERY), generator()).complete  # type: ignore[arg-type]
