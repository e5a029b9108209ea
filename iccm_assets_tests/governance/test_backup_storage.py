"""Backups below a URL: the drills of a directory of backups, on an S3 server. (V4)"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.database import connect
from iccm_assets.errors import BackupError, StorageError
from iccm_assets.governance import backup_storage
from iccm_assets.governance.backup import create_backup
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.governance.erasure_ledger import LEDGER_FILE
from iccm_assets.governance.physical_erasure import erase_from_files
from iccm_assets.governance.restore import erase_recorded, restore_backup, verify_backup
from iccm_assets.object_storage import ObjectStorage, open_url
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, describe_files
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories.erasure_worlds import (
    EMBEDDER,
    World,
    learn,
    marker,
    populated,
    traces,
)
from iccm_assets_tests.factories.object_storages import BUCKET, read_tree, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture
def backups(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}/backups"


def publish_model(home: Path, weights: bytes, storage: str = "") -> Path:
    store = ModelStore.open(load_settings(home=home, storage=storage))
    staging = store.create_staging("r", 1, 1)
    (staging / "config.json").write_text("{}")
    (staging / "model.safetensors").write_bytes(weights)
    manifest = Manifest(kind="imported", base="b", files=describe_files(staging))
    published = store.publish(staging, manifest)
    store.release(published.digest)
    return published.path


def count_rows(engine: sa.Engine) -> dict[str, int]:
    with engine.connect() as conn:
        return {
            name: conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in t.metadata.tables.items()
            if name != "iccm.platform"
        }


def list_keys(url: str) -> list[str]:
    fs, root = open_url(url)
    return sorted(key.removeprefix(f"{root}/") for key in fs.find(root))


def test_a_restore_elsewhere_has_every_row_and_byte(platform: World, empty: Settings, backups: str) -> None:
    populated(platform, marker("user"))
    learn(platform, name="aaaaaaaa")
    publish_model(platform.home, b"weights" * 100)
    before = count_rows(platform.engine)
    files = {kind: read_tree(platform.home / kind) for kind in ("models", "datasets")}
    made = create_backup(platform.engine, platform.settings, backups)
    assert str(made.path) == f"{backups}/backups/{made.manifest.name}"
    assert verify_backup(backups).verified_bytes == made.manifest.size
    shutil.rmtree(platform.home)

    report = restore_backup(empty, backups)

    engine = connect(empty)
    assert count_rows(engine) == before
    assert {kind: read_tree(empty.home / kind) for kind in files} == files
    assert report.manifest.production == made.manifest.production is not None
    engine.dispose()


def test_what_was_erased_after_the_backup_is_not_restored(
    platform: World, empty: Settings, backups: str
) -> None:
    words = marker("user")
    ids = populated(platform, words)
    learn(platform, name="aaaaaaaa")
    create_backup(platform.engine, platform.settings, backups)
    done = erase(platform.engine, DataSubject("user", f"mallory-{words}"), actor="test")
    erase_from_files(platform.engine, platform.settings, done.hashes, embedder=EMBEDDER)
    fs, root = open_url(backups)
    ledger = fs.cat_file(f"{root}/{LEDGER_FILE}")
    assert ledger and words.encode() not in ledger

    # Without the record of the erasure the text comes back, as in a database recovered by other means.
    fs.rm(f"{root}/{LEDGER_FILE}")
    restore_backup(empty, backups)
    engine = connect(empty)
    assert traces(empty.home, engine, words, whole_server=False)
    fs.pipe_file(f"{root}/{LEDGER_FILE}", ledger)
    assert erase_recorded(engine, empty, backups, actor="test", embedder=EMBEDDER) == (
        [len(ids["mallory"])],
        "",
    )
    engine.dispose()

    shutil.rmtree(empty.home)
    report = restore_backup(empty, backups, replace_existing=True, embedder=EMBEDDER)
    assert report.erased_again == [len(ids["mallory"])]
    places = traces(empty.home, engine, words, whole_server=False)
    assert [place for place in places if "pg_statistic" not in place] == []
    engine.dispose()


def test_a_damaged_backup_is_refused_and_nothing_is_restored(
    platform: World, empty: Settings, backups: str
) -> None:
    publish_model(platform.home, b"weights" * 100)
    made = create_backup(platform.engine, platform.settings, backups)
    [weights] = [file for file in made.manifest.files if file.path.endswith(".safetensors")]
    fs, root = open_url(backups)
    folder = f"{root}/backups/{made.manifest.name}"
    keys = (
        f"{root}/objects/{weights.sha256[:2]}/{weights.sha256}",
        f"{folder}/platform.dump",
        f"{folder}/{MANIFEST_FILE}",
    )
    for key in keys:
        intact = fs.cat_file(key)
        middle = len(intact) // 2
        flipped = intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :]
        for damaged in (flipped, intact[:-10], b""):
            fs.pipe_file(key, damaged)
            for attempt in (lambda: restore_backup(empty, backups), lambda: verify_backup(backups)):
                with pytest.raises(BackupError):
                    attempt()
            assert not any(empty.home.glob("models/*"))
        fs.pipe_file(key, intact)
    fs.rm(keys[0])
    with pytest.raises(BackupError, match="cannot be read"):
        restore_backup(empty, backups)
    engine = connect(empty)
    assert sum(count_rows(engine).values()) == 0
    engine.dispose()


def test_a_backup_that_fails_before_its_manifest_does_not_appear(
    platform: World, backups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_model(platform.home, b"weights" * 100)

    def fail(*_: object) -> bool:
        raise StorageError("the connection ended")

    with monkeypatch.context() as patch:
        patch.setattr(backup_storage, "create_object", fail)
        with pytest.raises(StorageError):
            create_backup(platform.engine, platform.settings, backups)
    stored = list_keys(f"{backups}/objects")
    assert stored != []
    with pytest.raises(BackupError, match="no complete backup"):
        verify_backup(backups)
    made = create_backup(platform.engine, platform.settings, backups)
    assert list_keys(f"{backups}/objects") == stored
    assert verify_backup(backups).manifest == made.manifest


def test_files_are_stored_once_and_old_ones_are_deleted_with_the_backups_that_named_them(
    platform: World, backups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish_model(platform.home, b"weights" * 100)
    first = create_backup(platform.engine, platform.settings, backups)
    second = create_backup(platform.engine, platform.settings, backups)
    assert first.copied_bytes > 700 and second.copied_bytes == 0
    model.chmod(0o755)
    shutil.rmtree(model)
    third = create_backup(platform.engine, platform.settings, backups, keep=1)
    assert third.deleted == [first.manifest.name, second.manifest.name]
    needed = {file.sha256 for file in third.manifest.files}
    # Files of the last day may belong to a backup that is being made.
    assert {key.rpartition("/")[2] for key in list_keys(f"{backups}/objects")} > needed
    tomorrow = datetime.now(UTC) - timedelta(days=2)
    monkeypatch.setattr(backup_storage, "get_time", lambda entry: tomorrow)
    fourth = create_backup(platform.engine, platform.settings, backups, keep=1)
    assert {key.rpartition("/")[2] for key in list_keys(f"{backups}/objects")} == needed
    assert verify_backup(backups).manifest == fourth.manifest


def test_a_url_belongs_to_one_platform(platform: World, empty: Settings, backups: str) -> None:
    create_backup(platform.engine, platform.settings, backups)
    engine = connect(empty)
    with pytest.raises(BackupError, match="another platform"):
        create_backup(engine, empty, backups)
    engine.dispose()


def test_a_bucket_that_does_not_exist_is_a_clear_error(platform: World, backups: str) -> None:
    with pytest.raises(StorageError, match=r"no-such-bucket.*Create the bucket"):
        create_backup(platform.engine, platform.settings, "s3://no-such-bucket/backups")


def test_a_backup_has_what_only_the_storage_has_and_a_restore_publishes_it(
    platform: World, empty: Settings, backups: str, tmp_path: Path
) -> None:
    url, other = f"{backups}-storage", f"{backups}-other-storage"
    model = publish_model(tmp_path / "another-home", b"weights" * 100, url)
    settings = platform.settings.model_copy(update={"storage": url})
    made = create_backup(platform.engine, settings, backups)
    assert f"models/{model.name}" in {file.directory for file in made.manifest.files}
    again = create_backup(platform.engine, settings, backups)
    assert again.copied_bytes == 0
    report = restore_backup(empty.model_copy(update={"storage": other}), backups)
    assert report.not_shared == ""
    assert read_tree(empty.home / "models" / model.name) == read_tree(model)
    assert model.name in [artifact.name for artifact in ObjectStorage(other).list_artifacts("models")]
