"""Restore a backup into a home and a database: everything, or nothing. (V4)

Every file is verified while it is copied next to its place, and the rows get their schema revision, without
which no command uses them, in the transaction that also erases again what was erased after the backup.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.atomic_directories import fsync, make_read_only, remove_tree
from iccm_assets.curation.embeddings import TextEmbedder
from iccm_assets.db.client_programs import restore_dump
from iccm_assets.db.database import (
    REPLACED_SCHEMA,
    create_engine_for,
    dagster_url,
    database_url,
    head_revision,
    migrate,
)
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.db.tables import LIVE_STATES
from iccm_assets.errors import BackupError, DatabaseError, IccmError, StorageError
from iccm_assets.governance.backup import Backups, Progress
from iccm_assets.governance.backup_directory import (
    CONTENT_DIRECTORIES,
    BackupManifest,
)
from iccm_assets.governance.backup_storage import open_backups
from iccm_assets.governance.dataset_erasure import delete_unregistered_models, rewrite_datasets
from iccm_assets.governance.erasure import RecordedErasure
from iccm_assets.governance.erasure_ledger import (
    merge_erasures,
    read_ledger,
    repeat_erasures,
    store_backup_facts,
    write_ledger,
)
from iccm_assets.governance.physical_erasure import erase_from_files
from iccm_assets.governance.restore_target import check_target, replaced_schema
from iccm_assets.governance.shared_home import push_home
from iccm_assets.registry.manifest import FileEntry, describe_file
from iccm_assets.rollout.watermark import Watermark
from iccm_assets.settings import Settings

_STAGING = ".restore"
_WATERMARKS = sa.text(
    f"select id, evidence ->> 'watermark' as watermark from iccm.rollouts where state in {LIVE_STATES}"
)
_RENUMBER = sa.text(
    """
    update iccm.requests set stored_xid = case when stored_xid < :counted then 0
        else pg_current_xact_id()::text::bigint end
    where rollout_id = :rollout
    """
)
_SET_WATERMARK = sa.text(
    """
    update iccm.rollouts set evidence = jsonb_set(evidence, '{watermark}', to_jsonb(cast(:watermark as text)))
    where id = :rollout
    """
)


@dataclass(frozen=True)
class RestoreReport:
    """A backup that was restored, or only verified. ``erased_again``: conversations, by erasure."""

    manifest: BackupManifest
    verified_bytes: int
    erased_again: list[int]
    erasures_unfinished: str = ""
    not_shared: str = ""


def verify_backup(
    root: str | Path, name: str | None = None, *, progress: Progress = lambda step, size: None
) -> RestoreReport:
    """Read every byte of a backup, of the newest one by default; ``BackupError`` if it is damaged."""
    with open_backups(root) as directory:
        manifest = _choose(directory, name)
        for database, entry in manifest.dumps.items():
            _verify_dump(directory, manifest, database, entry, progress)
        for file in manifest.files:
            progress(f"verifying {file.path}", 0)
            _check(file.path, directory.locate_object(file), file, partial(directory.hash_object, file))
            progress(f"verifying {file.path}", file.size)
    return RestoreReport(manifest, manifest.size, [])


def restore_backup(
    settings: Settings,
    root: str | Path,
    name: str | None = None,
    *,
    replace_existing: bool = False,
    actor: str = "restore",
    embedder: TextEmbedder | None = None,
    progress: Progress = lambda step, size: None,
) -> RestoreReport:
    """Restore a backup, the newest one by default, into the home and the databases of the settings.

    Raises ``OperationNotAllowedError`` when these hold anything, unless it is to be replaced, or when other
    clients are connected; ``BackupError`` when the backup is damaged or newer than this package. Nothing is
    changed then.
    """
    url, other_url = database_url(settings), dagster_url(settings)
    engine, other = create_engine_for(url), create_engine_for(other_url)
    staging = settings.home / _STAGING
    try:
        with open_backups(root) as directory:
            manifest = _choose(directory, name)
            known = merge_erasures(
                read_ledger(directory.location),
                read_ledger(settings.home),
                check_target(engine, other, settings, replace_existing),
            )
            remove_tree(staging)
            for database, entry in manifest.dumps.items():
                _verify_dump(directory, manifest, database, entry, progress)
            _stage_files(directory, manifest, staging, progress)
            with replaced_schema(engine):
                progress("restoring the database", 0)
                restore_dump(url, directory.get_dump(manifest.name, "platform"))
                with engine.begin() as conn:
                    erased = _finish_rows(conn, manifest, known, directory.location, actor)
                    _erase_staged(conn, staging)
                    if "dagster" in manifest.dumps:
                        progress("restoring Dagster's database", 0)
                        dump = directory.get_dump(manifest.name, "dagster")
                        restore_dump(other_url, dump, ["--clean", "--if-exists"])
                    if known:
                        write_ledger(settings.home, known)
                    _publish_files(staging, settings.home)
        unfinished = _erase_physically(engine, settings, embedder, progress) if erased else ""
        return RestoreReport(manifest, manifest.size, erased, unfinished, _share(settings, progress))
    finally:
        remove_tree(staging)
        engine.dispose()
        other.dispose()


def _share(settings: Settings, progress: Progress) -> str:
    """Publish what was restored in the storage; return what failed, which `iccm storage push` repeats."""
    progress("publishing in the storage", 0)
    try:
        push_home(settings)
    except StorageError as error:
        return error.message
    return ""


def erase_recorded(
    engine: sa.Engine,
    settings: Settings,
    root: str | Path,
    *,
    actor: str,
    embedder: TextEmbedder | None = None,
    progress: Progress = lambda step, size: None,
) -> tuple[list[int], str]:
    """Erase what the ledgers of the home and of a backup directory know and the database does not.

    A database that was recovered by other means needs it. Returns the conversations of each erasure, and what
    failed of their physical erasure.
    """
    known = merge_erasures(read_ledger(_get_location(root)), read_ledger(settings.home))
    with engine.begin() as conn:
        acquire_lock(conn, Lock.ERASURE)
        erased = repeat_erasures(conn, known, actor)
    return erased, _erase_physically(engine, settings, embedder, progress) if erased else ""


def _get_location(root: str | Path) -> str:
    with open_backups(root) as directory:
        return directory.location


def _choose(directory: Backups, name: str | None) -> BackupManifest:
    names = directory.list_names()
    if not names:
        raise BackupError(f"{directory.location} has no complete backup")
    manifest = directory.read_manifest(name or names[-1])
    if manifest.schema_revision > head_revision():
        raise BackupError(
            f"the backup's schema is at revision {manifest.schema_revision}, this package supports"
            f" {head_revision()}",
            hint=f"Install iccm-assets {manifest.package_version} or newer.",
        )
    return manifest


def _verify_dump(
    directory: Backups, manifest: BackupManifest, database: str, entry: FileEntry, progress: Progress
) -> None:
    progress(f"verifying the dump {database}", 0)
    path = directory.get_dump(manifest.name, database)
    _check(path.name, str(path), entry, partial(describe_file, path))
    progress(f"verifying the dump {database}", entry.size)


def _check(name: str, path: str, expected: FileEntry, read: Callable[[], FileEntry]) -> None:
    """Compare what a file holds with what the manifest says; ``BackupError`` if it differs."""
    try:
        actual = read()
    except (OSError, IccmError) as error:
        raise BackupError(f"{name} cannot be read from the backup ({error})") from None
    if (actual.sha256, actual.size) != (expected.sha256, expected.size):
        raise BackupError(
            f"{name} is damaged in the backup: {path} has {actual.size} bytes, sha256 {actual.sha256[:12]};"
            f" {expected.size} bytes, {expected.sha256[:12]} were written",
            hint="Restore another backup.",
        )


# ---- rows ----------------------------------------------------------------------------------------


def _finish_rows(
    conn: sa.Connection, manifest: BackupManifest, known: list[RecordedErasure], root: str, actor: str
) -> list[int]:
    """Give the restored rows their revision, migrate them, and erase again; one transaction."""
    conn.execute(
        sa.text("insert into iccm.alembic_version (version_num) values (:revision)"),
        {"revision": manifest.schema_revision},
    )
    migrate(conn)
    erased = repeat_erasures(conn, known, actor)
    _renumber_requests(conn)
    store_backup_facts(conn, {"platform": manifest.platform, "directories": [root]})
    conn.exec_driver_sql(f"drop schema if exists {REPLACED_SCHEMA} cascade")
    return erased


def _renumber_requests(conn: sa.Connection) -> None:
    """Let a live rollout go on: it counts requests by transaction numbers, which are another server's."""
    current = conn.execute(sa.text("select pg_current_xact_id()::text::bigint")).scalar_one()
    for row in conn.execute(_WATERMARKS).all():
        try:
            watermark = Watermark.parse(row.watermark or "")
        except IccmError:
            continue  # a damaged row: nothing is decided on it
        counted = watermark.next_xid if watermark else 0
        conn.execute(_RENUMBER, {"rollout": row.id, "counted": counted})
        if watermark is not None:
            renumbered = replace(watermark, next_xid=current, high_watermark=current)
            conn.execute(_SET_WATERMARK, {"rollout": row.id, "watermark": str(renumbered)})


# ---- files ---------------------------------------------------------------------------------------


def _stage_files(directory: Backups, manifest: BackupManifest, staging: Path, progress: Progress) -> None:
    """Copy every file next to its place, verified."""
    staging.mkdir(parents=True)
    for file in manifest.files:
        progress(f"copying {file.path}", 0)
        target = staging / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = partial(directory.copy_object, file, target, file.mode)
        _check(file.path, directory.locate_object(file), file, copy)
        progress(f"copying {file.path}", file.size)


def _erase_staged(conn: sa.Connection, staging: Path) -> None:
    """Erase from the staged files what is erased in the rows."""
    erased = conn.execute(sa.text("select id from iccm.conversations where erased_at is not null"))
    rewrite_datasets(staging, set(erased.scalars()))
    registered = conn.execute(sa.text("select digest from iccm.model_versions"))
    delete_unregistered_models(staging, set(registered.scalars()))


def _publish_files(staging: Path, home: Path) -> None:
    """Move the staged directories to their places; one of the same name is replaced."""
    for kind in CONTENT_DIRECTORIES:
        (home / kind).mkdir(parents=True, exist_ok=True)
        for folder in sorted((staging / kind).glob("[!.]*")):
            target = home / kind / folder.name
            remove_tree(target)
            folder.chmod(0o755)
            folder.rename(target)
            if kind != "environments":
                make_read_only(target)
            else:  # readable for the sandbox's user, and can be deleted by its owner
                for parent, _, _ in os.walk(target):
                    Path(parent).chmod(0o755)
        fsync(home / kind)


def _erase_physically(
    engine: sa.Engine, settings: Settings, embedder: TextEmbedder | None, progress: Progress
) -> str:
    """Remove the bytes of rows that were erased again; return what failed, which `iccm erase` repeats."""
    try:
        erase_from_files(
            engine, settings, embedder=embedder, progress=lambda step: progress(f"erasing again: {step}", 0)
        )
    except DatabaseError as error:
        return error.message
    return ""
