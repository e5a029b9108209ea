from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iccm_assets.atomic_directories import fsync, remove_tree
from iccm_assets.errors import CorruptCheckpointError, ModelError, ModelNotFoundError, StaleFenceError
from iccm_assets.models.generation import load_model
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets_tests.factories.tiny_models import tiny_t5

MANIFEST = Manifest(kind="fine-tuned", base="tiny", files={}, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


def filled_staging(store: ModelStore, run: str = "r", attempt: int = 1, fence: int = 1) -> Path:
    return tiny_t5(store.create_staging(run, attempt, fence))


def test_a_published_model_has_its_digest_as_name_is_read_only_and_loads(store: ModelStore) -> None:
    staging = filled_staging(store)
    published = store.publish(staging, MANIFEST)
    assert published.path == store.get_path(published.digest)
    assert published.path.name == published.manifest.digest == store.verify(published.digest).digest
    assert not staging.exists()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in [published.path, *published.path.iterdir()]]
    assert all(mode & 0o222 == 0 for mode in modes)
    assert load_model(published.path).digest == published.digest


def test_publishing_the_same_weights_again_changes_nothing(store: ModelStore) -> None:
    first = store.publish(filled_staging(store), MANIFEST)
    before = first.path.stat().st_mtime_ns
    again = store.publish(filled_staging(store, attempt=2, fence=2), MANIFEST)
    assert (again.digest, again.path.stat().st_mtime_ns) == (first.digest, before)
    assert store.list_digests() == [first.digest]
    assert list(store.staging_root.iterdir()) == []


def test_equal_content_has_equal_digests_in_different_homes(tmp_path: Path) -> None:
    first, second = ModelStore(tmp_path / "one"), ModelStore(tmp_path / "two")
    assert (
        first.publish(filled_staging(first), MANIFEST).digest
        == second.publish(filled_staging(second, "other"), MANIFEST).digest
    )


def test_an_old_fence_publishes_nothing(store: ModelStore) -> None:
    staging = filled_staging(store)
    with pytest.raises(StaleFenceError):
        store.publish(staging, MANIFEST, still_current=lambda: False)
    assert store.list_digests() == []


def test_the_fence_is_checked_after_everything_is_written(store: ModelStore) -> None:
    staging = filled_staging(store)
    ready_to_publish: list[bool] = []

    def still_current() -> bool:
        ready_to_publish.append((staging / MANIFEST_FILE).is_file() and store.list_digests() == [])
        return True

    store.publish(staging, MANIFEST, still_current)
    assert ready_to_publish == [True]


@pytest.mark.parametrize("name", ["optimizer.pt", "pytorch_model.bin", "modeling_evil.py", "state.pkl"])
def test_pickles_and_code_are_never_published(name: str, store: ModelStore) -> None:
    staging = filled_staging(store)
    torch.save({}, staging / name)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        store.publish(staging, MANIFEST)
    assert store.list_digests() == []


def test_a_damaged_copy_is_moved_away_when_the_same_model_is_published_again(store: ModelStore) -> None:
    published = store.publish(filled_staging(store), MANIFEST)
    weights = published.path / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        store.verify(published.digest)
    again = store.publish(filled_staging(store, attempt=2, fence=2), MANIFEST)
    assert again.digest == published.digest
    store.verify(again.digest)
    assert (store.root / ".damaged" / again.digest).is_dir()
    assert store.list_digests() == [again.digest]


def test_an_import_copies_a_model_and_adds_a_manifest(store: ModelStore, tmp_path: Path) -> None:
    source = tiny_t5(tmp_path / "base_model")
    (source / "optimizer.pt").write_bytes(b"pickle")
    (source / ".cache").write_text("hidden")
    imported = store.import_model(str(source))
    assert (imported.manifest.kind, imported.manifest.base) == ("imported", "base_model")
    assert {path.name for path in imported.path.iterdir()} == {
        *(path.name for path in source.iterdir() if path.name not in {"optimizer.pt", ".cache"}),
        MANIFEST_FILE,
    }
    assert store.import_model(str(source)).digest == imported.digest
    assert store.import_model(str(imported.path)) == imported


def test_an_imported_hub_model_is_named_with_its_commit(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tiny_t5(tmp_path / "snapshots" / "c0ffee")
    (tmp_path / "blob").write_bytes((snapshot / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blob")  # as in the hub's cache
    monkeypatch.setattr("iccm_assets.registry.model_store.resolve", lambda name: snapshot)
    imported = store.import_model("org/tiny")
    assert imported.manifest.base == "org/tiny@c0ffee"
    assert load_model(imported.path).digest == imported.digest


def test_importing_a_published_model_from_another_home_keeps_its_digest(tmp_path: Path) -> None:
    first, second = ModelStore(tmp_path / "one"), ModelStore(tmp_path / "two")
    published = first.publish(filled_staging(first), MANIFEST)
    assert second.import_model(str(published.path)).digest == published.digest
    weights = published.path / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    with pytest.raises(CorruptCheckpointError):
        ModelStore(tmp_path / "three").import_model(str(published.path))


def test_a_failed_import_leaves_no_files(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        store.import_model(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError):
        store.import_model(str(tmp_path / "empty"))
    assert store.list_digests() == []
    assert not store.staging_root.exists() or list(store.staging_root.iterdir()) == []


def test_a_new_attempt_removes_staging_of_older_fences_and_keeps_that_of_other_runs(
    store: ModelStore,
) -> None:
    old, other = filled_staging(store, "7", 1, 1), filled_staging(store, "70", 1, 1)
    newer = filled_staging(store, "7", 3, 3)
    current = store.create_staging("7", 2, 2)
    assert not old.exists()
    assert newer.exists() and other.exists() and list(current.iterdir()) == []


def test_only_staging_without_recent_writes_is_removed(store: ModelStore) -> None:
    abandoned, active = filled_staging(store, "1"), filled_staging(store, "2")
    for path in [abandoned, *abandoned.iterdir()]:
        os.utime(path, (1, 1))
    os.utime(active, (1, 1))  # its files are fresh
    assert store.remove_stale_staging(3600) == [abandoned.name]
    assert active.exists()


def test_paths_of_unknown_digests_are_not_found(store: ModelStore) -> None:
    for digest in ("", "abc"):
        with pytest.raises(ModelNotFoundError):
            store.get_path(digest)
    assert store.list_digests() == []


PUBLISH = """
import sys
from pathlib import Path
from iccm_assets import atomic_directories
from iccm_assets.registry import model_store
from iccm_assets.registry.manifest import Manifest
import os
calls = 0
def kill_at_nth_call(path):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
fsync = atomic_directories.fsync
atomic_directories.fsync = lambda path: (kill_at_nth_call(path), fsync(path))
store = model_store.ModelStore(Path(sys.argv[1]))
store.publish(next(store.staging_root.iterdir()), Manifest(kind="fine-tuned", base="tiny", files={}, seed=1))
sys.stdout.write(str(calls))
"""


def test_a_kill_at_any_fsync_leaves_a_complete_model_or_none(tmp_path: Path) -> None:
    def publish(home: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
        filled_staging(ModelStore(home))
        return subprocess.run(
            [sys.executable, "-c", PUBLISH, str(home), str(kill_at)],
            capture_output=True,
            text=True,
            check=False,
        )

    completed = publish(tmp_path / "whole", 0)
    assert completed.returncode == 0, completed.stderr
    fsyncs = int(completed.stdout)
    assert fsyncs >= 8  # six files, the directory and its parent
    for kill_at in (1, fsyncs // 2, fsyncs - 1, fsyncs):
        home = tmp_path / str(kill_at)
        assert publish(home, kill_at).returncode == -9
        store = ModelStore(home)
        for digest in store.list_digests():
            store.verify(digest)
        again = store.publish(filled_staging(store, "r", 2, 2), MANIFEST)
        assert store.list_digests() == [again.digest]
        assert list(store.staging_root.iterdir()) == []


def test_removing_a_read_only_tree_and_a_missing_one_works(store: ModelStore) -> None:
    published = store.publish(filled_staging(store), MANIFEST)
    remove_tree(published.path)
    assert not published.path.exists()
    remove_tree(published.path)
    fsync(store.root)
