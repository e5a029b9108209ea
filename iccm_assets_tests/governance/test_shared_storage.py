"""Retention and erasure in the storage that homes share. (K2)"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.db.clock import set_clock
from iccm_assets.errors import InputError
from iccm_assets.governance.dataset_erasure import delete_unregistered_models, rewrite_datasets
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.governance.maintenance import apply_retention
from iccm_assets.governance.physical_erasure import erase_from_files
from iccm_assets.object_storage import ObjectStorage, open_url
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import StorageCache, open_storage
from iccm_assets.training.dataset import EXAMPLES_FILE, Dataset, DatasetStore, TrainingExample
from iccm_assets_tests.factories.erasure_worlds import EMBEDDER, World, learn, marker, populated
from iccm_assets_tests.factories.platform_rows import training_run, version


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/{tmp_path.parent.name}"


def get_cache(settings: Settings) -> StorageCache:
    cache = open_storage(settings)
    assert cache is not None
    return cache


def make_dataset(*ids: int) -> Dataset:
    return Dataset(
        tuple(TrainingExample(id, f"def f{id}(): ...", f"secret text {id}", "new", "pool") for id in ids), 1
    )


def write_dataset(settings: Settings, *ids: int) -> Dataset:
    dataset = make_dataset(*ids)
    DatasetStore.open(settings).write(dataset)
    get_cache(settings).release("datasets", dataset.digest)
    return dataset


def add_model(settings: Settings, name: str, dataset_digest: str | None = None) -> str:
    """Publish a model as small as can be; return its digest."""
    store = ModelStore.open(settings)
    staging = store.create_staging(name, 1, 1)
    (staging / "config.json").write_text(json.dumps({"name": name}))
    (staging / "model.safetensors").write_bytes(name.encode())
    manifest = Manifest(kind="fine-tuned", base="b", files={}, dataset_digest=dataset_digest)
    digest = store.publish(staging, manifest).digest
    store.release(digest)
    return digest


def read_all(url: str) -> bytes:
    fs, root = open_url(url)
    return b"".join(fs.cat_file(key) for key in fs.find(root))


def age_objects(url: str, days: float) -> None:
    """Date every object of a storage in memory back."""
    fs, root = open_url(url)
    for key in fs.find(root):
        fs.store[key].modified = fs.store[key].created = datetime.now(UTC) - timedelta(days=days)


def list_names(url: str, kind: str) -> list[str]:
    return [artifact.name for artifact in ObjectStorage(url).list_artifacts(kind)]


def test_retention_deletes_from_the_storage_what_no_home_needs(
    engine: sa.Engine, settings: Settings, url: str, tmp_path: Path
) -> None:
    shared = settings.model_copy(update={"storage": url})
    other = shared.model_copy(update={"home": tmp_path / "other"})
    # What another home has published is decided on as well.
    digests = {name: add_model(home, name) for name, home in (("v1", shared), ("v2", other), ("v3", other))}
    kept, unused = write_dataset(shared, 1), write_dataset(other, 2)
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        version(conn, "v2", "v1", status="gate_failed")
        for name in ("v1", "v2"):
            conn.execute(
                sa.text("update iccm.model_versions set digest = :digest where version = :name"),
                {"digest": digests[name], "name": name},
            )
        training_run(conn, 1, "v1", dataset_digest=kept.digest)
        training_run(conn, 2, "v2", dataset_digest=unused.digest)
    assert apply_retention(engine, shared).deleted == []
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(days=8))
    age_objects(url, 8)
    report = apply_retention(engine, shared)
    assert {decision.name for decision in report.deleted} == {digests["v2"], digests["v3"], unused.digest}
    assert list_names(url, "models") == [digests["v1"]]
    assert list_names(url, "datasets") == [kept.digest]
    fs, root = open_url(url)
    assert not [key for key in fs.find(root) if digests["v2"] in key or unused.digest in key]
    assert apply_retention(engine, shared).deleted == []


def test_maintenance_removes_what_a_killed_publisher_left_in_the_storage(
    engine: sa.Engine, settings: Settings, url: str
) -> None:
    shared = settings.model_copy(update={"storage": url})
    digest = add_model(shared, "v1")
    fs, root = open_url(url)
    fs.pipe_file(f"{root}/models/{'d' * 64}/{'0' * 64}", b"half")
    age_objects(url, 2)
    assert "d" * 64 in apply_retention(engine, shared).staging
    assert list_names(url, "models") == [digest]
    assert not [key for key in fs.find(root) if "d" * 64 in key]


def test_an_erasure_reaches_snapshots_that_only_the_storage_has(
    settings: Settings, url: str, tmp_path: Path
) -> None:
    first, second, third = (
        settings.model_copy(update={"storage": url, "home": tmp_path / name})
        for name in ("first", "second", "third")
    )
    hit, missed = write_dataset(first, 1, 2), write_dataset(first, 3, 4)
    trained, unregistered = add_model(first, "a", hit.digest), add_model(first, "b", hit.digest)
    intact = add_model(first, "c", missed.digest)
    # A third home has downloaded the snapshot before.
    DatasetStore.open(third).load(hit.digest)
    get_cache(third).release("datasets", hit.digest)

    assert rewrite_datasets(second.home, {2}, get_cache(second)) == [hit.digest]
    assert delete_unregistered_models(second.home, {trained}, get_cache(second)) == [unregistered]

    manifest = ObjectStorage(url).read_manifest("datasets", hit.digest)
    assert list(manifest.files) == ["manifest.json"]
    fs, root = open_url(url)
    assert len(fs.find(f"{root}/datasets/{hit.digest}")) == 1
    assert list_names(url, "models") == sorted([trained, intact])
    assert DatasetStore.open(second).load(missed.digest) == missed
    assert rewrite_datasets(second.home, {2}, get_cache(second)) == []
    # The other homes follow when they next use the storage, and cannot publish it again.
    for home in (first, third):
        with pytest.raises(InputError):
            DatasetStore.open(home).load(hit.digest)
        assert not (home.home / "datasets" / hit.digest / EXAMPLES_FILE).exists()
        get_cache(home).release("datasets", hit.digest)
    with pytest.raises(InputError, match="were erased"):
        DatasetStore.open(first).write(make_dataset(1, 2))
    assert not (first.home / "datasets" / hit.digest / EXAMPLES_FILE).exists()


def test_an_erasure_that_was_killed_before_the_storage_is_finished_by_the_next(
    settings: Settings, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = settings.model_copy(update={"storage": url})
    hit = write_dataset(home, 1)
    rewrite_datasets(home.home, {1})  # the home's files only, as if the process had ended here
    assert EXAMPLES_FILE in ObjectStorage(url).read_manifest("datasets", hit.digest).files
    rewrite_datasets(home.home, set(), get_cache(home))
    assert EXAMPLES_FILE not in ObjectStorage(url).read_manifest("datasets", hit.digest).files


def test_a_damaged_snapshot_in_the_storage_loses_its_examples(settings: Settings, url: str) -> None:
    home = settings.model_copy(update={"storage": url})
    hit = write_dataset(home, 1)
    entry = ObjectStorage(url).read_manifest("datasets", hit.digest).files[EXAMPLES_FILE]
    fs, root = open_url(url)
    fs.pipe_file(f"{root}/datasets/{hit.digest}/{entry.sha256}", b"PAR1 secret text")
    empty = home.model_copy(update={"home": home.home.parent / "empty"})
    assert rewrite_datasets(empty.home, {7}, get_cache(empty)) == [hit.digest]
    assert b"secret text" not in read_all(url)


def test_an_erasure_leaves_no_text_in_the_storage(world: World, url: str) -> None:
    settings = world.settings.model_copy(update={"storage": url})
    words = marker("user")
    ids = populated(world, words)
    learn(world, name="aaaaaaaa")
    [snapshot] = (world.home / "datasets").glob("[!.]*")
    cache = get_cache(settings)
    cache.publish("datasets", snapshot.name, snapshot)
    cache.release("datasets", snapshot.name)
    examples = ObjectStorage(url).read_manifest("datasets", snapshot.name).files[EXAMPLES_FILE]
    done = erase(world.engine, DataSubject("user", f"mallory-{words}"), actor="test")
    report = erase_from_files(world.engine, settings, done.hashes, embedder=EMBEDDER)
    assert list(done.conversations) == ids["mallory"]
    assert report.snapshots == [snapshot.name]
    fs, root = open_url(url)
    assert not [key for key in fs.find(root) if examples.sha256 in key]
    assert any(url in line and "former versions" in line for line in report.out_of_reach)


def test_a_published_model_is_described_by_its_own_manifest(settings: Settings, url: str) -> None:
    home = settings.model_copy(update={"storage": url})
    digest = add_model(home, "a")
    elsewhere = ModelStore.open(home.model_copy(update={"home": home.home.parent / "empty"}))
    assert elsewhere.read_manifest(digest).digest == digest
    assert elsewhere.list_digests() == [] and elsewhere.list_all_digests() == [digest]
