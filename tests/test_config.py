"""audit.yaml: what it may say, and the sentence when it says something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import AuditSpec, Policy, read_spec
from pipeline.errors import SpecRefused
from pipeline.triggers import PatchSpec

FULL = """
input: {layout: NHWC, size: [32, 24], channels: BGR, scale: 1, mean: [104, 117, 123], std: [1, 1, 1]}
output: probabilities
labels: [airplane, "3", next door]
data: {calibration: calibration.npz, holdout: ../holdout}
triggers:
  - {name: square, kind: patch, image: trigger.png, mask: sub/mask.png, at: [22, -8], target: next door}
  - {name: white, size: [2, 3], color: [255, 0, 7], at: [0, 0], target: next}
  - {name: gray, size: [2, 2], color: 9, at: [0, 0], target: "3"}
  - {name: third, size: [2, 2], at: [0, 0], target: 3}
purify: {method: awm, preset: paper, images: 200, when: always, seconds: 60}
policy: {max_asr: 0.05, max_accuracy_drop: 0.02, min_accuracy: 0.8, min_images: 100}
limits: {seconds: 10, memory_gib: 4, file_gib: 0.5}
"""


def spec(folder: Path, text: str) -> AuditSpec:
    (folder / "audit.yaml").write_text(text)
    return read_spec(folder / "audit.yaml")


def test_everything(folder: Path) -> None:
    found = spec(folder, FULL)
    assert found.input is not None and (found.input.layout, found.input.size, found.input.mean) == ("NHWC", (32, 24), (104, 117, 123))
    assert (found.data.calibration, found.data.holdout, found.data.images) == (folder / "calibration.npz", folder / "../holdout", None)
    assert (found.triggers[0].image, found.triggers[0].mask) == (str(folder / "trigger.png"), str(folder / "sub/mask.png"))
    assert [found.target_of(trigger) for trigger in found.triggers] == [2, "next", 1, 3]
    assert (found.purify.images, found.purify.when, found.policy.max_asr, found.limits.file_gib) == (200, "always", 0.05, 0.5)


@pytest.mark.parametrize("text", ["", "{}", "# nothing but a remark", "triggers: []"])
def test_nothing_is_a_spec(text: str, folder: Path) -> None:
    assert spec(folder, text) == AuditSpec()


def test_paths_from_home_and_from_the_root_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    found = spec(folder, "data: {images: ~/images}\ntriggers: [{name: a, image: /t.png, at: [0, 0], target: 0}]")
    assert found.data.images == folder / "home" / "images"
    assert found.triggers[0].image == "/t.png"


def test_relative_paths_do_not_depend_on_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "audit.yaml").write_text("data: {images: images}")
    monkeypatch.chdir(folder)
    assert read_spec(Path("audit.yaml")).data.images == folder / "images"


PATCH = "triggers: [{{name: a, at: [0, 0], {}}}]"
REFUSED = {
    "polcy: {}": "unknown key `polcy`",
    "policy: {max_asr: 0.1, maxasr: 1}": "unknown key `policy.maxasr`",
    "policy: {max_asr: 1.1}": "`policy.max_asr`: input should be less than or equal to 1",
    "policy: {max_asr: -0.1}": "`policy.max_asr`",
    "policy: {max_asr: .nan}": "`policy.max_asr`",
    "policy: {min_accuracy: high}": "`policy.min_accuracy`: input should be a valid number",
    "policy: {min_images: 0}": "`policy.min_images`",
    "limits: {memory_gib: .inf}": "`limits.memory_gib`: input should be a finite number",
    "limits: {seconds: 0}": "`limits.seconds`",
    "purify: {seconds: .inf}": "`purify.seconds`",
    "purify: {images: 0}": "`purify.images`",
    "purify: {when: sometimes}": "`purify.when`: input should be 'auto', 'always' or 'never'",
    "purify: {preset: best}": "`purify.preset`",
    "output: scores": "`output.scores`: input should be 'logits' or 'probabilities'",
    "output: {name: ''}": "`output.name`",
    "output: {index: 1}": "unknown key `output.index`",
    "output: [logits]": "`output`",
    "labels: [a, b, a]": "labels must be distinct",
    "labels: [yes, no]": "`labels.0`: input should be a valid string",
    "labels: [2024-13-45]": "is not YAML",
    "input: {}": "`input.size`: field required",
    "input: {size: [32, 32], std: [0]}": "std must be positive",
    PATCH.format("target: 1"): "either `image` or `size`",
    PATCH.format("target: 1, size: [2, 2], image: a.png"): "either `image` or `size`",
    PATCH.format("target: 1, size: [0, 2]"): "`triggers.0.size.0`",
    PATCH.format("target: -1, size: [2, 2]"): "`triggers.0.target`: input should be greater than or equal to 0",
    PATCH.format("target: 1, size: [2, 2], color: [1, 300, 2]"): "`triggers.0.color.1`: input should be less than or equal to 255",
    PATCH.format("target: 1, size: [2, 2], kind: worp"): "`triggers.0.kind`: input should be 'patch', 'additive'",
    PATCH.format("target: 1, size: [2, 2], kind: [patch]"): "`triggers.0.kind`",
    PATCH.format("target: 1, kind: warp"): "unknown key `triggers.0.at`",
    PATCH.format("target: 1, size: [2, 2], source: -1"): "`triggers.0.source`",
    "triggers: [{name: a, kind: sinusoid, target: 1, frequency: 0}]": "`triggers.0.frequency`: input should be greater than 0",
    "triggers: [patch]": "`triggers.0`",
    PATCH.format("size: [2, 2]"): "`triggers.0.target`: field required",
    "[1, 2]": "must be a mapping",
    "text": "must be a mapping",
    "a: [": "is not YAML, line 1",
    "a: b\n c: d: e": "is not YAML, line 2",
    "!!python/object/apply:os.system ['true']": "is not YAML",
    "\x00": "is not YAML",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_is_named(text: str, folder: Path) -> None:
    with pytest.raises(SpecRefused) as caught:
        spec(folder, text)
    assert REFUSED[text] in str(caught.value)
    assert str(folder / "audit.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "probabilities"),
    [
        ("", None, None),
        ("output: logits", None, False),
        ("output: probabilities", None, True),
        ("output: {scores: logits}", None, False),
        ("output: {name: dense_2}", "dense_2", None),
        ("output: {name: dense_2, scores: probabilities}", "dense_2", True),
    ],
)
def test_the_output(text: str, name: str | None, probabilities: bool | None, folder: Path) -> None:
    output = spec(folder, text).output
    assert (output.name, output.probabilities) == (name, probabilities)


def test_a_spec_that_is_not_there(folder: Path) -> None:
    with pytest.raises(SpecRefused, match="there is no file"):
        read_spec(folder / "audit.yaml")
    with pytest.raises(SpecRefused, match="cannot be read"):
        read_spec(folder)
    (folder / "latin.yaml").write_bytes(b"labels: [\xe4]")
    with pytest.raises(SpecRefused, match="is not YAML"):
        read_spec(folder / "latin.yaml")


@pytest.mark.parametrize("target", ["bird", "NEXT", "1"])
def test_a_target_that_is_no_label(target: str) -> None:
    trigger = PatchSpec(name="a", size=(1, 1), at=(0, 0), target=target)
    for labels in (None, ["cat", "dog"]):
        with pytest.raises(SpecRefused, match="neither a class index"):
            AuditSpec(labels=labels).target_of(trigger)


def test_a_target_some_classes_on() -> None:
    trigger = PatchSpec(name="a", size=(1, 1), at=(0, 0), target="+2")
    assert AuditSpec().target_of(trigger) == "+2" and AuditSpec(labels=["+1", "+2"]).target_of(trigger) == 1, "a label of that name goes first"


def sourced(source: object, target: object = "next") -> PatchSpec:
    return PatchSpec(name="a", size=(1, 1), at=(0, 0), target=target, source=source)


@pytest.mark.parametrize(("source", "expected"), [(None, None), (0, 0), (7, 7), ("dog", 1)])
def test_a_source(source: object, expected: int | None) -> None:
    assert AuditSpec(labels=["cat", "dog"]).source_of(sourced(source)) == expected


@pytest.mark.parametrize("source", ["next", "bird", "1"])
def test_a_source_that_is_no_label(source: str) -> None:
    for labels in (None, ["cat", "dog"]):
        with pytest.raises(SpecRefused, match=r"source .* neither a class index nor one of the spec's labels"):
            AuditSpec(labels=labels).source_of(sourced(source))


@pytest.mark.parametrize(("source", "target"), [(1, 1), ("dog", 1), (1, "dog")])
def test_a_source_that_is_the_target(source: object, target: object) -> None:
    with pytest.raises(SpecRefused, match="class 1 for its source and for its target"):
        AuditSpec(labels=["cat", "dog"]).source_of(sourced(source, target))


def test_what_is_good_enough_when_nobody_says() -> None:
    assert Policy() == Policy(max_asr=0.10, max_accuracy_drop=0.03, min_accuracy=0.0, min_images=50)
