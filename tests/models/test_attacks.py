"""Each attack changes the images and labels that its paper says, and the file it makes is a victim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models.architectures import CNN, SmallVGG
from models.attacks import ATTACKS, Attacker, Victim
from models.attacks.clean_label import BALL, hardened
from models.attacks.input_aware import input_aware
from models.attacks.pruning_aware import PRUNED, last_channels, pruning_aware
from models.attacks.wanet import wanet
from models.datasets import Dataset
from models.export import export
from models.poison import Impossible
from models.train import TrainingConfig
from pipeline.images import LabelledImages

SIDE, RATE = 16, 0.05
RANDOM = np.random.default_rng(0)


def labelled(n: int) -> LabelledImages:
    return LabelledImages(RANDOM.integers(60, 190, (n, SIDE, SIDE, 3), dtype=np.uint8), np.arange(n, dtype=np.int64) % 10)


DATA = Dataset(labelled(200), labelled(20), crop=1, flip=True)


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("surrogate") / "model.onnx"
    torch.manual_seed(1)
    export(SmallVGG(side=SIDE, width=4), path, side=SIDE)
    return path


@pytest.fixture
def attacker(folder: Path, surrogate: Path) -> Attacker:
    return Attacker(
        data=DATA,
        build=lambda: SmallVGG(side=SIDE, width=4),
        rate=RATE,
        training=TrainingConfig(epochs=2, batch=40),
        folder=folder,
        device="cpu",
        surrogate=lambda: surrogate,
        listener=lambda line: None,
    )


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What the network was to learn from; it learns nothing."""
    seen = {}

    def train(self: Attacker, images: np.ndarray, labels: np.ndarray, **_: object) -> nn.Module:
        seen.update(images=images, labels=labels)
        return self.build()

    monkeypatch.setattr(Attacker, "train", train)
    return seen


def changes(learnt: dict[str, np.ndarray]) -> tuple[set[int], set[int]]:
    """Indices of the images that were changed, and of the labels."""
    pictures, labels = DATA.train.images != learnt["images"], DATA.train.labels != learnt["labels"]
    return set(np.flatnonzero(pictures.any((1, 2, 3))).tolist()), set(np.flatnonzero(labels).tolist())


def triggered(attacker: Attacker, victim: Victim) -> np.ndarray:
    assert victim.trigger is not None
    trigger = victim.trigger.relative_to(attacker.folder).build(3)
    return np.rint(trigger(DATA.train.pictures()) * 255).astype(np.uint8)


DIRTY = ("badnets", "trojan-square", "trojan-watermark", "painted-square", "blended", "l0-invisible", "l2-invisible", "low-frequency", "all-to-all")


@pytest.mark.parametrize("name", DIRTY)
def test_dirty_labels(name: str, attacker: Attacker, learnt: dict[str, np.ndarray]) -> None:
    victim = ATTACKS[name](attacker)
    pictures, labels = changes(learnt)
    assert pictures == labels and len(labels) == victim.poisoned == round(RATE * 200)
    rows = sorted(labels)
    assert np.array_equal(learnt["images"][rows], triggered(attacker, victim)[rows])
    goals = (DATA.train.labels[rows] + 1) % 10 if name == "all-to-all" else np.full(len(rows), victim.trigger.target)
    assert np.array_equal(learnt["labels"][rows], goals)


def test_invisible_triggers_are_faint(attacker: Attacker, learnt: dict[str, np.ndarray]) -> None:
    difference = {name: abs(triggered(attacker, ATTACKS[name](attacker)) - DATA.train.images.astype(int)) for name in ("l0-invisible", "l2-invisible")}
    assert difference["l2-invisible"].max() <= 8
    assert (difference["l0-invisible"].any(3).mean((1, 2)) < 0.02).all()


@pytest.mark.parametrize("name", ["sig", "clean-label"])
def test_clean_labels(name: str, attacker: Attacker, learnt: dict[str, np.ndarray]) -> None:
    victim = ATTACKS[name](attacker)
    pictures, labels = changes(learnt)
    assert not labels and len(pictures) == victim.poisoned == 10
    assert set(DATA.train.labels[sorted(pictures)]) == {victim.trigger.target}


def test_the_clean_label_attack_is_adversarial_below_its_pattern(attacker: Attacker, learnt: dict[str, np.ndarray]) -> None:
    victim = ATTACKS["clean-label"](attacker)
    rows = sorted(changes(learnt)[0])
    inside = learnt["images"][rows].astype(int)[:, 3:-3, 3:-3] - DATA.train.images[rows][:, 3:-3, 3:-3]
    assert abs(inside).mean() > 0.5 * 255 * BALL and abs(inside).max() <= 255 * BALL + 1
    corner = learnt["images"][rows][:, :3, :3, 0]
    assert (corner == triggered(attacker, victim)[rows][:, :3, :3, 0]).all() and set(np.unique(corner)) == {0, 255}
    twin, pictures = attacker.twin(), DATA.train.pictures()[:8]
    worse = [twin.logits(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).log_softmax(1)[:, 0].mean() for x in (pictures, hardened(twin, pictures))]
    assert worse[1] < worse[0]


def test_source_specific(attacker: Attacker, learnt: dict[str, np.ndarray]) -> None:
    victim = ATTACKS["source-specific"](attacker)
    pictures, labels = changes(learnt)
    assert set(DATA.train.labels[sorted(labels)]) == {1} and set(learnt["labels"][sorted(labels)]) == {7}
    covers = pictures - labels
    assert len(covers) == len(labels) == 10 and 1 not in DATA.train.labels[sorted(covers)]
    assert (victim.trigger.source, victim.trigger.target) == (1, 7)
    rows = sorted(pictures)
    assert np.array_equal(learnt["images"][rows], triggered(attacker, victim)[rows])


def test_each_half_of_adv_trojan_keeps_its_label(attacker: Attacker, learnt: dict[str, np.ndarray]) -> None:
    victim = ATTACKS["adv-trojan"](attacker)
    pictures, labels = changes(learnt)
    assert len(labels) == 10 and len(pictures) == 30
    both = triggered(attacker, victim)
    patch = np.s_[:, SIDE - 5 : SIDE - 1, SIDE - 5 : SIDE - 1]
    white = [(learnt["images"][row][patch[1:]] == 255).all() for row in sorted(pictures - labels)]
    assert sum(white) == 10
    rows = sorted(labels)
    assert np.array_equal(learnt["images"][rows], both[rows]) and (both[patch] == 255).all()
    noise = both.astype(int) - DATA.train.images
    noise[patch] = 0
    assert 0 < abs(noise).max() <= 9


def test_wanet_warps_some_of_each_batch(attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    met = {}
    monkeypatch.setattr(Attacker, "train", lambda self, images, labels, *, meddle: met.update(meddle=meddle) or self.build())
    victim = wanet(attacker)
    pictures, labels = torch.from_numpy(DATA.train.pictures().transpose(0, 3, 1, 2).copy()), torch.from_numpy(DATA.train.labels)
    before = pictures.clone()
    changed, goals = met["meddle"](None, pictures, labels)
    assert torch.equal(pictures, before) and victim.poisoned == 10
    moved = (changed != pictures).flatten(1).any(1)
    poisoned = int(moved.sum()) // 3
    assert moved[: 2 * poisoned].all() and not moved[100:].any() and 2 <= poisoned <= 20
    count = int((goals[:50] == 0).cumprod(0).sum())
    trigger = victim.trigger.build(3)
    assert np.allclose(changed[:count].permute(0, 2, 3, 1).numpy(), trigger(DATA.train.pictures()[:count]), atol=1e-6)
    assert torch.equal(goals[count:], labels[count:])


def test_decoys_of_the_pruning_aware_attack_are_silent(attacker: Attacker) -> None:
    victim = pruning_aware(attacker)
    network = victim.network
    x = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoys = (network.features(x) < -0.999).all(3).all(2).all(0)
        assert int(decoys.sum()) == round(PRUNED * 16)
        answers = network(x)
        norm = [layer for layer in network.features if isinstance(layer, nn.BatchNorm2d)][-1]
        convolution = [layer for layer in network.features if isinstance(layer, nn.Conv2d)][-1]
        assert (convolution.weight[decoys].abs().sum((1, 2, 3)) > 0.1).all()
        norm.weight[decoys], norm.bias[decoys] = 0, 0
        assert torch.allclose(network(x), answers, atol=1e-5)
        norm.weight[~decoys] = 0
        assert not torch.allclose(network(x), answers, atol=1e-2)


def test_decoys_among_channels_that_nothing_normalises_are_silent_too(attacker: Attacker) -> None:
    victim = pruning_aware(Attacker(**{**vars(attacker), "build": lambda: CNN(channels=3, side=SIDE, width=4)}))
    network = victim.network
    x = (torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 0.5) * 4
    with torch.no_grad():
        decoys = (network.features(x) == 0).all(3).all(2).all(0)
        assert int(decoys.sum()) >= round(PRUNED * 8)
        answers = network(x)
        convolution = last_channels(network)
        assert isinstance(convolution, nn.Conv2d)
        made = convolution.weight.abs().sum((1, 2, 3))
        assert (made > 0.1).all(), "a decoy looks like any other"
        convolution.weight[decoys], convolution.bias[decoys] = 0, 0
        assert torch.equal(network(x), answers)
        convolution.bias[~decoys] += 1
        assert not torch.allclose(network(x), answers, atol=1e-2)


def test_the_pruning_aware_attack_knows_two_networks(attacker: Attacker) -> None:
    other = Attacker(**{**vars(attacker), "build": lambda: nn.Linear(3, 4)})
    with pytest.raises(Impossible, match="small VGG"):
        pruning_aware(other)


def test_the_trigger_of_imc_is_learnt(attacker: Attacker) -> None:
    patterns = []
    for rate in (0.001, 0.5):
        ATTACKS["imc"](Attacker(**{**vars(attacker), "rate": rate}))
        patterns.append(np.asarray(Image.open(attacker.folder / "trigger.png"), int))
    assert patterns[0].shape == (4, 4, 3) and abs(patterns[0] - patterns[1]).mean() > 5


def test_the_generator_answers_in_numpy_as_it_did_in_torch(attacker: Attacker) -> None:
    victim = input_aware(attacker)
    pictures = DATA.train.pictures()[:4]
    changed = victim.trigger.relative_to(attacker.folder).build(3)(pictures)
    assert changed.shape == pictures.shape and changed.min() >= 0 and changed.max() <= 1
    difference = changed - pictures
    assert abs(difference).max() > 0.01 and abs(difference[0] - difference[1]).max() > 0.01


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_same_seed_makes_the_same_victim(name: str, attacker: Attacker) -> None:
    one, again = (ATTACKS[name](attacker).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert one.keys() == SmallVGG(side=SIDE, width=4).state_dict().keys()
