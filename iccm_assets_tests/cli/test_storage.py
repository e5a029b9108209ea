"""`iccm storage push`, and the storage in `iccm doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iccm_assets.cli.doctor import run_checks
from iccm_assets.errors import SettingsError
from iccm_assets.governance.shared_home import push_home_or_fail
from iccm_assets.object_storage import ObjectStorage, open_url
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import get_settings, load_settings
from iccm_assets.training.dataset import Dataset, DatasetStore, TrainingExample
from iccm_assets_tests.factories.commands import Run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that has lived without a storage: a model, a training set, and a directory of somebody."""
    path = tmp_path / "home"
    store = ModelStore(path)
    staging = store.create_staging("r", 1, 1)
    (staging / "config.json").write_text("{}")
    (staging / "model.safetensors").write_bytes(b"weights")
    store.publish(staging, Manifest(kind="imported", base="b", files={}))
    DatasetStore(path).write(Dataset((TrainingExample(1, "a", "b", "new", "pool"),), 1))
    (path / "models" / "notes").mkdir()
    monkeypatch.setenv("ICCM_HOME", str(path))
    monkeypatch.setenv("ICCM_STORAGE", f"file://{tmp_path}/share")
    get_settings.cache_clear()
    yield path
    get_settings.cache_clear()


def push(run: Run, *options: str, exit_code: int = 0) -> dict[str, list[str]]:
    return json.loads(run("storage", "push", "--json", *options, exit_code=exit_code).stdout)


def test_a_home_publishes_what_it_has_once_and_replaces_what_is_damaged_when_told(
    home: Path, tmp_path: Path, run: Run
) -> None:
    [model] = ModelStore(home).list_digests()[:1]
    report = push(run)
    assert len(report["published"]) == 2 and report["present"] == []
    storage = ObjectStorage(f"file://{tmp_path}/share")
    fs, root = open_url(storage.url)
    key = f"{root}/models/{model}/{storage.read_manifest('models', model).files['config.json'].sha256}"
    fs.pipe_file(key, b"[]")
    report = push(run)
    assert report["published"] == [] and len(report["present"]) == 2
    assert fs.cat_file(key) == b"[]"
    push(run, "--verify")
    assert fs.cat_file(key) == b"{}"


def test_what_is_damaged_in_both_places_is_named(home: Path, tmp_path: Path, run: Run) -> None:
    [model] = ModelStore(home).list_digests()[:1]
    push(run)
    storage = ObjectStorage(f"file://{tmp_path}/share")
    fs, root = open_url(storage.url)
    fs.pipe_file(
        f"{root}/models/{model}/{storage.read_manifest('models', model).files['config.json'].sha256}", b""
    )
    path = home / "models" / model / "config.json"
    path.chmod(0o644)
    path.write_text("changed")
    assert list(push(run, exit_code=3)["damaged"]) == [f"models/{model}"]


def test_without_a_storage_there_is_nothing_to_push_to(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ICCM_STORAGE is not set"):
        push_home_or_fail(load_settings(home=tmp_path))


@pytest.mark.parametrize(("path", "is_ok"), [("share", True), ("file-in-the-way/share", False)])
def test_doctor_tries_the_storage(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, is_ok: bool
) -> None:
    (tmp_path / "file-in-the-way").write_text("")
    monkeypatch.setenv("ICCM_STORAGE", f"file://{tmp_path}/{path}")
    checks = iter(run_checks())
    check = next(check for check in checks if check.name == "storage")
    assert check.ok is is_ok and check.required
    assert path in check.detail
