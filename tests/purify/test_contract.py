"""What every purifier keeps, with every preset: a new method joins with its name in `methods()`."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from short import CONFIGS

from pipeline.config import METHODS
from pipeline.convert.to_torch import convert
from pipeline.convert.write_back import write_back
from pipeline.errors import AuditError, ImagesRefused, SpecRefused, StageFailed
from pipeline.evaluate.measurement import KnownAttack, measure
from pipeline.evaluate.session import Classifier
from pipeline.images import CalibrationSet, HoldoutSet, InputSpec, read, split
from pipeline.purify import Purified, methods
from pipeline.scan import scan
from pipeline.twin import Role, TorchTwin

PRUNERS = {"anp", "clp", "rnp"}  # may find nothing that stands out, and then change nothing
DATA_FREE = {"clp"}  # looks at no image, and draws nothing at random
CASES = [(method, preset) for method in methods() for preset in ("default", "paper")]


@dataclass
class Bench:
    """A method with its preset, ready to run on a twin."""

    method: str
    preset: str

    def __call__(self, twin: TorchTwin, images: CalibrationSet, *, seed: int = 0, told: list[tuple[int, int, dict[str, float]]] | None = None) -> Purified:
        report = (lambda *call: told.append(call)) if told is not None else (lambda *call: None)
        return methods()[self.method](twin, images, preset=self.preset, seed=seed, report=report)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def purify(request: pytest.FixtureRequest) -> Bench:
    return Bench(*request.param)


@pytest.fixture
def quick(purify: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The same with fewer steps: for what does not depend on how far it goes."""
    CONFIGS[purify.method](monkeypatch)
    return purify


@pytest.fixture(scope="module")
def path(tiny_backdoored: tiny.Backdoored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(tiny_backdoored.model, tmp_path_factory.mktemp("purify") / "model.onnx"))


@pytest.fixture(scope="module")
def twin(path: Path, tiny_backdoored: tiny.Backdoored) -> TorchTwin:
    return convert(path, tiny_backdoored.reading, scan(path).model)[0]


@pytest.fixture(scope="module")
def sets(tiny_backdoored: tiny.Backdoored) -> tuple[CalibrationSet, HoldoutSet]:
    return split(read(tiny_backdoored.images), calibration=40, seed=0)


def small(folder: Path, model: object = None, reading: InputSpec = tiny.READING) -> TorchTwin:
    path = tiny.save(model or tiny.classifier(), folder)
    return convert(path, reading, scan(path).model)[0]


def kept(purified: Purified, twin: TorchTwin) -> None:
    """What is true of every answer."""
    assert purified.weights
    assert purified.weights.keys() <= twin.weights.keys()
    assert purified.masks.keys() <= twin.weights.keys()
    assert all(twin.weights[name].role != Role.STATISTIC for name in purified.weights), "what BatchNorm measured stays"
    for name, value in purified.weights.items():
        assert value.shape == tuple(twin.weights[name].value.shape) and value.dtype == np.float32
        assert np.isfinite(value).all()
    for name, mask in purified.masks.items():
        assert mask.shape == tuple(twin.weights[name].value.shape)
        assert mask.min() >= 0 and mask.max() <= 1
    assert purified.history
    steps = [step.step for step in purified.history]
    assert steps == sorted(set(steps))
    assert all(np.isfinite(list(step.metrics.values())).all() for step in purified.history)
    if purified.perturbation is not None:
        assert purified.perturbation.ndim == 4 and len(purified.perturbation) == len(purified.hypotheses)
        assert np.isfinite(purified.perturbation).all()


def same(one: Purified, other: Purified) -> bool:
    arrays = [[*found.weights.values(), *found.masks.values(), found.perturbation] for found in (one, other)]
    return one.history == other.history and all(np.array_equal(*pair) for pair in zip(*arrays, strict=True))


def test_the_contract(quick: Bench, twin: TorchTwin, sets: tuple[CalibrationSet, HoldoutSet]) -> None:
    before = {name: tensor.clone() for name, tensor in twin.module.state_dict().items()}
    values = {name: weight.value.clone() for name, weight in twin.weights.items()}
    images = sets[0].images.copy()
    told: list[tuple[int, int, dict[str, float]]] = []
    purified = quick(twin, sets[0], told=told)
    kept(purified, twin)
    assert quick.method in PRUNERS or any(not np.array_equal(value, values[name]) for name, value in purified.weights.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in twin.module.state_dict().items())
    assert all(torch.equal(weight.value, values[name]) for name, weight in twin.weights.items())
    assert not any(tensor.requires_grad for tensor in twin.module.parameters())
    assert np.array_equal(sets[0].images, images)
    steps = [(done, total) for done, total, _ in told if done]
    assert len(steps) == len(purified.history)
    assert all(0 < done <= total for done, total in steps)
    assert all(done == 0 < total for done, total, _ in told[: -len(steps)]), "what is told of no step comes before the first"


def test_a_seed_makes_it_the_same_to_the_bit(quick: Bench, twin: TorchTwin, sets: tuple[CalibrationSet, HoldoutSet]) -> None:
    torch.manual_seed(1)
    one = quick(twin, sets[0], seed=5)
    torch.manual_seed(2)  # the global generator has no say
    assert same(one, quick(twin, sets[0], seed=5))
    assert quick.method in DATA_FREE or not same(one, quick(twin, sets[0], seed=6))


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_images_than_a_batch(n: int, quick: Bench, twin: TorchTwin, sets: tuple[CalibrationSet, HoldoutSet]) -> None:
    purified = quick(twin, sets[0].at(np.arange(n)))
    kept(purified, twin)
    assert quick.method in PRUNERS or any(not np.array_equal(value, twin.weights[name].value.numpy()) for name, value in purified.weights.items())


def test_no_images(quick: Bench, twin: TorchTwin, sets: tuple[CalibrationSet, HoldoutSet]) -> None:
    if quick.method in DATA_FREE | {"auto"}:
        kept(quick(twin, sets[0].at(np.arange(0))), twin)
        return
    with pytest.raises(ImagesRefused, match="there are none"):
        quick(twin, sets[0].at(np.arange(0)))


def test_masks_times_weights(quick: Bench, twin: TorchTwin, sets: tuple[CalibrationSet, HoldoutSet]) -> None:
    if (quick.method, quick.preset) != ("awm", "paper"):
        pytest.skip("masks are multiplied by AWM alone, as published")
    purified = quick(twin, sets[0])
    assert purified.weights.keys() == purified.masks.keys()
    for name, mask in purified.masks.items():
        assert np.array_equal(purified.weights[name], mask * twin.weights[name].value.numpy())
    assert {twin.weights[name].role for name in purified.masks} == {"convolution"}


GRAY = InputSpec(size=(8, 8), channels="gray")
NHWC = InputSpec(layout="NHWC", size=(8, 8), channels="BGR", mean=(0.4, 0.5, 0.6))
TRANSPOSED = tiny.helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])
CONV = [
    tiny.helper.make_node("Conv", ["t", "W"], ["h"]),
    tiny.helper.make_node("Relu", ["h"], ["r"]),
    tiny.helper.make_node("Conv", ["r", "V"], ["c"]),
    tiny.helper.make_node("GlobalAveragePool", ["c"], ["p"]),
    tiny.helper.make_node("Flatten", ["p"], ["y"]),
]


@pytest.mark.parametrize("reading", [GRAY, NHWC], ids=["gray", "NHWC-BGR"])
def test_other_pictures(reading: InputSpec, quick: Bench, folder: Path) -> None:
    depth = reading.depth
    first = TRANSPOSED if reading.layout == "NHWC" else tiny.helper.make_node("Identity", ["x"], ["t"])
    weights = {"W": tiny.values(6, depth, 3, 3), "V": tiny.values(4, 6, 3, 3)}
    model = tiny.model([first, *CONV], weights, shape=("N", 8, 8, 3) if reading.layout == "NHWC" else ("N", depth, 8, 8))
    twin, images = small(folder, model, reading), tiny.labelled(12, channels=depth)
    purified = quick(twin, CalibrationSet(images.images, images.labels))
    kept(purified, twin)
    assert purified.perturbation is None or purified.perturbation.shape[1:] == (8, 8, depth)


def nodes(*lines: str) -> list[onnx.NodeProto]:
    """`Operator inputs > outputs` -> a node; further words are attributes, each a number or a list of them."""
    made = []
    for line in lines:
        operator, given, answered, *attributes = line.split()
        found = {name: json.loads(value) for name, _, value in (attribute.partition("=") for attribute in attributes)}
        made.append(tiny.helper.make_node(operator, given.split(","), answered.split(","), **found))
    return made


CHANNELS = {name: np.abs(tiny.values(6, seed=seed)) + 0.5 for seed, name in enumerate(("scale", "bias", "mean", "variance"))}
SQUARE = {name: tiny.values(12, 12, seed=seed) for seed, name in enumerate(("Q", "K", "V", "M"))}
BATCH_NORM = nodes(
    *("Conv x,W c pads=[1,1,1,1]", "Relu c r", "BatchNormalization r,scale,bias,mean,variance n", "GlobalAveragePool n p", "Flatten p f", "MatMul f,F y")
)
LINEAR = nodes("Flatten x f", "MatMul f,W h", "Add h,b s", "Relu s r", "MatMul r,F y")
VIT = nodes(
    *("Conv x,W c strides=[2,2]", "Reshape c,shape t", "Transpose t e perm=[0,2,1]", "LayerNormalization e,g,h n", "MatMul n,Q q", "MatMul n,K k"),
    *("MatMul n,V v", "Transpose k kt perm=[0,2,1]", "MatMul q,kt a", "Softmax a w axis=-1", "MatMul w,v o", "Add e,o z", "MatMul z,M m", "Relu m r"),
    *("ReduceMean r p axes=[1] keepdims=0", "MatMul p,F y"),
)
TOKENS = {"shape": np.array([0, 12, 16]), "g": np.ones(12, np.float32), "h": np.zeros(12, np.float32)}
OTHERS = {
    "BatchNorm": tiny.model(BATCH_NORM, {"W": tiny.values(6, 3, 3, 3), "F": tiny.values(6, 4), **CHANNELS}),
    "linear": tiny.model(LINEAR, {"W": tiny.values(192, 16), "b": tiny.values(16), "F": tiny.values(16, 4)}),
    "ViT": tiny.model(VIT, {"W": tiny.values(12, 3, 2, 2), "F": tiny.values(12, 4), **TOKENS, **SQUARE}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks(kind: str, quick: Bench, folder: Path) -> None:
    """Through the file: of what was submitted, nothing but bound initializers is another."""
    images, twin = tiny.labelled(12), small(folder, OTHERS[kind])
    calibration = CalibrationSet(images.images, images.labels)
    if (kind, quick.method, quick.preset) == ("linear", "awm", "paper"):
        with pytest.raises(SpecRefused, match="convolution"):
            quick(twin, calibration)
        return
    purified = quick(twin, calibration)
    kept(purified, twin)
    (folder / "repaired").mkdir()
    files, changes = write_back(folder / "model.onnx", ["model.onnx"], purified.weights, folder / "repaired")
    assert {change.name for change in changes} <= set(purified.weights)
    before, after = onnx.load(folder / "model.onnx"), onnx.load(files["model.onnx"])
    assert {one.name for one, other in zip(before.graph.initializer, after.graph.initializer, strict=True) if one != other} <= set(purified.weights)
    del before.graph.initializer[:], after.graph.initializer[:]
    assert before.graph == after.graph


def test_gradients_that_are_not_finite(quick: Bench, folder: Path) -> None:
    """A file can be made so; then a method says so, or needs none of them.  Regression: RuntimeError and ZeroDivisionError in ours and in auto."""
    hidden = nodes(
        "Relu x u", "Sub u,u z", "Sqrt z s", "Add x,s v", "Conv v,W c pads=[1,1,1,1]", "Relu c r", "GlobalAveragePool r p", "Flatten p f", "MatMul f,F y"
    )
    twin, images = small(folder, tiny.model(hidden, {"W": tiny.values(6, 3, 3, 3), "F": tiny.values(6, 4)})), tiny.labelled(40)
    try:
        kept(quick(twin, CalibrationSet(images.images, images.labels)), twin)
    except StageFailed as error:
        assert "finite" in str(error)


def test_a_fixed_batch(quick: Bench, folder: Path) -> None:
    images = tiny.labelled(6)
    twin = small(folder, tiny.classifier(shape=(4, 3, 8, 8)))
    kept(quick(twin, CalibrationSet(images.images, images.labels)), twin)


def test_nothing_to_change(quick: Bench, folder: Path) -> None:
    nodes = [tiny.helper.make_node("GlobalAveragePool", ["x"], ["p"]), tiny.helper.make_node("Flatten", ["p"], ["y"])]
    images = tiny.labelled(6, classes=3)
    with pytest.raises(AuditError, match="nothing to"):
        quick(small(folder, tiny.model(nodes, outputs={"y": ("N", 3)})), CalibrationSet(images.images, images.labels))


def test_labels_the_model_does_not_have(quick: Bench, folder: Path) -> None:
    """Regression: an IndexError from inside the loss.  A method that does not look at labels may answer."""
    images = tiny.labelled(12, classes=6)
    twin = small(folder)
    try:
        kept(quick(twin, CalibrationSet(images.images, images.labels)), twin)
    except ImagesRefused as error:
        assert "the model has 4 classes" in str(error)
    else:
        assert quick.method in DATA_FREE


def test_the_types_forbid_the_holdout_and_the_trigger() -> None:
    for method in methods().values():
        parameters = inspect.signature(method).parameters
        assert list(parameters) == ["twin", "calibration", "preset", "seed", "report"]
        assert parameters["calibration"].annotation == "CalibrationSet"


def test_names_without_torch() -> None:
    assert set(METHODS) == set(methods())


def test_awm_removes_a_real_backdoor(path: Path, twin: TorchTwin, tiny_backdoored: tiny.Backdoored, folder: Path) -> None:
    """From 80 calibration images, by onnxruntime on the file that was written back."""
    sets = split(read(tiny_backdoored.images), calibration=80, seed=0)
    attack = KnownAttack("corner", tiny_backdoored.trigger.build(3), 1)
    before = measure(Classifier(path, tiny_backdoored.reading, device="cpu"), sets[1], [attack])
    purified = Bench("awm", "default")(twin, sets[0])
    files, changes = write_back(path, ["model.onnx"], purified.weights, folder)
    after = measure(Classifier(files["model.onnx"], tiny_backdoored.reading, device="cpu"), sets[1], [attack])
    assert before.attacks[0].asr.rate > 0.9
    assert after.attacks[0].asr.rate < 0.1
    assert before.clean.rate - after.clean.rate < 0.1
    assert {change.name for change in changes} == set(purified.weights)
