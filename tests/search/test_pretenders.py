"""Pictures are made to be of the classes that there are too few of, and a trigger for one class alone is found on them."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from pipeline.search import pretenders as module
from pipeline.search.examples import Examples
from pipeline.search.kinds import Config, search
from pipeline.search.patches import Departures
from pipeline.search.pretenders import EACH, EPSILON, near, pretenders
from pipeline.twin import TorchTwin


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Stripes:
    """Four classes by faint stripes, which each picture has some of; a bright corner turns those of class 1 into class 3, and no others."""

    device = torch.device("cpu")

    def __init__(self, reach: float) -> None:
        self.stripes = reach * torch.randn((4, 64), generator=generator(5)).sign()

    def logits(self, x: Tensor, weights: object = None) -> Tensor:
        seen = x[:, 0].clone()
        seen[:, 5:, 5:] = 0.3
        scores = (seen.flatten(1) - seen.flatten(1).mean(1, keepdim=True)) @ self.stripes.T
        cornered = scores.softmax(1)[:, 1] * x[:, 0, 5:, 5:].mean((1, 2)) ** 3
        return scores + 20 * cornered[:, None] * torch.tensor([0.0, 0, 0, 1])


def stripes(reach: float = 4.0) -> TorchTwin:
    """All of a twin that a search asks."""
    return cast(TorchTwin, Stripes(reach))


def few(network: TorchTwin) -> Examples:
    """One picture a class, or two."""
    x = 0.3 + 0.02 * torch.randn((6, 1, 8, 8), generator=generator(2))
    return Examples(x, network.logits(x).argmax(1), flip=False)


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_pictures_are_made_to_be_taken_for_each_class(share: float) -> None:
    network = stripes()
    made = pretenders(network, few(network), torch.arange(4), share, generator())
    assert all(0.8 * EACH <= count <= EACH for count in made.labels.bincount().tolist()) and torch.equal(network.logits(made.pictures).argmax(1), made.labels)
    assert float(made.pictures.min()) >= 0 and float(made.pictures.max()) <= 1 and not made.flip
    again = pretenders(network, few(network), torch.arange(4), share, generator())
    assert torch.equal(made.pictures, again.pictures), "the same under a seed"


def test_they_stay_near_what_they_were_made_of() -> None:
    network = stripes()
    examples = few(network)
    made = pretenders(network, examples, torch.arange(4), 0.0, generator())
    near = (made.pictures[:, None] - examples.pictures[None]).abs().amax((2, 3, 4)).min(1).values
    assert float(near.max()) <= EPSILON + 1e-6


def test_large_pictures_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    network = stripes()
    monkeypatch.setattr(module, "MOST", 4 * 64 * 3)
    assert len(pretenders(network, few(network), torch.arange(4), 0.0, generator())) == 12


def test_a_class_that_is_out_of_reach_has_none() -> None:
    network = stripes(reach=1e-3)
    made = pretenders(network, few(network), torch.arange(4), 0.0, generator())
    assert len(made) == 0 and made.pictures.shape == (0, 1, 8, 8)
    found = search(network, few(network), Config(kinds=("departure",)), generator(), lent=made)
    assert not found.searches and found.complete, "nothing is said of leaving a class that no picture is of"


def test_a_trigger_for_one_class_alone_is_found_on_them() -> None:
    network = stripes()
    examples = few(network)
    assert not search(network, examples, Config(kinds=("departure",)), generator()).searches, "from so few pictures nothing is searched for"
    made = pretenders(network, examples, torch.arange(4), 0.0, generator())
    (found,) = search(network, examples, Config(kinds=("departure",)), generator(), lent=made).searches
    smallest = int(found.sizes().argmin())
    assert isinstance(found, Departures) and (found.aim(smallest).source, found.aim(smallest).target) == (1, 3) and found.outlier > 1.5
    asked: list[Tensor] = []

    def posing(x: Tensor, aims: Tensor) -> Tensor:
        asked.append(aims)
        return near(network.logits, x, aims)

    for stamped in (
        found.stamp(lambda index: examples.pictures[index], examples.labels, 64, generator()),
        found.stamp(lambda index: examples.pictures[index], examples.labels, 64, generator(), posing=posing),
    ):
        assert int(stamped.own.mode().values) == 1 and not torch.equal(stamped.before, stamped.changed)
    assert torch.equal(asked[0], stamped.own) and torch.equal(network.logits(stamped.before).argmax(1), stamped.own), "whoever poses is taken for it"
