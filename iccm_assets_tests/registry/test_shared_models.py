"""Models that homes share through a storage. (K2)"""

from __future__ import annotations

from pathlib import Path

import pytest

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.errors import CorruptCheckpointError, ModelNotFoundError, StorageError
from iccm_assets.models.generation import load_model
from iccm_assets.object_storage import ObjectStorage, open_url
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore, StoredModel, fetch_model
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories.object_storages import read_tree
from iccm_assets_tests.factories.tiny_models import tiny_t5

MANIFEST = Manifest(kind="fine-tuned", base="tiny", files={}, seed=1)


def make_settings(url: str, home: Path, **changes: object) -> Settings:
    return load_settings(storage=url, home=home, **changes)


def publish(settings: Settings, seed: int = 0) -> StoredModel:
    store = ModelStore.open(settings)
    manifest = MANIFEST.model_copy(update={"seed": seed})
    published = store.publish(tiny_t5(store.create_staging("r", 1, 1)), manifest)
    store.release(published.digest)
    return published


def test_another_home_gets_the_same_weights_bit_for_bit_and_loads_them(url: str, tmp_path: Path) -> None:
    first, second = (make_settings(url, tmp_path / name) for name in ("first", "second"))
    published = publish(first)
    path = fetch_model(Path("/another/machine/models") / published.digest, second)
    assert path == second.home / "models" / published.digest
    assert read_tree(path) == read_tree(published.path)
    assert load_model(path).digest == published.digest
    assert path.stat().st_mode & 0o222 == 0
    # Without the storage from now on: what the home has is used.
    ObjectStorage(url).delete("models", published.digest)
    assert fetch_model(second.home / "models" / published.digest, second) == path


def test_a_model_of_a_path_outside_the_store_is_left_where_it_is(url: str, tmp_path: Path) -> None:
    settings = make_settings(url, tmp_path / "home")
    for path in (tmp_path / "models" / "mine", tmp_path / ("a" * 64), Path("org/name")):
        assert fetch_model(path, settings) == path


def test_a_model_that_neither_has_and_a_damaged_one_are_refused_by_name(url: str, tmp_path: Path) -> None:
    settings = make_settings(url, tmp_path / "first")
    published = publish(settings)
    other = ModelStore.open(make_settings(url, tmp_path / "second"))
    with pytest.raises(ModelNotFoundError, match="nor in the storage"):
        other.get_path("b" * 64)
    entry = ObjectStorage(url).read_manifest("models", published.digest).files["config.json"]
    fs, root = open_url(url)
    fs.pipe_file(f"{root}/models/{published.digest}/{entry.sha256}", b"x" * entry.size)
    with pytest.raises(CorruptCheckpointError, match=r"config\.json.*iccm storage push --verify"):
        other.get_path(published.digest)
    assert other.list_digests() == []


def test_a_whole_model_under_another_digest_is_refused(url: str, tmp_path: Path) -> None:
    settings = make_settings(url, tmp_path / "first")
    published, wrong = publish(settings), "c" * 64
    ObjectStorage(url).publish("models", wrong, published.path)
    with pytest.raises(CorruptCheckpointError, match="under the digest cccccccccccc"):
        ModelStore.open(make_settings(url, tmp_path / "second")).get_path(wrong)


def test_the_cache_keeps_its_size_by_removing_what_was_used_longest_ago(url: str, tmp_path: Path) -> None:
    models = [publish(make_settings(url, tmp_path / "first"), seed) for seed in range(3)]
    size = sum(path.stat().st_size for path in models[0].path.rglob("*"))
    settings = make_settings(url, tmp_path / "second", storage_max_cache_gib=2.5 * size / 2**30)
    store = ModelStore.open(settings)
    for index in (0, 1, 0, 2):
        store.get_path(models[index].digest)
        store.release(models[index].digest)
    assert store.list_digests() == sorted([models[0].digest, models[2].digest])
    # What is in use stays: two of three fit, and the third is refused.
    store.get_path(models[0].digest)
    store.get_path(models[2].digest)
    with pytest.raises(StorageError, match=r"the rest is in use.*ICCM_STORAGE_MAX_CACHE_GIB"):
        store.get_path(models[1].digest)
    assert store.list_digests() == sorted([models[0].digest, models[2].digest])
    store.release(models[0].digest)
    assert store.get_path(models[1].digest).is_dir()
    assert store.list_digests() == sorted([models[1].digest, models[2].digest])
    store.release(models[1].digest)
    store.release(models[2].digest)


def test_a_model_that_the_storage_lacks_is_never_removed_from_the_home(url: str, tmp_path: Path) -> None:
    published = publish(make_settings(url, tmp_path / "home"))
    ObjectStorage(url).delete("models", published.digest)
    store = ModelStore.open(make_settings(url, tmp_path / "home", storage_max_cache_gib=1e-9))
    assert store.storage is not None
    assert store.storage.make_room(0) == []
    assert store.list_digests() == [published.digest]


def test_publishing_again_restores_what_the_storage_lost(url: str, tmp_path: Path) -> None:
    settings = make_settings(url, tmp_path / "first")
    published = publish(settings)
    ObjectStorage(url).delete("models", published.digest)
    assert ModelStore.open(settings).import_model(str(published.path)).digest == published.digest
    remove_tree(settings.home / "models")
    assert ModelStore.open(settings).verify(published.digest).digest == published.digest
