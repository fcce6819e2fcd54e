"""Files by content: what is written whole, what is kept, what is swept."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifact import PREFIX, ModelArtifact, Shared, Store, atomic_write, digests, sha256
from pipeline.errors import BadInput, Defect, StageFailed

EMPTY = hashlib.sha256(b"").hexdigest()


def test_sha256(folder: Path) -> None:
    (folder / "a").write_bytes(b"")
    assert sha256(folder / "a") == EMPTY


def test_an_atomic_write_makes_folders_and_keeps_the_umask(folder: Path) -> None:
    path = folder / "deep" / "er" / "file"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    plain = folder / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failed_write_leaves_the_old_bytes_and_nothing_else(folder: Path) -> None:
    atomic_write(folder / "file", b"old")
    with pytest.raises(TypeError):
        atomic_write(folder / "file", "not bytes")  # type: ignore[arg-type]
    assert (folder / "file").read_bytes() == b"old"
    (folder / "taken").mkdir()
    with pytest.raises(OSError):
        atomic_write(folder / "taken", b"x")
    assert {entry.name for entry in folder.iterdir()} == {"file", "taken"}


def test_an_artifact_without_external_data_is_known_by_its_file() -> None:
    artifact = ModelArtifact(files={"model.onnx": PREFIX + "ab"})
    assert artifact.sha256 == artifact.digest == "ab"


def test_every_external_byte_and_name_is_in_the_digest() -> None:
    seen = {
        ModelArtifact(files=files).digest
        for files in (
            {"model.onnx": PREFIX + "ab"},
            {"model.onnx": PREFIX + "ab", "w.bin": PREFIX + "cd"},
            {"model.onnx": PREFIX + "ab", "w.bin": PREFIX + "ce"},
            {"model.onnx": PREFIX + "ab", "v.bin": PREFIX + "cd"},
        )
    }
    assert len(seen) == 4
    one = ModelArtifact(files={"model.onnx": PREFIX + "ab", "w.bin": PREFIX + "cd"})
    assert one.digest == ModelArtifact(files={"w.bin": PREFIX + "cd", "model.onnx": PREFIX + "ab"}).digest
    assert one.sha256 == "ab"


def test_the_store_keeps_bytes_by_digest(folder: Path) -> None:
    store = Store(folder / "store")
    (folder / "a").write_bytes(b"")
    digest = store.put(folder / "a")
    assert digest == store.put(folder / "a") == PREFIX + EMPTY
    (folder / "a").write_bytes(b"changed afterwards")
    assert store.path(digest).read_bytes() == b""
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o444
    assert store.holds({"a": [digest, "text", 1, None], "b": {"c": digest}})
    assert not store.holds([digest, PREFIX + "0" * 64])
    assert [entry.name for entry in (folder / "store" / "objects").iterdir()] == [EMPTY]


def test_altered_or_lost_bytes_are_never_handed_out(folder: Path) -> None:
    store = Store(folder / "store")
    (folder / "a").write_bytes(b"a")
    digest = store.put(folder / "a")
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"b")
    with pytest.raises(Defect, match="altered"):
        store.path(digest)
    path.unlink()
    with pytest.raises(Defect, match="lost"):
        store.path(digest)
    store.put(folder / "a")
    assert store.path(digest).read_bytes() == b"a"


def test_a_file_that_cannot_be_kept_leaves_nothing(folder: Path) -> None:
    store = Store(folder / "store")
    with pytest.raises(FileNotFoundError):
        store.put(folder / "missing")
    assert list((folder / "store" / "objects").iterdir()) == []


def test_where_the_store_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_AUDIT_HOME", str(folder / "home"))
    assert Store().folder == folder / "home"
    assert Store(folder / "given").folder == folder / "given"
    monkeypatch.delenv("ONNX_AUDIT_HOME")
    assert Store().folder.name == "onnx-audit"
    assert Store(folder).results == folder / "results"


def test_scratch_is_gone_afterwards_also_after_an_error(folder: Path) -> None:
    store = Store(folder)
    with pytest.raises(KeyError), store.scratch() as one:
        (one / "file").write_bytes(b"x")
        with store.scratch() as other:
            assert one != other and one.is_dir() and other.is_dir()
        assert not other.exists()
        raise KeyError
    assert list((folder / "scratch").iterdir()) == []


def test_the_scratch_of_a_living_process_is_left_and_of_a_killed_one_swept(folder: Path) -> None:
    """Regression: the living were known by process number, which says nothing across containers that share a store."""
    code = f"from pipeline.artifact import Store\nimport time\nwith Store({str(folder)!r}).scratch() as made:\n print(made, flush=True)\n time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code.replace("Store(", "Store(__import__('pathlib').Path(", 1).replace(").scratch", ")).scratch")],
                          stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}) as other:  # fmt: skip
        try:
            assert other.stdout is not None
            theirs = Path(other.stdout.readline().strip())
            renamed = theirs.with_name("1-of-another-container")
            with Store(folder).scratch():
                assert theirs.is_dir()
            theirs.rename(renamed)
            with Store(folder).scratch():
                assert renamed.is_dir()
        finally:
            other.kill()
            other.wait()
    with Store(folder).scratch() as mine:
        assert [entry for entry in mine.parent.iterdir() if entry != mine] == []


def test_digests() -> None:
    one, two, three = (PREFIX + digit * 64 for digit in "123")
    assert list(digests({"a": one, "b": [two, {"c": three}], "d": "sha1:4", PREFIX + "key": 5})) == [one, two, three]


@pytest.mark.parametrize("name", [PREFIX + "../../../etc/passwd", PREFIX + "1" * 63, PREFIX + "1" * 64 + "\n", "x" + PREFIX + "1" * 64, PREFIX + "G" * 64])
def test_a_name_in_a_file_is_no_digest(name: str) -> None:
    assert list(digests([name])) == []


@pytest.fixture
def shared(folder: Path) -> Shared:
    """A folder that two machines have in common."""
    return Shared(str(folder / "shared"))


def test_what_one_machine_keeps_another_has(folder: Path, shared: Shared) -> None:
    (folder / "a").write_bytes(b"weights")
    here, there = Store(folder / "here", shared=shared), Store(folder / "there", shared=shared)
    digest = here.put(folder / "a")
    assert there.holds({"model": [digest]}) and not (there.folder / "objects").exists(), "asking fetches nothing"
    assert there.path(digest).read_bytes() == b"weights"
    (folder / "shared" / digest.removeprefix(PREFIX)).unlink()
    assert there.path(digest).read_bytes() == b"weights", "what was fetched is its own"
    assert not Store(folder / "third", shared=shared).holds(digest)
    with pytest.raises(Defect, match="has lost"):
        Store(folder / "third", shared=shared).path(digest)


def test_what_comes_from_another_is_hashed(folder: Path, shared: Shared) -> None:
    (folder / "a").write_bytes(b"weights")
    digest = Store(folder / "here", shared=shared).put(folder / "a")
    (folder / "shared" / digest.removeprefix(PREFIX)).write_bytes(b"wEights")
    there = Store(folder / "there", shared=shared)
    with pytest.raises(StageFailed, match="altered"):
        there.path(digest)
    assert list((there.folder / "objects").iterdir()) == [], "nothing of it stays"


def test_half_an_object_is_sent_again(folder: Path, shared: Shared) -> None:
    (folder / "a").write_bytes(b"weights")
    digest = Store(folder / "here", shared=shared).put(folder / "a")
    (folder / "shared" / digest.removeprefix(PREFIX)).write_bytes(b"wei")  # of a machine that lost power
    Store(folder / "there", shared=shared).put(folder / "a")
    assert Store(folder / "third", shared=shared).path(digest).read_bytes() == b"weights"


def test_an_address_that_nothing_opens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_AUDIT_STORE", "nowhere://bucket")
    with pytest.raises(BadInput, match=r"nowhere://bucket cannot be opened .*onnx-audit\[s3\]"):
        Store()


def test_a_store_that_does_not_answer_is_a_stage_that_failed(folder: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> None:
        raise TimeoutError("no route")

    (folder / "a").write_bytes(b"weights")
    monkeypatch.setattr(shared.files, "info", down)
    with pytest.raises(StageFailed, match=r"did not take .* no route"):
        Store(folder / "here", shared=shared).put(folder / "a")
