"""Ours: what stands out is found and unlearnt, what does not stand out is left alone, and random changes stay pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.purify.augment import varied
from pipeline.purify.corruptions import KINDS, corrupt, warp
from pipeline.purify.minimax import harm, moved_most, stamp, typical, weights_of
from pipeline.purify.search import Patches, Targeted, Warps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (3, 1, 8, 8), (1, 3, 5, 7)])
@pytest.mark.parametrize("kind", [*KINDS, corrupt, varied], ids=lambda kind: kind.__name__)
def test_a_changed_picture_is_a_picture(kind: object, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=generator())
    changed = kind(x, generator(1))  # type: ignore[operator]
    assert changed.shape == x.shape and float(changed.min()) >= 0 and float(changed.max()) <= 1
    assert torch.equal(changed, kind(x, generator(1)))  # type: ignore[operator]
    assert not torch.equal(changed, kind(x, generator(2))) or len(x) == 1  # type: ignore[operator]


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


def searched(kind: type[Targeted], network: object) -> Targeted:
    draws = generator()

    def sample(size: int) -> tuple[Tensor, Tensor]:
        return 0.6 * torch.rand((size, 1, 8, 8), generator=draws), torch.empty(0)

    found = kind(torch.arange(4), sample(1)[0], draws)
    found.search(network, sample, steps=80, pictures=6)  # type: ignore[arg-type]
    return found


def test_a_short_cut_stands_out_and_is_where_it_is() -> None:
    found = searched(Patches, short_cut)
    sizes = found.sizes().detach()
    assert int(sizes.argmin()) == 2 and found.outlier > 1.4
    opacity = found.parameters[0].detach().sigmoid()[2, 0]
    assert float(opacity[6:, 6:].mean()) > 3 * float(opacity.mean())
    _, aims = found.stamp(torch.rand((64, 1, 8, 8), generator=generator()), generator())
    assert int(aims.mode().values) == 2


@pytest.mark.parametrize("kind", [Patches, Warps])
def test_what_a_change_adds(kind: type[Targeted]) -> None:
    x = torch.rand((5, 3, 8, 8), generator=generator())
    found = kind(torch.arange(3), x[:1], generator())
    assert found.differences(x).shape == (3, 3, 8, 8) and found.sizes().shape == (3,)
    changed, aims = found.stamp(x, generator())
    assert changed.shape == x.shape and aims.shape == (5,) and float(changed.min()) >= 0 and float(changed.max()) <= 1


def test_no_search_has_a_share_when_nothing_stands_out() -> None:
    x = torch.rand((8, 3, 8, 8), generator=generator())
    searches: list[Targeted] = [Patches(torch.arange(3), x[:1], generator()), Warps(torch.arange(3), x[:1], generator())]
    changed, aims = stamp(searches, [0.0, 0.0], x, generator())
    assert len(changed) == len(aims) == 0
    changed, aims = stamp(searches, [0.25, 0.75], x, generator())
    assert len(changed) == len(aims) == 8


@pytest.mark.parametrize(("size", "weight"), [(10.0, 0.0), (8.0, 0.0625), (5.0, 1.0), (4.0, 2.25), (1.0, 3.0)])
def test_weight_grows_with_what_stands_out(size: float, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Patches(torch.arange(5), torch.zeros(1, 1, 4, 4), generator())
    monkeypatch.setattr(found, "sizes", lambda: torch.tensor([10.0, 10, 10, 12, size]))
    assert weights_of([found], 3.0).tolist() == pytest.approx([weight])


def test_harm_is_of_the_aim_alone() -> None:
    answers = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.01, 0.98]]).log()
    assert float(harm(answers, torch.tensor([0, 0]), torch.tensor([1, 1]))) == pytest.approx((-torch.tensor([0.02, 0.99]).log()).mean().item(), rel=1e-4)
    assert float(harm(answers, torch.tensor([0, 0]), torch.tensor([0, 0]))) == 0  # pictures of the aim show nothing


def test_a_step_is_a_share_of_the_typical_size() -> None:
    assert typical(torch.full((3, 3), -2.0)) == pytest.approx(2) and typical(torch.zeros(3)) == pytest.approx(1e-3)


def test_of_several_changes_the_one_that_moves_most_is_kept() -> None:
    """A network that answers by brightness alone: with more tries, pictures are further from the brightness they had."""

    class Brightness:
        def logits(self, x: Tensor, weights: object = None) -> Tensor:
            return 20 * torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    x = torch.rand((28, 3, 8, 8), generator=generator())
    goal = Brightness().logits(x).log_softmax(1)

    def distance(tries: int) -> float:
        worst = moved_most(Brightness(), {}, x, goal, tries, generator())  # type: ignore[arg-type]
        assert worst.shape == x.shape
        return float((worst - x).mean((1, 2, 3)).abs().mean())

    assert distance(6) > 1.2 * distance(1)


def test_varied_pictures_are_made_of_those_given() -> None:
    """Whatever is turned, cut and mixed: of one gray comes that gray, but for the tint."""
    gray = torch.full((6, 1, 8, 8), 0.5)
    changed = varied(gray, generator())
    assert float((changed - 0.5).abs().max()) <= 0.2 + 1e-5  # the tint
    assert torch.equal(varied(gray[:1], generator(3)), varied(gray[:1], generator(3)))
