"""Versions in a real MLflow registry: fetched, audited, and told what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny
import yaml
from conftest import Place

from flows.review import _known, spec_of
from pipeline.errors import BadInput, SpecRefused
from pipeline.registry import MARK, FetchResult, Named, described

mlflow = pytest.importorskip("mlflow")


@pytest.fixture
def registry(here: Place) -> Any:
    """A client of a store in the working folder."""
    from pipeline.tracking import connect, talking

    uri = f"sqlite:///{here.folder / 'mlflow.db'}"
    with talking(uri):
        yield connect(uri)


def register(registry: Any, name: str, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    import mlflow.onnx

    from pipeline.tracking import experiment_of

    monkeypatch.chdir(folder)  # where artifacts go
    with mlflow.start_run(experiment_id=experiment_of(registry, "vendor")):
        info = mlflow.onnx.log_model(model, name="classifier", registered_model_name=name)
    version = str(info.registered_model_version)
    registry.update_model_version(name, version, "What the vendor says of it.")
    return version


def test_versions_are_reviewed_and_told(here: Place, registry: Any, tiny_backdoored: tiny.Backdoored, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a told trigger and without a search; tests/servers has the whole of it, on real servers."""
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["f"]), onnx.helper.make_node("ReduceSum", ["f"], ["y"], keepdims=0)]
    strange = tiny.model(nodes, shape=("N", 3, 12, 12), outputs={"y": ()})
    backdoored, other = (register(registry, "vendor-shapes", model, monkeypatch, here.folder) for model in (onnx.load(tiny_backdoored.model), strange))
    registry.set_registered_model_alias("vendor-shapes", "candidate", backdoored)
    registry.set_registered_model_alias("vendor-shapes", "champion", backdoored)
    (here.folder / "catalogue.yaml").write_text(yaml.safe_dump({"vendor-*": str(told)}))

    options = ["--catalogue", "catalogue.yaml", "--approve", "champion", "--json"]
    done = here.command("review", "vendor-shapes@candidate", *options)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["verdict"], found["reused"]) == (backdoored, "REPAIRED", False)
    assert found["aliases"] == {"audited": found["repaired"], "champion": None}, "a repair is approved only when it may be, and what failed is so no longer"
    repaired = registry.get_model_version("vendor-shapes", found["repaired"])
    assert repaired.tags["audit.parent"] == backdoored and repaired.description.startswith(f"Repair of version {backdoored} ")

    again = here.command("review", f"vendor-shapes/{backdoored}", *options)
    assert again.returncode == 1 and json.loads(again.stdout)["reused"] is True and json.loads(again.stdout)["repaired"] == found["repaired"]
    refused = here.command("review", f"vendor-shapes/{other}", *options)
    assert refused.returncode == 2 and registry.get_model_version("vendor-shapes", other).tags["audit.verdict"] == "REFUSED", refused.stderr
    assert here.command("review", "vendor-shapes/99", *options).returncode == 2


def test_a_review_is_believed_of_our_own_runs() -> None:
    tags = {"audit.review": "k", "audit.verdict": "ACCEPT"}

    def known(tags: dict[str, str], reviewed: dict[str, str]) -> str | None:
        return _known(FetchResult(name="n", version="1", main="model.onnx", files={}, tags=tags, reviewed=reviewed), "k")

    assert known(tags, tags) == "ACCEPT"
    assert known(tags, {}) is None, "no run of ours says so"
    assert known(tags, tags | {"audit.verdict": "REJECT"}) is None and known(tags, tags | {"audit.review": "other"}) is None
    assert known(tags | {"audit.review": "other"}, tags) is None, "it was asked for otherwise"
    assert known(tags | {"audit.verdict": "REFUSED"}, {}) == "REFUSED", "there is no run of what is no model, and nothing is gained by saying so"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a/3", ("a", "3", None)), ("models:/vendor-x/12", ("vendor-x", "12", None)), ("vendor-x@prod", ("vendor-x", None, "prod"))],
)
def test_a_version_is_named(text: str, expected: tuple[str, str | None, str | None]) -> None:
    named = Named.of(text)
    assert (named.name, named.version, named.alias) == expected


@pytest.mark.parametrize("text", ["", "a", "a/b", "a@", "@b", "a/3/", "a@b/3", "models:/a"])
def test_what_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="NAME/VERSION"):
        Named.of(text)


def test_what_others_wrote_stays() -> None:
    once = described("Theirs.", "ours one")
    assert once == f"Theirs.\n\n{MARK}\nours one" and described(once, "ours two") == f"Theirs.\n\n{MARK}\nours two"
    assert described("", "ours") == f"{MARK}\nours" and described("x" * 6000, "ours") == "x" * 6000
    assert len(described("Theirs.", "y" * 9000)) <= 4900


def test_a_catalogue_names_specs(folder: Path) -> None:
    (folder / "c.yaml").write_text("vendor-shapes: one.yaml\n'vendor-*': two.yaml\n")
    assert spec_of(folder / "c.yaml", "vendor-shapes") == folder / "one.yaml" and spec_of(folder / "c.yaml", "vendor-x") == folder / "two.yaml"
    with pytest.raises(BadInput, match="no spec for other"):
        spec_of(folder / "c.yaml", "other")
    (folder / "c.yaml").write_text("[1, 2]")
    with pytest.raises(SpecRefused, match="PATTERN: PATH"):
        spec_of(folder / "c.yaml", "other")
    with pytest.raises(SpecRefused, match="cannot be read"):
        spec_of(folder / "none.yaml", "other")
