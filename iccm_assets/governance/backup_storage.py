"""Backups below a URL of fsspec, such as ``s3://bucket/backups``, laid out like a directory of backups. (V4)

What a manifest names is stored before it, and the manifest is created last, so that a backup is complete or
does not appear. Whoever may write here may restore: the storage's own access rules protect it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from iccm_assets.errors import BackupError
from iccm_assets.governance.backup_directory import (
    BackupDirectory,
    BackupManifest,
    copy_file,
    parse_manifest,
)
from iccm_assets.object_storage import (
    ABANDONED_AFTER_SECONDS,
    create_object,
    get_time,
    open_url,
    put_files,
    translated_errors,
)
from iccm_assets.registry.manifest import MANIFEST_FILE, FileEntry, describe_file

_BUFFER_BYTES = 1 << 20


class BackupStorage:
    """The backups below one URL; has the methods of ``BackupDirectory``."""

    def __init__(self, url: str, scratch: Path) -> None:
        self.location = url.rstrip("/")
        self._scratch, self._sizes = scratch, dict[str, int]()
        self._dumps: dict[tuple[str, str], Path] = {}

    @contextmanager
    def open_for_writing(self) -> Iterator[None]:
        """Read what is stored already. Writers of one platform wait for each other in its database."""
        self._sizes = self._list_objects()
        yield

    def list_names(self) -> list[str]:
        """Return the names of the complete backups, oldest first."""
        with self._open() as (fs, root):
            keys = fs.find(f"{root}/backups")
        return sorted(path.parent.name for path in map(PurePosixPath, keys) if path.name == MANIFEST_FILE)

    def create_staging(self) -> Path:
        """Create the local directory of a backup that is not complete yet; its name is the time."""
        staging = self._scratch / f".{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        staging.mkdir(mode=0o700)
        return staging

    def publish(self, staging: Path, manifest: BackupManifest) -> str:
        """Store the dumps, check that everything is stored, and create the manifest."""
        folder = f"backups/{manifest.name}"
        with self._open(writing=True) as (fs, root):
            put_files(fs, {f"{root}/{folder}/{path.name}": path for path in sorted(staging.iterdir())})
            stored = {PurePosixPath(key).name: each["size"] for key, each in _find(fs, f"{root}/{folder}")}
        objects = self._list_objects()
        expected = {f"{name}.dump": entry.size for name, entry in manifest.dumps.items()}
        lacking = [name for name, size in expected.items() if stored.get(name) != size]
        lacking += [entry.path for entry in manifest.files if objects.get(entry.sha256) != entry.size]
        if lacking:
            raise BackupError(f"{lacking[0]} was not stored completely in {self.location}")
        with self._open(writing=True) as (fs, root):
            if not create_object(fs, f"{root}/{folder}/{MANIFEST_FILE}", manifest.to_json().encode("utf-8")):
                raise BackupError(f"{self.location}/{folder} exists", hint="Try again.")
        return f"{self.location}/{folder}"

    def read_manifest(self, name: str) -> BackupManifest:
        """Read the manifest of a backup; raises ``BackupError``."""
        names = self.list_names()
        if name not in names:
            listed = ", ".join(names[-8:]) or "none"
            raise BackupError(
                f"{self.location} has no complete backup {name!r}", hint=f"There are: {listed}."
            )
        where = f"{self.location}/backups/{name}/{MANIFEST_FILE}"
        with self._open() as (fs, root):
            return parse_manifest(fs.cat_file(f"{root}/backups/{name}/{MANIFEST_FILE}"), name, where)

    def get_dump(self, name: str, database: str) -> Path:
        """Return the path of a database's dump, downloaded once."""
        path = self._scratch / f"{name}-{database}.dump"
        if (name, database) not in self._dumps:
            with self._open() as (fs, root):
                fs.get([f"{root}/backups/{name}/{database}.dump"], [str(path)])
            self._dumps[name, database] = path
        return path

    def has_object(self, entry: FileEntry) -> bool:
        """Whether a file of this content and size was stored when writing began, or since."""
        return self._sizes.get(entry.sha256) == entry.size

    def locate_object(self, entry: FileEntry) -> str:
        """Return the URL of a stored file."""
        return f"{self.location}/{_get_key(entry)}"

    def hash_object(self, entry: FileEntry) -> FileEntry:
        """Read a stored file and hash it."""
        return self._read(entry, None)

    def copy_object(self, entry: FileEntry, target: Path, mode: int) -> FileEntry:
        """Write a stored file to disk, and hash what was written."""
        copied = self._read(entry, target)
        target.chmod(mode)
        return copied

    def store_file(self, source: Path) -> FileEntry:
        """Store a copy of a file under the digest of what was copied."""
        entry = describe_file(source)
        if self.has_object(entry):
            return entry
        partial = self._scratch / "partial"
        entry = copy_file(source, partial)  # what is stored may not change while it is
        with self._open(writing=True) as (fs, root):
            put_files(fs, {f"{root}/{_get_key(entry)}": partial})
        partial.unlink()
        self._sizes[entry.sha256] = entry.size
        return entry

    def delete_old(self, keep: int) -> list[str]:
        """Delete all but the newest ``keep`` backups; return their names.

        Files that no other names are deleted once they are a day old: a younger one may belong to a backup
        that a copy of this platform is making.
        """
        names = self.list_names()
        deleted, kept = names[:-keep], names[-keep:]
        needed = {entry.sha256 for name in kept for entry in self.read_manifest(name).files}
        limit = datetime.now(UTC).timestamp() - ABANDONED_AFTER_SECONDS
        with self._open() as (fs, root):
            for name in deleted:
                fs.rm(f"{root}/backups/{name}/{MANIFEST_FILE}")
                fs.rm(f"{root}/backups/{name}", recursive=True)
            unused = [
                key
                for key, each in _find(fs, f"{root}/objects")
                if PurePosixPath(key).name not in needed and get_time(each).timestamp() < limit
            ]
            if unused:
                fs.rm(unused)
        return deleted

    def _list_objects(self) -> dict[str, int]:
        with self._open() as (fs, root):
            return {PurePosixPath(key).name: each["size"] for key, each in _find(fs, f"{root}/objects")}

    def _read(self, entry: FileEntry, target: Path | None) -> FileEntry:
        digest, size = hashlib.sha256(), 0
        with (
            self._open() as (fs, root),
            fs.open(f"{root}/{_get_key(entry)}", "rb") as reader,
            open(target or os.devnull, "wb") as writer,
        ):
            while block := reader.read(_BUFFER_BYTES):
                digest.update(block)
                size += writer.write(block)
        return FileEntry(sha256=digest.hexdigest(), size=size)

    @contextmanager
    def _open(self, *, writing: bool = False) -> Iterator[tuple[Any, str]]:
        with translated_errors(self.location, writing=writing):
            yield open_url(self.location)


@contextmanager
def open_backups(root: str | Path) -> Iterator[BackupDirectory | BackupStorage]:
    """Open the backups of a directory or below a URL."""
    if "://" not in str(root):
        yield BackupDirectory(Path(root))
        return
    with tempfile.TemporaryDirectory(prefix="iccm-backup-") as scratch:
        yield BackupStorage(str(root), Path(scratch))


def _get_key(entry: FileEntry) -> str:
    return f"objects/{entry.sha256[:2]}/{entry.sha256}"


def _find(fs: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    return list(fs.find(path, detail=True).items())
