"""A directory of backups: a manifest and the dumps of both databases each; files are stored once for all.

    DIR/backups/<time>/MANIFEST.json, platform.dump, dagster.dump
    DIR/objects/<first two digits>/<sha256>
    DIR/erasures.jsonl

A backup appears by rename, when everything that it names is on disk (V4).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal

import filelock
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from iccm_assets.atomic_directories import fsync, fsync_tree, remove_tree
from iccm_assets.errors import BackupError
from iccm_assets.registry.manifest import MANIFEST_FILE, FileEntry, describe_file, sha256_json

# What cannot be computed again: each is a directory of directories that never change.
CONTENT_DIRECTORIES = ("models", "datasets", "environments")
_BUFFER_BYTES = 1 << 20


class BackupFile(FileEntry):
    """One file of the home: its path there, its mode, and when it was written, in nanoseconds since 1970."""

    path: str
    mode: int = Field(ge=0, le=0o777)
    modified_ns: int

    @field_validator("path", mode="after")
    @classmethod
    def _check_path(cls, value: str) -> str:
        parts = PurePosixPath(value).parts
        if len(parts) < 3 or parts[0] not in CONTENT_DIRECTORIES or ".." in parts:
            raise ValueError(f"{value!r} is no file of a backup")
        return value

    @property
    def directory(self) -> str:
        """The directory that the file belongs to, such as ``models/<digest>``."""
        return "/".join(PurePosixPath(self.path).parts[:2])


class BackupManifest(BaseModel):
    """What a backup holds. ``missing`` names what the database names and the home did not have intact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    created_at: AwareDatetime
    platform: str
    package_version: str
    schema_revision: str
    server_version: str
    production: str | None
    dumps: dict[Literal["platform", "dagster"], FileEntry]
    files: tuple[BackupFile, ...]
    missing: dict[str, str] = {}
    format: Literal[1] = 1

    @property
    def size(self) -> int:
        """Total bytes of dumps and files."""
        return sum(entry.size for entry in (*self.dumps.values(), *self.files))

    def to_json(self) -> str:
        """The text of the manifest, with its own digest."""
        values = self.model_dump(mode="json")
        return json.dumps({**values, "digest": sha256_json(values)}, indent=1, sort_keys=True) + "\n"


class BackupDirectory:
    """The backups below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.location = str(self.root)
        self._objects, self._backups = self.root / "objects", self.root / "backups"

    @contextmanager
    def open_for_writing(self) -> Iterator[None]:
        """Create the directory, readable for its owner only, and lock it; ``BackupError`` if it is in use."""
        for directory in (self.root, self._objects, self._backups):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with filelock.FileLock(self.root / "lock", timeout=0):
                for leftover in (*self._backups.glob(".*"), *self._objects.glob(".*")):
                    remove_tree(leftover) if leftover.is_dir() else leftover.unlink()
                yield
        except filelock.Timeout:
            raise BackupError(f"another process writes to {self.root}") from None

    def list_names(self) -> list[str]:
        """Return the names of the complete backups, oldest first."""
        return sorted(path.parent.name for path in self._backups.glob(f"[0-9]*/{MANIFEST_FILE}"))

    def create_staging(self) -> Path:
        """Create the directory of a backup that is not complete yet; its name is the time."""
        staging = self._backups / f".{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        staging.mkdir(mode=0o700)
        return staging

    def publish(self, staging: Path, manifest: BackupManifest) -> Path:
        """Write the manifest and make the backup visible."""
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        fsync_tree(staging)
        target = self._backups / manifest.name
        staging.rename(target)
        fsync(self._backups)
        return target

    def read_manifest(self, name: str) -> BackupManifest:
        """Read the manifest of a backup; raises ``BackupError``."""
        path = self._backups / name / MANIFEST_FILE
        names = self.list_names()
        if name not in names:
            listed = ", ".join(names[-8:]) or "none"
            raise BackupError(f"{self.root} has no complete backup {name!r}", hint=f"There are: {listed}.")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise BackupError(f"{path} cannot be read ({error})") from None
        return parse_manifest(text, name, str(path))

    def get_dump(self, name: str, database: str) -> Path:
        """Return the path of a database's dump."""
        return self._backups / name / f"{database}.dump"

    def has_object(self, entry: FileEntry) -> bool:
        """Whether a file of this content is stored; its size is compared, its bytes are not read."""
        path = self.get_object(entry)
        return path.is_file() and path.stat().st_size == entry.size

    def get_object(self, entry: FileEntry) -> Path:
        """Return the path of a stored file."""
        return self._objects / entry.sha256[:2] / entry.sha256

    def locate_object(self, entry: FileEntry) -> str:
        """Return the path of a stored file as text."""
        return str(self.get_object(entry))

    def hash_object(self, entry: FileEntry) -> FileEntry:
        """Read a stored file and hash it."""
        return describe_file(self.get_object(entry))

    def copy_object(self, entry: FileEntry, target: Path, mode: int) -> FileEntry:
        """Copy a stored file to disk, and hash what was copied."""
        return copy_file(self.get_object(entry), target, mode)

    def store_file(self, source: Path) -> FileEntry:
        """Store a copy of a file under the digest of what was copied."""
        partial = self._objects / f".{os.getpid()}"
        entry = copy_file(source, partial)
        if self.has_object(entry):
            partial.unlink()
            return entry
        target = self.get_object(entry)
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700)
            fsync(self._objects)
        partial.chmod(0o400)
        partial.replace(target)
        fsync(target.parent)
        return entry

    def delete_old(self, keep: int) -> list[str]:
        """Delete all but the newest ``keep`` backups, and files that no other names; return their names."""
        deleted, names = self.list_names()[:-keep], self.list_names()[-keep:]
        # First what remains is read: with a damaged manifest nothing is deleted.
        needed = {entry.sha256 for name in names for entry in self.read_manifest(name).files}
        for name in deleted:
            (self._backups / name).rename(self._backups / f".{name}")
            remove_tree(self._backups / f".{name}")
        for path in self._objects.glob("??/*"):
            if path.name not in needed:
                path.unlink()
        return deleted


def parse_manifest(text: bytes, name: str, where: str) -> BackupManifest:
    """Parse the text of a backup's manifest; ``BackupError`` if it is not the one that was written."""
    try:
        values = json.loads(text)
        recorded = values.pop("digest")
        actual = sha256_json(values)
        manifest = BackupManifest.model_validate_json(json.dumps(values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupError(f"{where} cannot be read ({' '.join(str(error).split())[:300]})") from None
    if recorded != actual or manifest.name != name:
        raise BackupError(f"{where} was changed")
    return manifest


def copy_file(source: Path, target: Path, mode: int = 0o600) -> FileEntry:
    """Copy a file to disk and hash what was copied."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(_BUFFER_BYTES):
            digest.update(block)
            size += writer.write(block)
        writer.flush()
        os.fchmod(writer.fileno(), mode)
        os.fsync(writer.fileno())
    return FileEntry(sha256=digest.hexdigest(), size=size)
