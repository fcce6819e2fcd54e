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

from flows.review import spec_of
from pipeline.errors import BadInput, SpecRefused
from pipeline.registry import MARK, Named, described

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

    monkeypatch.chdir(folder)  # where artifacts go
    mlflow.set_experiment("vendor")
    with mlflow.start_run():
        info = mlflow.onnx.log_model(model, name="classifier", registered_model_name=name)
    version = str(info.registered_model_version)
    registry.update_model_version(name, version, "What the vendor says of it.")
    return version


def test_versions_are_reviewed_and_told(
    here: Place, registry: Any, tiny_backdoored: tiny.Backdoored, tiny_clean: tiny.Backdoored, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["f"]), onnx.helper.make_node("ReduceSum", ["f"], ["y"], keepdims=0)]
    strange = tiny.model(nodes, shape=("N", 3, 12, 12), outputs={"y": ()})
    backdoored, clean, other = (
        register(registry, "vendor-shapes", model, monkeypatch, here.folder)
        for model in (onnx.load(tiny_backdoored.model), onnx.load(tiny_clean.model), strange)
    )
    registry.set_registered_model_alias("vendor-shapes", "candidate", backdoored)
    spec = {
        "input": tiny_backdoored.reading.model_dump(mode="json"),
        "data": {"images": str(tiny_backdoored.images)},
        "purify": {"images": 80},
    }
    (here.folder / "audit.yaml").write_text(yaml.safe_dump(spec))
    (here.folder / "catalogue.yaml").write_text("'vendor-*': audit.yaml\n")

    options = ["--catalogue", "catalogue.yaml", "--approve", "champion", "--json"]
    done = here.command("review", "vendor-shapes@candidate", *options)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["verdict"], found["reused"]) == (backdoored, "REPAIRED", False)
    version = registry.get_model_version("vendor-shapes", backdoored)
    assert version.tags["audit.verdict"] == "REPAIRED" and "detect.suspected" in version.tags["audit.reasons"]
    assert version.tags["audit.repaired_version"] == found["repaired"] and version.tags["audit.run_id"] == found["report"]["mlflow"]["run_id"]
    assert version.description.startswith("What the vendor says of it.") and "REPAIRED" in version.description and "| rate |" in version.description
    repaired = registry.get_model_version("vendor-shapes", found["repaired"])
    assert repaired.tags["audit.parent"] == backdoored and repaired.description.startswith(f"Repair of version {backdoored} ")
    assert registry.get_model_version_by_alias("vendor-shapes", "audited").version == repaired.version
    fetched = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/vendor-shapes/{repaired.version}", dst_path=str(here.folder / "fetched"))
    assert Path(fetched, "model.onnx").read_bytes() != Path(tiny_backdoored.model).read_bytes()
    assert "champion" not in found["aliases"], "a repaired version is approved only when it may be"

    before = {one.version: (dict(one.tags), one.description, one.last_updated_timestamp) for one in registry.search_model_versions("name='vendor-shapes'")}
    again = here.command("review", f"vendor-shapes/{backdoored}", *options)
    assert again.returncode == 1 and json.loads(again.stdout)["reused"] is True and json.loads(again.stdout)["repaired"] == found["repaired"]
    assert "purify" not in again.stderr
    after = {one.version: (dict(one.tags), one.description, one.last_updated_timestamp) for one in registry.search_model_versions("name='vendor-shapes'")}
    assert before == after, "the second review changes nothing"

    accepted = here.command("review", f"vendor-shapes/{clean}", *options)
    assert accepted.returncode == 0, accepted.stderr
    assert json.loads(accepted.stdout)["aliases"] == {"audited": clean, "champion": clean}
    assert str(registry.get_model_version_by_alias("vendor-shapes", "champion").version) == clean

    refused = here.command("review", f"vendor-shapes/{other}", *options)
    assert refused.returncode == 2, refused.stderr
    told = registry.get_model_version("vendor-shapes", other)
    assert told.tags["audit.verdict"] == "REFUSED" and told.tags["audit.reasons"] in told.description
    assert str(registry.get_model_version_by_alias("vendor-shapes", "champion").version) == clean, "an alias moves only when the verdict allows"
    assert here.command("review", "vendor-shapes/99", *options).returncode == 2


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
