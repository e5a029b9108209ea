"""Backups restored into another home and another database: everything, or nothing, and nothing erased."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from iccm_assets.db import tables as t
from iccm_assets.db.database import MIGRATIONS, close_engines, connect, create_engine_for, dagster_url
from iccm_assets.db.locks import Lock, hold_lock
from iccm_assets.errors import BackupError, OperationNotAllowedError
from iccm_assets.governance import backup as backup_module
from iccm_assets.governance import restore as restore_module
from iccm_assets.governance import restore_target
from iccm_assets.governance.backup import create_backup
from iccm_assets.governance.dataset_erasure import rewrite_datasets
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.governance.erasure_ledger import LEDGER_FILE
from iccm_assets.governance.maintenance import apply_retention
from iccm_assets.governance.physical_erasure import erase_from_files
from iccm_assets.governance.restore import erase_recorded, restore_backup, verify_backup
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, describe_files
from iccm_assets.rollout.watermark import Watermark
from iccm_assets.settings import Settings
from iccm_assets.training.dataset import DATASET_MANIFEST_FILE, EXAMPLES_FILE
from iccm_assets_tests.factories.erasure_worlds import (
    EMBEDDER,
    World,
    learn,
    marker,
    populated,
    traces,
)

COUNTED_XID, UNCOUNTED_XID = 900_000_000, 900_000_001


def publish_model(home: Path, weights: bytes) -> Path:
    """Put a model with a manifest into the store."""
    staging = home / "models" / ".staging"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(weights)
    manifest = Manifest(kind="imported", base="b", files=describe_files(staging))
    (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return staging.rename(home / "models" / manifest.digest)


def count_rows(engine: sa.Engine) -> dict[str, int]:
    with engine.connect() as conn:
        return {
            name: conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in t.metadata.tables.items()
        }


def read_files(home: Path) -> dict[str, bytes]:
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for kind in ("models", "datasets", "environments")
        for path in (home / kind).rglob("*")
        if path.is_file()
    }


def add_live_rollout(engine: sa.Engine, candidate: str) -> None:
    """Add a rollout that has counted one of two requests, by the transaction numbers of an old server."""
    with engine.begin() as conn:
        now = conn.execute(sa.text("select now()")).scalar_one()
        watermark = str(Watermark(0, UNCOUNTED_XID, now, UNCOUNTED_XID, now))
        production = conn.execute(
            sa.text("select version from iccm.model_versions where status = 'production'")
        ).scalar_one()
        rollout = conn.execute(
            t.rollouts.insert()
            .values(candidate=candidate, production=production, evidence={"watermark": watermark})
            .returning(t.rollouts.c.id)
        ).scalar_one()
        for xid in (COUNTED_XID, UNCOUNTED_XID):
            values = {"request_id": str(xid), "status": "ok", "rollout_id": rollout, "stored_xid": xid}
            conn.execute(t.requests.insert().values(**values))


def test_a_restore_elsewhere_has_every_row_and_byte_of_one_time(
    platform: World, empty: Settings, tmp_path: Path
) -> None:
    populated(platform, marker("user"))
    candidate = learn(platform, name="aaaaaaaa")
    model = publish_model(platform.home, b"weights" * 100)
    environment = platform.home / "environments" / ("e" * 64)
    packages = environment / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "shop.py").write_text("x = 1\n", encoding="utf-8")
    (environment / "environment.json").write_text(
        json.dumps({"site_packages": str(packages.relative_to(environment))}), encoding="utf-8"
    )
    add_live_rollout(platform.engine, candidate)
    source = dagster_url(platform.settings)
    with psycopg.connect(source) as conn:
        conn.execute("create table runs (id int primary key, body text)")
        conn.execute("insert into runs values (1, 'a run')")
    before, files = count_rows(platform.engine), read_files(platform.home)
    backups, writing = tmp_path / "backups", threading.Event()

    def write() -> None:
        for number in range(10_000):
            with platform.engine.begin() as conn:
                for _ in range(2):
                    conn.execute(t.feedback.insert().values(session_id=f"{number}", rating=1))
            if writing.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    made = create_backup(platform.engine, platform.settings, backups)
    writing.set()
    writer.join()
    assert not any(path.name.startswith(".") for path in backups.rglob("*"))
    shutil.rmtree(platform.home)  # nothing may come from the old place

    report = restore_backup(empty, backups)

    engine = connect(empty)
    after = count_rows(engine)
    written = after.pop("iccm.feedback") - before.pop("iccm.feedback")
    assert after == before | {"iccm.platform": after["iccm.platform"]}
    assert written % 2 == 0  # of no transaction, half
    assert read_files(empty.home) == files
    assert report.manifest.production == made.manifest.production is not None
    with engine.connect() as conn:
        production = sa.text("select version from iccm.model_versions where status = 'production'")
        assert conn.execute(production).scalar_one() == made.manifest.production
        [watermark] = conn.execute(sa.text("select evidence ->> 'watermark' from iccm.rollouts")).scalars()
        numbers = dict(
            conn.execute(sa.select(t.requests.c.request_id, t.requests.c.stored_xid)).tuples().all()
        )
        newest = conn.execute(sa.text("select pg_current_xact_id()::text::bigint")).scalar_one()
    next_xid = json.loads(watermark)["next_xid"]
    assert numbers[str(COUNTED_XID)] < next_xid <= numbers[str(UNCOUNTED_XID)] < newest
    with psycopg.connect(dagster_url(empty)) as conn:
        assert conn.execute("select * from runs").fetchall() == [(1, "a run")]
    engine.dispose()
    assert (model.name in made.manifest.to_json()) and not made.manifest.missing.get(f"models/{model.name}")


def test_what_was_erased_after_the_backup_is_not_restored(
    platform: World, empty: Settings, tmp_path: Path
) -> None:
    words, backups = marker("user"), tmp_path / "backups"
    ids = populated(platform, words)
    learn(platform, name="aaaaaaaa")
    create_backup(platform.engine, platform.settings, backups)
    subject = DataSubject("user", f"mallory-{words}")
    done = erase(platform.engine, subject, actor="test")
    erase_from_files(platform.engine, platform.settings, done.hashes, embedder=EMBEDDER)
    assert words not in (backups / LEDGER_FILE).read_text(encoding="utf-8")

    def find_traces() -> list[str]:
        places = traces(empty.home, engine, words, whole_server=False)
        return [place for place in places if "pg_statistic" not in place]

    # Without the record of the erasure the text comes back, as in a database recovered by other means.
    (backups / LEDGER_FILE).rename(tmp_path / LEDGER_FILE)
    restore_backup(empty, backups)
    engine = connect(empty)
    assert {place.split("/")[0].split(".")[-1] for place in find_traces()} >= {"datasets", "conversations"}
    (tmp_path / LEDGER_FILE).rename(backups / LEDGER_FILE)
    erased = erase_recorded(engine, empty, backups, actor="test", embedder=EMBEDDER)
    assert erased == ([len(ids["mallory"])], "")
    assert find_traces() == []
    engine.dispose()

    shutil.rmtree(empty.home)
    report = restore_backup(empty, backups, replace_existing=True, embedder=EMBEDDER)

    assert report.erased_again == [len(ids["mallory"])]
    assert find_traces() == []
    with engine.connect() as conn:
        kept = "select count(*) from iccm.conversations where erased_at is null"
        assert conn.execute(sa.text(kept)).scalar_one() == len(ids["others"])
        original, repeated = (
            each.execute(sa.select(t.erasures.c.subject_sha256, t.erasures.c.erased_at)).all()
            for each in (platform.engine.connect(), conn)
        )
    assert repeated == original
    # A backup of the restored platform knows that: its restore repeats nothing.
    create_backup(engine, empty, tmp_path / "again")
    engine.dispose()
    assert restore_backup(empty, tmp_path / "again", replace_existing=True).erased_again == []


def test_a_damaged_backup_is_refused_and_nothing_is_restored(
    platform: World, empty: Settings, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    model = publish_model(platform.home, b"weights" * 100)
    made = create_backup(platform.engine, platform.settings, backups)
    [weights] = [file for file in made.manifest.files if file.path.endswith(".safetensors")]
    assert weights.directory == f"models/{model.name}"
    stored = backups / "objects" / weights.sha256[:2] / weights.sha256
    assert verify_backup(backups).verified_bytes == made.manifest.size

    def flip(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    for path in (stored, made.path / "platform.dump", made.path / MANIFEST_FILE):
        intact = path.read_bytes()
        path.chmod(0o600)
        for damaged in (flip(intact), intact[:-10], b""):
            path.write_bytes(damaged)
            for attempt in (lambda: restore_backup(empty, backups), lambda: verify_backup(backups)):
                with pytest.raises(BackupError):
                    attempt()
            assert not any(empty.home.glob("models/*"))
        path.write_bytes(intact)
    stored.unlink()
    with pytest.raises(BackupError, match="cannot be read"):
        restore_backup(empty, backups)
    engine = connect(empty)
    assert sum(count_rows(engine).values()) == 0
    engine.dispose()


def test_a_restore_that_fails_at_its_end_leaves_what_was_there(
    platform: World, empty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups, engine = tmp_path / "backups", connect(empty)
    create_backup(platform.engine, platform.settings, backups)
    with engine.begin() as conn:
        conn.execute(t.feedback.insert().values(session_id="kept", rating=1))
    before = count_rows(engine)
    engine.dispose()
    with pytest.raises(OperationNotAllowedError, match=r"not empty: iccm\.feedback"):
        restore_backup(empty, backups)

    monkeypatch.setattr(restore_target, "_DISCONNECT_SECONDS", 0.2)

    def fail(staging: Path, home: Path) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(restore_module, "_publish_files", fail)
        restore_backup(empty, backups, replace_existing=True)
    assert count_rows(engine) == before
    with pytest.raises(OperationNotAllowedError, match="other connections"):
        restore_backup(empty, backups, replace_existing=True)
    engine.dispose()
    restore_backup(empty, backups, replace_existing=True)
    assert count_rows(engine)["iccm.feedback"] == 0
    engine.dispose()


@pytest.mark.parametrize("step", ["restore_dump", "_finish_rows"])
def test_no_command_uses_a_half_restored_database(
    step: str, platform: World, empty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = tmp_path / "backups"
    create_backup(platform.engine, platform.settings, backups)

    def stay(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(restore_module, step, stay)
        patched.setattr(
            sa.engine.Connection, "exec_driver_sql", _killed(sa.engine.Connection.exec_driver_sql)
        )
        restore_backup(empty, backups)
    with pytest.raises(Exception, match="a restore into it was interrupted"):
        connect(empty)
    close_engines()
    with pytest.raises(OperationNotAllowedError, match="not empty"):
        restore_backup(empty, backups)
    restore_backup(empty, backups, replace_existing=True)
    engine = connect(empty)
    with engine.connect() as conn:
        schemas = conn.execute(
            sa.text("select nspname from pg_namespace where nspname like 'iccm%'")
        ).scalars()
        assert schemas.all() == ["iccm"]
    engine.dispose()


def _killed(execute: Callable[..., object]) -> Callable[..., object]:
    """Let no clean-up reach the database, as if the process were killed."""

    def call(self: object, statement: str, *arguments: object, **options: object) -> object:
        if statement == "drop schema if exists iccm cascade":
            raise KeyboardInterrupt
        return execute(self, statement, *arguments, **options)

    return call


def test_files_are_copied_once_and_old_backups_are_deleted_with_what_only_they_have(
    platform: World, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    model = publish_model(platform.home, b"weights" * 100)
    first = create_backup(platform.engine, platform.settings, backups)
    second = create_backup(platform.engine, platform.settings, backups)
    assert first.copied_bytes > 700 and second.copied_bytes == 0
    assert second.manifest.files == first.manifest.files
    shutil.rmtree(model)
    third = create_backup(platform.engine, platform.settings, backups, keep=1)
    assert third.deleted == [first.manifest.name, second.manifest.name]
    objects = [path.name for path in (backups / "objects").glob("*/*")]
    assert sorted(objects) == sorted({file.sha256 for file in third.manifest.files})
    assert verify_backup(backups).manifest == third.manifest


def test_an_erasure_during_a_backup_is_in_the_files_or_is_repeated(
    platform: World, empty: Settings, tmp_path: Path
) -> None:
    words, backups, steps = marker("user"), tmp_path / "backups", iter(range(1000))
    ids = populated(platform, words)
    learn(platform, name="aaaaaaaa")

    def erase_meanwhile(step: str, size: int) -> None:
        if step.endswith(EXAMPLES_FILE) and next(steps) == 0:
            erase(platform.engine, DataSubject("user", f"mallory-{words}"), actor="test")
            rewrite_datasets(platform.home, ids["mallory"])

    made = create_backup(platform.engine, platform.settings, backups, progress=erase_meanwhile)
    assert next(steps) == 1
    names = [file.path.rpartition("/")[2] for file in made.manifest.files if file.path.startswith("data")]
    assert names == [DATASET_MANIFEST_FILE]
    assert restore_backup(empty, backups, embedder=EMBEDDER).erased_again == [len(ids["mallory"])]


def test_a_damaged_or_deleted_model_is_named_and_the_rest_is_backed_up(
    platform: World, tmp_path: Path
) -> None:
    model = publish_model(platform.home, b"weights" * 100)
    intact = platform.home / "models" / "base"
    with platform.engine.begin() as conn:
        conn.execute(
            t.model_versions.insert().values(
                version="v2", status="retired", digest="d", path="models/deleted", metrics={}
            )
        )
    (model / "model.safetensors").write_bytes(b"flipped" * 100)
    made = create_backup(platform.engine, platform.settings, tmp_path / "backups")
    assert set(made.manifest.missing) == {f"models/{model.name}", "models/deleted"}
    assert {file.directory for file in made.manifest.files} == {f"models/{intact.name}"}


def test_a_backup_of_an_older_schema_is_upgraded_and_of_a_newer_one_refused(
    platform: World, empty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = tmp_path / "backups"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with platform.engine.begin() as conn:
        config.attributes["connection"] = conn
        command.downgrade(config, "0018")
    monkeypatch.setattr(backup_module, "load_recorded_erasures", lambda conn: [])
    made = create_backup(platform.engine, platform.settings, backups)
    assert made.manifest.schema_revision == "0018"
    restore_backup(empty, backups)
    engine = create_engine_for(empty.database_url or "")
    assert count_rows(engine)["iccm.model_versions"] == 1  # reads every column of the newest schema
    engine.dispose()
    monkeypatch.setattr(restore_module, "head_revision", lambda: "0017")
    with pytest.raises(BackupError, match="revision 0018, this package supports 0017"):
        restore_backup(empty, backups, replace_existing=True)


def test_retention_waits_for_a_backup(platform: World) -> None:
    waiting = create_engine_for(platform.settings.database_url or "", session_options="-c lock_timeout=100")
    with hold_lock(platform.engine, Lock.BACKUP), pytest.raises(sa.exc.OperationalError, match="timeout"):
        apply_retention(waiting, platform.settings)
    assert apply_retention(waiting, platform.settings).decisions
    waiting.dispose()


def test_a_directory_belongs_to_one_platform_and_to_one_writer(
    platform: World, empty: Settings, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    create_backup(platform.engine, platform.settings, backups)
    engine = connect(empty)
    with pytest.raises(BackupError, match="another platform"):
        create_backup(engine, empty, backups)
    engine.dispose()
