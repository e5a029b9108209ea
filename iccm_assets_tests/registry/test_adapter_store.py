"""The store finds an adapter's base by its digest, brings it along, and never deletes it first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.errors import (
    CorruptCheckpointError,
    ModelError,
    ModelNotFoundError,
    OperationNotAllowedError,
)
from iccm_assets.models.generation import load_model
from iccm_assets.object_storage import ObjectStorage
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, read_manifest, sha256_json
from iccm_assets.registry.model_store import ModelStore, StoredModel
from iccm_assets.registry.weight_files import count_weights, read_header
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.adapters import publish_adapter, publish_base
from iccm_assets_tests.factories.tiny_models import tiny_llama


def publish_both(store: ModelStore) -> tuple[StoredModel, StoredModel]:
    base = publish_base(store, tiny_llama)
    return base, publish_adapter(store, base, seed=1)


def release_all(store: ModelStore, *digests: str) -> None:
    for digest in digests:
        for _ in range(5):
            store.release(digest)


def test_a_manifest_without_a_base_has_the_digest_that_it_had_before_there_were_adapters() -> None:
    manifest = Manifest(kind="imported", base="b", files={})
    values = {
        "kind": "imported", "base": "b", "files": {}, "parent_digest": None, "dataset_digest": None,
        "config": {}, "seed": None, "threads": None, "device": None, "code": {}, "format": 1,
    }  # fmt: skip
    assert manifest.digest == sha256_json(values) and "base_digest" not in manifest.to_json()
    adapter = manifest.model_copy(update={"base_digest": "a" * 64})
    assert adapter.digest == sha256_json({**values, "base_digest": "a" * 64})


def test_the_base_of_an_adapter_is_not_deleted_before_it(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "home")
    base, adapter = publish_both(store)
    assert store.list_bases() == {adapter.digest: base.digest}
    with pytest.raises(OperationNotAllowedError, match=f"base of 1 adapters .{adapter.digest[:12]}"):
        store.delete(base.digest)
    assert store.verify(adapter.digest) == adapter.manifest
    store.delete(adapter.digest)
    assert store.delete(base.digest) > 0 and store.list_digests() == []


def test_the_base_of_an_adapter_with_a_damaged_manifest_is_kept_too(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "home")
    base, adapter = publish_both(store)
    config = adapter.path / "adapter_config.json"
    config.chmod(0o644)
    config.write_text(config.read_text().replace(str(base.path), base.digest))
    (adapter.path / MANIFEST_FILE).chmod(0o644)
    (adapter.path / MANIFEST_FILE).write_text("{")
    assert store.list_bases() == {adapter.digest: base.digest}
    with pytest.raises(OperationNotAllowedError):
        store.delete(base.digest)


def test_a_directory_with_weights_of_the_base_is_not_published_as_an_adapter(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "home")
    base, adapter = publish_both(store)
    staging = store.create_staging("r", 1, 1)
    for name in adapter.manifest.files:
        shutil.copyfile(adapter.path / name, staging / name)
    with pytest.raises(ModelError, match="names its base by digest"):
        store.publish(staging, adapter.manifest.model_copy(update={"base_digest": None}))
    shutil.copyfile(base.path / "model.safetensors", staging / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match="whose only weights are adapter_model"):
        store.publish(staging, adapter.manifest)


def test_an_adapter_of_another_home_is_imported_with_its_base(tmp_path: Path) -> None:
    base, adapter = publish_both(ModelStore(tmp_path / "first"))
    store = ModelStore(tmp_path / "second")
    assert store.import_model(str(adapter.path)).digest == adapter.digest
    assert store.list_digests() == sorted([base.digest, adapter.digest])
    remove_tree(tmp_path / "first")
    assert load_model(store.get_path(adapter.digest), device="cpu").digest == adapter.digest


def test_an_adapter_of_unknown_origin_or_without_its_base_is_not_imported(tmp_path: Path) -> None:
    base, adapter = publish_both(ModelStore(tmp_path / "first"))
    store = ModelStore(tmp_path / "second")
    foreign = tmp_path / "foreign"
    shutil.copytree(adapter.path, foreign, copy_function=shutil.copyfile)
    foreign.chmod(0o755)
    with pytest.raises(ModelNotFoundError, match=f"the base {base.digest[:12]} of the adapter"):
        store.import_model(str(foreign))
    (foreign / MANIFEST_FILE).unlink()
    with pytest.raises(ModelError, match="not trained by this platform"):
        store.import_model(str(foreign))
    assert store.list_digests() == []


def test_another_home_gets_the_base_with_the_adapter_and_lets_both_go(url: str, tmp_path: Path) -> None:
    first, second = (load_settings(storage=url, home=tmp_path / name) for name in ("first", "second"))
    base, adapter = publish_both(ModelStore.open(first))
    store = ModelStore.open(second)
    path = store.get_path(adapter.digest)
    assert store.locate_base(path) == second.home / "models" / base.digest
    assert load_model(path, device="cpu").digest == adapter.digest
    assert store.storage is not None
    # Both are in use until they are released.
    assert not store.storage.remove("models", base.digest)
    store.release(adapter.digest)
    assert store.storage.remove("models", base.digest) and store.storage.remove("models", adapter.digest)
    assert store.list_digests() == []
    assert store.list_bases() == {adapter.digest: base.digest}  # read from the storage
    with pytest.raises(OperationNotAllowedError):
        store.delete(base.digest)


def test_an_adapter_whose_base_the_storage_lost_is_refused_by_name(url: str, tmp_path: Path) -> None:
    first, second = (load_settings(storage=url, home=tmp_path / name) for name in ("first", "second"))
    base, adapter = publish_both(ModelStore.open(first))
    ObjectStorage(url).delete("models", base.digest)
    store = ModelStore.open(second)
    with pytest.raises(ModelNotFoundError, match=f"the base {base.digest[:12]} of the adapter"):
        store.get_path(adapter.digest)
    assert store.storage is not None and store.storage.remove("models", adapter.digest)  # nothing is leased


def test_publishing_an_adapter_publishes_a_base_that_the_storage_lacks(url: str, tmp_path: Path) -> None:
    base, adapter = publish_both(ModelStore(tmp_path / "home"))  # before there was a storage
    settings = load_settings(storage=url, home=tmp_path / "home")
    ModelStore.open(settings).import_model(str(adapter.path))
    assert set(ModelStore.open(settings).list_shared()) == {base.digest, adapter.digest}


def test_weights_are_counted_from_the_headers_of_the_files(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "m")
    model = load_model(directory, device="cpu").model
    assert count_weights(directory) == sum(weight.numel() for weight in model.parameters())
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors cannot be read"):
        read_header(weights)


def test_the_digest_of_a_stored_adapter_covers_its_base(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "home")
    base, adapter = publish_both(store)
    path = adapter.path / MANIFEST_FILE
    path.chmod(0o644)
    path.write_text(path.read_text().replace(base.digest, "f" * 64))
    with pytest.raises(CorruptCheckpointError, match="was changed"):
        read_manifest(adapter.path)
