"""Back up both databases and the files of one time, beside running services. (V4)

The dumps are of snapshots, and the files are copied after these were taken: what a row of a snapshot names
was on disk by then, and retention waits for the backup. An erasure does not wait: what it deletes meanwhile
is not in the backup, and what the dump still holds is erased again by a restore.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.db.client_programs import dump_database
from iccm_assets.db.database import create_engine_for, dagster_url, database_url
from iccm_assets.db.locks import Lock, hold_lock
from iccm_assets.errors import (
    ArtifactNotFoundError,
    BackupError,
    CorruptArtifactError,
    CorruptCheckpointError,
    ModelNotFoundError,
)
from iccm_assets.governance.backup_directory import (
    CONTENT_DIRECTORIES,
    BackupDirectory,
    BackupFile,
    BackupManifest,
)
from iccm_assets.governance.backup_storage import BackupStorage, open_backups
from iccm_assets.governance.erasure import load_recorded_erasures
from iccm_assets.governance.erasure_ledger import (
    load_backup_facts,
    store_backup_facts,
    write_ledger,
)
from iccm_assets.object_storage import StoredArtifact
from iccm_assets.registry.hub import has_manifest
from iccm_assets.registry.manifest import FileEntry, describe_file, read_manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.sandbox.environments import MANIFEST as ENVIRONMENT_MANIFEST
from iccm_assets.sandbox.environments import list_portable_files
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import StorageCache, open_storage
from iccm_assets.training.dataset import DATASET_MANIFEST_FILE, EXAMPLES_FILE

_ATTEMPTS = 3
Progress = Callable[[str, int], None]
Backups = BackupDirectory | BackupStorage

_VERSIONS = sa.text(
    "select version, status, digest, path from iccm.model_versions"
    " where not metrics ? 'removed' order by created_at, version"
)
# Tables only: of a server's extensions and schemas, Dagster uses none.
_DAGSTER_TABLES = sa.text(
    "select current_schema(), exists (select from pg_tables where schemaname = current_schema())"
)


@dataclass(frozen=True)
class BackupReport:
    """A backup that was made. ``copied_bytes``: what no earlier backup in the directory had."""

    path: Path | str
    manifest: BackupManifest
    copied_bytes: int
    deleted: list[str]


def create_backup(
    engine: sa.Engine,
    settings: Settings,
    root: str | Path,
    *,
    keep: int | None = None,
    progress: Progress = lambda step, size: None,
) -> BackupReport:
    """Make a backup in a directory or below a URL; then delete all but the newest ``keep``.

    ``progress`` gets a description and the bytes that are done since the last call. Raises ``BackupError`` or
    ``DatabaseError``, and no backup appears then; ``OSError`` when the directory cannot be written.
    """
    with open_backups(root) as directory, directory.open_for_writing():
        progress("waiting for another backup or for the retention to end", 0)
        with hold_lock(engine, Lock.BACKUP):
            platform = _register(engine, directory)
            staging = directory.create_staging()
            try:
                facts = _dump(settings, staging, progress)
                copy = _Copy(settings, directory, progress)
                files = tuple(copy.run())
                missing = copy.damaged | _find_missing(
                    facts.pop("versions"), files, copy.damaged, ModelStore.open(settings).list_bases()
                )
                manifest = BackupManifest(
                    name=staging.name.removeprefix("."),
                    created_at=facts.pop("created_at"),
                    platform=platform,
                    package_version=version("iccm-assets"),
                    files=files,
                    missing=missing,
                    **facts,
                )
                with engine.connect() as conn:
                    if erasures := load_recorded_erasures(conn):
                        write_ledger(directory.location, erasures)
                path = directory.publish(staging, manifest)
            finally:
                remove_tree(staging)
        deleted = directory.delete_old(keep) if keep else []
    return BackupReport(path, manifest, copy.copied_bytes, deleted)


def _register(engine: sa.Engine, directory: Backups) -> str:
    """Remember the directory, whose ledger gets every later erasure; return the id of the platform."""
    with engine.begin() as conn:
        facts = load_backup_facts(conn)
        platform = facts.get("platform") or str(uuid.uuid4())
        if names := directory.list_names():
            other = directory.read_manifest(names[-1]).platform
            if other != platform:
                raise BackupError(f"{directory.location} holds the backups of another platform")
        directories = {*facts.get("directories", ()), directory.location}
        store_backup_facts(conn, {"platform": platform, "directories": sorted(directories)})
    return platform


def _dump(settings: Settings, staging: Path, progress: Progress) -> dict[str, Any]:
    """Dump both databases; return what the manifest says about them."""
    url, other_url = database_url(settings), dagster_url(settings)
    dumps: dict[str, FileEntry] = {}
    with ExitStack() as stack:
        # Both snapshots before the first dump, so that they are of one time.
        conn, snapshot = stack.enter_context(_snapshot(url))
        other, other_snapshot = stack.enter_context(_snapshot(other_url))
        created_at = datetime.now(UTC)
        versions = conn.execute(_VERSIONS).all()
        revision = conn.exec_driver_sql("select version_num from iccm.alembic_version").scalar_one()
        server_version = conn.exec_driver_sql("show server_version").scalar_one()
        schema, has_tables = other.execute(_DAGSTER_TABLES).one()
        progress("dumping the database", 0)
        selection = ["--schema=iccm", "--exclude-table-data=iccm.alembic_version"]
        dump_database(url, staging / "platform.dump", snapshot, selection)
        dumps["platform"] = describe_file(staging / "platform.dump")
        if has_tables:
            progress("dumping Dagster's database", 0)
            dump_database(other_url, staging / "dagster.dump", other_snapshot, [f'--table="{schema}".*'])
            dumps["dagster"] = describe_file(staging / "dagster.dump")
    return {
        "created_at": created_at,
        "schema_revision": revision,
        "server_version": str(server_version),
        "production": next((row.version for row in versions if row.status == "production"), None),
        "dumps": dumps,
        "versions": versions,
    }


@contextmanager
def _snapshot(url: str) -> Iterator[tuple[sa.Connection, str]]:
    engine = create_engine_for(url, session_options="-c idle_in_transaction_session_timeout=0")
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            yield conn, conn.execute(sa.text("select pg_export_snapshot()")).scalar_one()
    finally:
        engine.dispose()


def _find_missing(
    versions: list[Any], files: tuple[BackupFile, ...], damaged: dict[str, str], bases: dict[str, str]
) -> dict[str, str]:
    """Return the models that versions name, and the bases of adapters, that the home does not have."""
    present = {entry.directory for entry in files}
    needed = {row.path: f"the files of {row.version} ({row.status}) are not in the home" for row in versions}
    for row in versions:
        if base := bases.get(Path(row.path).name):
            reason = f"the base of the adapter {row.version} ({row.status}) is not in the home"
            needed.setdefault(f"models/{base}", reason)
    return {path: reason for path, reason in needed.items() if path not in present and path not in damaged}


class _Copy:
    """Copies the home's content directories; a file that the latest backup has is not read again."""

    def __init__(self, settings: Settings, directory: Backups, progress: Progress) -> None:
        self._home, self._directory, self._progress = settings.home, directory, progress
        self._storage = open_storage(settings)
        names = directory.list_names()
        latest = directory.read_manifest(names[-1]).files if names else ()
        self._known = {(entry.path, entry.size, entry.modified_ns): entry for entry in latest}
        self.damaged: dict[str, str] = {}
        self.copied_bytes = 0

    def run(self) -> Iterator[BackupFile]:
        """Copy everything; yield the files of every intact directory."""
        for kind in CONTENT_DIRECTORIES:
            for folder in sorted((self._home / kind).glob("[!.]*")):
                if folder.is_dir():
                    yield from self._copy_directory(folder)
            if self._storage is not None:
                for artifact in self._storage.storage.list_artifacts(kind):
                    if not (self._home / kind / artifact.name).is_dir():
                        yield from self._copy_shared(self._storage, kind, artifact)

    def _copy_shared(self, storage: StorageCache, kind: str, artifact: StoredArtifact) -> list[BackupFile]:
        """Copy what only the storage has; it is downloaded unless the backup directory has all its files."""
        try:
            manifest = storage.storage.read_manifest(kind, artifact.name)
            files = [
                BackupFile(
                    path=f"{kind}/{artifact.name}/{name}",
                    mode=entry.mode,
                    modified_ns=int(artifact.modified.timestamp() * 1e9),
                    sha256=entry.sha256,
                    size=entry.size,
                )
                for name, entry in manifest.files.items()
            ]
            if all(map(self._directory.has_object, files)):
                return files
            folder = storage.fetch(kind, artifact.name)
            try:
                return self._copy_directory(folder)
            finally:
                storage.release(kind, artifact.name)
        except ArtifactNotFoundError:
            return []  # deleted meanwhile
        except CorruptArtifactError as error:
            self.damaged[f"{kind}/{artifact.name}"] = error.detail
            return []

    def _copy_directory(self, folder: Path) -> list[BackupFile]:
        """Copy a directory as it is at one time: an erasure may replace it, or delete it, meanwhile."""
        name = folder.relative_to(self._home).as_posix()
        for _ in range(_ATTEMPTS):
            self.damaged[name] = f"{folder} changed while it was copied"
            try:
                before = _list_files(folder)
                files = [self._copy(path) for path in before]
                problem = _find_damage(folder, files)
                if _list_files(folder) != before:
                    continue
            except FileNotFoundError as error:
                self.damaged[name] = f"{error.filename} does not exist"
                continue
            del self.damaged[name]
            if problem:
                self.damaged[name] = problem
                return []
            return files
        if not folder.exists():
            del self.damaged[name]
        return []

    def _copy(self, path: Path) -> BackupFile:
        status, name = path.stat(), path.relative_to(self._home).as_posix()
        known = self._known.get((name, status.st_size, status.st_mtime_ns))
        mode = status.st_mode & 0o777
        if known is not None and self._directory.has_object(known):
            self._progress(name, status.st_size)
            return known.model_copy(update={"mode": mode})
        entry = self._directory.store_file(path)
        self.copied_bytes += entry.size
        self._progress(name, entry.size)
        return BackupFile(path=name, mode=mode, modified_ns=status.st_mtime_ns, **entry.model_dump())


def _list_files(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """List what is used of a directory, with what identifies each file's content on this machine.

    Of an environment that is what code can import, not its interpreter.
    """
    if folder.parent.name == "environments" and (folder / ENVIRONMENT_MANIFEST).is_file():
        paths = list_portable_files(folder)
    else:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path: (status.st_ino, status.st_size, status.st_mtime_ns)
        for path in paths
        for status in [path.stat()]
    }


def _find_damage(folder: Path, files: list[BackupFile]) -> str:
    """Compare what was copied with what the directory itself says; empty if it is intact."""
    copied = {
        Path(entry.path).relative_to(f"{folder.parent.name}/{folder.name}").as_posix(): entry.sha256
        for entry in files
    }
    try:
        expected = _read_digests(folder)
    except FileNotFoundError:
        raise
    except (CorruptCheckpointError, ModelNotFoundError, OSError, ValueError, KeyError) as error:
        return " ".join(str(error).split())
    changed = [name for name, sha256 in expected.items() if copied.get(name) != sha256]
    return f"{folder / changed[0]} does not match its manifest" if changed else ""


def _read_digests(folder: Path) -> dict[str, str]:
    """Read the digests that a model or a dataset states for its files; empty where it states none."""
    if folder.parent.name == "models" and has_manifest(folder):
        return {name: entry.sha256 for name, entry in read_manifest(folder).files.items()}
    if folder.parent.name == "datasets" and (folder / EXAMPLES_FILE).exists():
        manifest = json.loads((folder / DATASET_MANIFEST_FILE).read_text(encoding="utf-8"))
        return {EXAMPLES_FILE: manifest["examples_sha256"]} if "examples_sha256" in manifest else {}
    return {}
