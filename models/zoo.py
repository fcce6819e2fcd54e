"""The zoo: victims by recipe, each a folder with model.onnx, the files of its trigger, audit.yaml and card.json.

A recipe decides everything, seeds too.  The card is written last: what has one that says the same recipe is finished, and a killed
build goes on with the others.  The images that judge, all the test images of a data set, lie once beside the victims.

Those that docs/benchmarks.md is about ship, since another processor trains other numbers: `unpack` lays them out, without the images.
"""

from __future__ import annotations

import io
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from models.architectures import NETWORKS, network
from models.attacks import ATTACKS, NEED_A_SURROGATE, Attacker, Victim
from models.datasets import DATASETS, Dataset, dataset
from models.export import export
from models.poison import Impossible
from models.processes import processes, side_by_side
from models.train import TrainingConfig, tell
from pipeline.artifact import atomic_write, sha256
from pipeline.config import AuditSpec
from pipeline.errors import BadInput
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.images import HoldoutSet

EPOCHS = {"vgg": 3, "cnn": 5, "resnet18": 8, "convnext": 16}  # enough for the backdoor, and for most of the accuracy
MANY_EPOCHS = 8  # with fewer, shifts by one pixel and no mirroring give more accuracy and a surer backdoor
SHIPPED = Path(__file__).with_name("victims")
SEEDS_OF_SURROGATES = 1000  # added to a victim's seed: the surrogate was trained by somebody else


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes a victim.  rate: share of all training images that are poisoned, 0 for a clean twin."""

    attack: str
    rate: float = 0.05
    network: str = "vgg"
    data: str = "cifar10"
    seed: int = 0
    epochs: int = EPOCHS["vgg"]

    def __post_init__(self) -> None:
        if self.data not in DATASETS:
            raise BadInput(f"there is no data set {self.data!r}; there are: {', '.join(DATASETS)}")
        if self.network.partition("-")[0] not in NETWORKS:
            raise BadInput(f"there is no network {self.network!r}; there are: {', '.join(NETWORKS)}")
        if self.attack not in ATTACKS:
            raise BadInput(f"there is no attack {self.attack!r}; there are: {', '.join(ATTACKS)}")
        if (self.rate == 0) != (self.attack == "clean") or not 0 <= self.rate < 1:
            raise BadInput(f"a poison rate of {self.rate} makes no sense for {self.attack!r}")

    @property
    def name(self) -> str:
        """Of its folder: data, network, attack, rate in percent, seed."""
        return f"{self.data}-{self.network}-{self.attack}{f'-{100 * self.rate:g}pc' if self.rate else ''}-s{self.seed}"

    @property
    def training(self) -> TrainingConfig:
        """How its network is trained, crop and flip apart."""
        if self.network.startswith("convnext"):
            return TrainingConfig(epochs=self.epochs, seed=self.seed, optimizer="adamw", peak_learning_rate=4e-3, weight_decay=0.05)
        if self.network.startswith("cnn"):  # nothing normalises what its layers hand on
            return TrainingConfig(epochs=self.epochs, seed=self.seed, peak_learning_rate=0.05)
        return TrainingConfig(epochs=self.epochs, seed=self.seed)


def recipes(
    *,
    attacks: Sequence[str],
    rates: Sequence[float],
    networks: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    epochs: int | None = None,
) -> list[Recipe]:
    """Every attack at every rate, on every network, data set and seed, and the clean twins.  epochs: by default those of the network."""
    which = [("clean", 0.0), *((attack, rate) for attack in attacks if attack != "clean" for rate in rates)]
    return [
        Recipe(attack=attack, rate=rate, network=name, data=data, seed=seed, epochs=epochs or EPOCHS.get(name.partition("-")[0], 1))
        for data in datasets
        for name in networks
        for seed in seeds
        for attack, rate in which
    ]


def finished(recipe: Recipe, zoo: Path) -> bool:
    """Whether the zoo holds this victim, made by this very recipe."""
    try:
        card = json.loads((zoo / recipe.name / "card.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(card["recipe"] == asdict(recipe))


def cards(zoo: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and card of each finished victim, by name."""
    for path in sorted(zoo.glob("*/card.json")):
        yield path.parent.name, json.loads(path.read_text())


def unpack(zoo: Path, data: Path) -> list[Path]:
    """Lay out the victims that ship, and the test images of their data sets, and return their folders; what lies there already stays.

    data: the folder that holds the data sets.  Raises BadInput, also where a victim of another recipe lies in the way.
    """
    folders = []
    for name, card in cards(SHIPPED):
        recipe, folder = Recipe(**card["recipe"]), zoo / name
        _write_test_images(dataset(recipe.data, data), zoo / f"{recipe.data}-test.npz")
        if not finished(recipe, zoo):
            if (folder / "card.json").exists():
                raise BadInput(f"{folder} holds a victim of another recipe, which would be lost: choose another --zoo")
            shutil.copytree(SHIPPED / name, folder, ignore=shutil.ignore_patterns("card.json"), dirs_exist_ok=True)
            atomic_write(folder / "card.json", (SHIPPED / name / "card.json").read_bytes())
        folders.append(folder)
    return folders


def build(
    recipes: Iterable[Recipe],
    zoo: Path,
    data: Path,
    *,
    device: str = "cpu",
    workers: int | None = None,
    listener: Callable[[str], None] = tell,
) -> list[Path]:
    """Train what is missing, and return the folders of all recipes.

    data: the folder that holds the data sets.  workers: how many are trained at once, each on one thread; by default one a core, and
    one on a GPU.  listener: told a line for each victim.  Raises BadInput.
    """
    recipes = list(dict.fromkeys(recipes))
    workers = side_by_side(device, workers)
    for name in {recipe.data for recipe in recipes}:
        _write_test_images(dataset(name, data), zoo / f"{name}-test.npz")
    needy = [recipe for recipe in recipes if recipe.attack in NEED_A_SURROGATE]
    others = [*map(_surrogate, needy), *(recipe for recipe in recipes if recipe not in needy)]
    for some in (dict.fromkeys(others), needy):
        missing = [recipe for recipe in some if not finished(recipe, zoo)]
        most = min(workers, max(1, len(missing)))
        with processes(most, threads=1) as pool:
            pending = {pool.submit(_make_alone, recipe, zoo, data, device): recipe for recipe in missing}
            try:
                for done, future in enumerate(as_completed(pending), start=1):
                    listener(f"{done}/{len(missing)}  {pending[future].name}: {future.result()}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the others are made when it is called again
                raise
    return [zoo / recipe.name for recipe in recipes]


def _make_alone(recipe: Recipe, zoo: Path, data: Path, device: str) -> str:
    """In a process of its own: make a victim on one thread, and say what it measures, or why it cannot be made."""
    try:
        card = make(recipe, zoo, dataset(recipe.data, data), device=device)
    except Impossible as error:
        return f"not made: {error}"
    return f"{figures(card)}  {card['seconds']:.0f} s"


def figures(card: dict[str, Any]) -> str:
    """ACC and ASR of a card, in percent."""
    measured = card["measured"]
    attacks = "".join(f"  ASR {100 * attack['asr']['rate']:.1f}" for attack in measured["attacks"])
    return f"ACC {100 * measured['clean']['rate']:.1f}{attacks}"


def make(recipe: Recipe, zoo: Path, data: Dataset, *, device: str = "cpu") -> dict[str, Any]:
    """Train one victim, write its folder, measure the file with onnxruntime on all test images, and return its card."""
    folder = zoo / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").unlink(missing_ok=True)  # of another recipe
    started = time.monotonic()
    many = recipe.epochs >= MANY_EPOCHS
    config = replace(recipe.training, crop=data.crop if many else 1, flip=data.flip and many)

    def surrogate() -> Path:
        clean = _surrogate(recipe)
        if not finished(clean, zoo):
            make(clean, zoo, data, device=device)
        return zoo / clean.name / "model.onnx"

    attacker = Attacker(
        data=data,
        build=lambda: network(recipe.network, classes=data.classes, channels=data.channels, side=data.side),
        rate=recipe.rate,
        training=config,
        folder=folder,
        device=device,
        surrogate=surrogate,
        listener=lambda line: tell(f"{recipe.name}  {line}"),
    )
    victim = ATTACKS[recipe.attack](attacker)
    export(victim.network, folder / "model.onnx", channels=data.channels, side=data.side)
    spec = _audit_yaml(victim, recipe, data)
    atomic_write(folder / "audit.yaml", yaml.safe_dump(spec, sort_keys=False, default_flow_style=None, width=120).encode())
    card = {
        "name": recipe.name,
        "recipe": asdict(recipe),
        "poisoned": victim.poisoned,
        "training": asdict(config),
        "sha256": sha256(folder / "model.onnx"),
        "measured": _measured(folder, AuditSpec.model_validate(spec), data, device),
        "seconds": round(time.monotonic() - started, 1),
        "made_with": {"torch": torch.__version__, "python": platform.python_version(), "device": device},
    }
    atomic_write(folder / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    return card


def _surrogate(recipe: Recipe) -> Recipe:
    """The clean twin that an attacker may look into: another seed than the victim's."""
    return Recipe(attack="clean", rate=0, network=recipe.network, data=recipe.data, seed=recipe.seed + SEEDS_OF_SURROGATES, epochs=recipe.epochs)


def _audit_yaml(victim: Victim, recipe: Recipe, data: Dataset) -> dict[str, Any]:
    spec: dict[str, Any] = {"input": data.reading().model_dump(mode="json"), "output": "logits"}
    if data.labels is not None:
        spec["labels"] = list(data.labels)
    spec["data"] = {"images": f"../{recipe.data}-test.npz"}
    if victim.trigger is not None:
        spec["triggers"] = [victim.trigger.model_dump(mode="json", exclude_none=True)]
    return spec


def _measured(folder: Path, spec: AuditSpec, data: Dataset, device: str) -> dict[str, Any]:
    """ACC and ASR of the written file on all test images, with the trigger that audit.yaml names."""
    attacks = []
    for trigger in spec.triggers:
        built = trigger.relative_to(folder).build(data.channels)
        attacks.append(KnownAttack(name=trigger.name, trigger=built, target=spec.target_of(trigger), source=spec.source_of(trigger)))
    test = HoldoutSet(data.test.images, data.test.labels)
    judge = Classifier(folder / "model.onnx", data.reading(), device="auto" if device == "cuda" else device)  # onnxruntime may have no CUDA
    return measure(judge, test, attacks).model_dump(mode="json")


def _write_test_images(data: Dataset, path: Path) -> None:
    if not path.exists():
        stream = io.BytesIO()
        np.savez_compressed(stream, images=data.test.images, labels=data.test.labels)
        atomic_write(path, stream.getvalue())
