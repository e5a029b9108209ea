"""The home as a cache of the object storage: download what is missing, remove what is not used. (K2)

A process that uses an artifact holds a lease, a shared lock on ``$ICCM_HOME/leases/<kind>/<name>``, which
ends with the process if it is not released. Only what nobody leases and the storage has is removed from the
home, least recently leased first. A download is staged, verified and renamed: a reader sees all of it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from iccm_assets.atomic_directories import STAGING, fsync, fsync_tree, publish_directory, remove_tree
from iccm_assets.errors import ArtifactNotFoundError, CorruptArtifactError, StorageError
from iccm_assets.object_storage import KINDS, ArtifactManifest, ObjectStorage
from iccm_assets.settings import Settings

LEASES = "leases"
# Kept free beside a download, for the database and the spool.
MIN_FREE_BYTES = 64 << 20
Verify = Callable[[Path], object]

_held: dict[Path, tuple[int, int]] = {}  # lease file -> descriptor, number of users in this process
_held_lock = threading.Lock()


@dataclass(frozen=True)
class CachedArtifact:
    """A directory of the home that the storage has as well."""

    kind: str
    path: Path
    lease: Path
    size: int
    last_used: float


class StorageCache:
    """One home's view of the storage."""

    def __init__(self, home: Path, storage: ObjectStorage, max_bytes: int) -> None:
        self.home, self.storage, self.max_bytes = Path(home), storage, max_bytes

    def fetch(self, kind: str, name: str, verify: Verify = lambda directory: None) -> Path:
        """Return an artifact's directory in the home, downloaded if it is missing, and lease it.

        ``verify`` gets the directory before it appears under its name, and raises to refuse it. Raises
        ``ArtifactNotFoundError``, ``CorruptArtifactError``, or ``StorageError``, also if there is no space.
        """
        target = self.home / kind / name
        lease = self.lease(kind, name)
        try:
            if not target.is_dir():
                # One download at a time in a home: two would count on the same room.
                with _locked(self.home / LEASES / "download"):
                    if not target.is_dir():
                        self._download(kind, name, target, verify)
        except BaseException:
            self.release(kind, name)
            raise
        os.utime(lease)
        return target

    def publish(
        self,
        kind: str,
        name: str,
        directory: Path,
        files: Iterable[Path] | None = None,
        *,
        verify: bool = False,
    ) -> bool:
        """Publish a directory of the home, and lease it; return whether it was not published before."""
        self.lease(kind, name)
        is_new = self.storage.publish(kind, name, directory, files, verify=verify)
        self._record(self.storage.read_manifest(kind, name))
        return is_new

    def replace(self, kind: str, name: str, directory: Path, files: Iterable[Path] | None = None) -> None:
        """Put a directory of the home, or only these files of it, in place of a published artifact."""
        self.storage.replace(kind, name, directory, files)
        (self.home / LEASES / kind).mkdir(parents=True, exist_ok=True)
        self._record(self.storage.read_manifest(kind, name))

    def prune(self, kind: str) -> list[str]:
        """Remove from the home what was replaced in the storage, unless it is leased; return the names.

        So a home follows an erasure that another one has made. What the storage lacks stays: the home may
        have the last copy of it.
        """
        removed = []
        for lease in sorted((self.home / LEASES / kind).glob("*")):
            recorded = lease.read_text(encoding="ascii")
            if not recorded or not (self.home / kind / lease.name).is_dir():
                continue
            try:
                current = self.storage.read_manifest(kind, lease.name).digest
            except (ArtifactNotFoundError, CorruptArtifactError):
                continue
            if current != recorded and self.remove(kind, lease.name):
                removed.append(lease.name)
        return removed

    def _record(self, manifest: ArtifactManifest) -> None:
        """Remember in the lease's file which of its contents the home has."""
        lease = self.home / LEASES / manifest.kind / manifest.name
        lease.write_text(manifest.digest, encoding="ascii")

    def lease(self, kind: str, name: str) -> Path:
        """Keep an artifact in the home until ``release`` or the end of this process."""
        lease = self.home / LEASES / kind / name
        with _held_lock:
            descriptor, users = _held.get(lease, (-1, 0))
            if not users:
                lease.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(lease, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for a removal that is running
            _held[lease] = descriptor, users + 1
        return lease

    def release(self, kind: str, name: str) -> bool:
        """End one lease of this process; return whether there was one."""
        lease = self.home / LEASES / kind / name
        with _held_lock:
            descriptor, users = _held.get(lease, (-1, 0))
            if users > 1:
                _held[lease] = descriptor, users - 1
            elif users:
                del _held[lease]
                os.close(descriptor)
        return users > 0

    def make_room(self, size: int) -> list[Path]:
        """Remove what was not used for longest until ``size`` more bytes fit; return the directories.

        Raises ``StorageError`` if what is in use leaves too little.
        """
        cached = self._list_cached()
        excess = sum(artifact.size for artifact in cached) + size - self.max_bytes
        missing = size + MIN_FREE_BYTES - self._free_bytes() if size else 0
        removed = []
        for artifact in sorted(cached, key=lambda artifact: artifact.last_used):
            if max(excess, missing) <= 0:
                break
            if self._remove(artifact):
                removed.append(artifact.path)
                excess, missing = excess - artifact.size, missing - artifact.size
        if size and excess > 0:
            raise StorageError(
                f"{size:,} more bytes do not fit into a cache of {self.max_bytes:,}; the rest is in use",
                hint="Raise ICCM_STORAGE_MAX_CACHE_GIB.",
            )
        if size and missing > 0:
            raise StorageError(
                f"{self._free_bytes():,} bytes are free in {self.home}, {size + MIN_FREE_BYTES:,} are needed",
                hint="Free disk space.",
            )
        return removed

    def remove(self, kind: str, name: str) -> bool:
        """Remove an artifact from the home unless somebody leases it; return whether it is gone."""
        path = self.home / kind / name
        return not path.is_dir() or self._remove(
            CachedArtifact(kind, path, self.home / LEASES / kind / name, 0, 0.0)
        )

    def _download(self, kind: str, name: str, target: Path, verify: Verify) -> None:
        self.prune("datasets")
        manifest = self.storage.read_manifest(kind, name)
        self.make_room(manifest.size)
        staging = _create_staging(target)
        try:
            self._fill(manifest, staging, verify)
            if kind == "environments":
                _publish_environment(staging, target)
            else:
                publish_directory(staging, target)
            self._record(manifest)
        finally:
            # A transfer that failed may have others beside it that still write; maintenance removes the rest.
            with suppress(OSError):
                remove_tree(staging)

    def _fill(self, manifest: ArtifactManifest, staging: Path, verify: Verify) -> None:
        self.storage.download(manifest, staging)
        verify(staging)
        fsync_tree(staging)

    def _list_cached(self) -> list[CachedArtifact]:
        """List what the home and the storage both have. Nobody else's view of it matters."""
        cached = []
        for kind in KINDS:
            directories = [path for path in (self.home / kind).glob("[!.]*") if path.is_dir()]
            published = (
                {artifact.name for artifact in self.storage.list_artifacts(kind)} if directories else set()
            )
            for path in directories:
                if path.name in published:
                    lease = self.home / LEASES / kind / path.name
                    used = lease if lease.exists() else path
                    cached.append(CachedArtifact(kind, path, lease, _get_size(path), used.stat().st_mtime))
        return cached

    def _remove(self, artifact: CachedArtifact) -> bool:
        """Remove a directory if nobody leases it: by a rename, so that no reader sees a half of it."""
        artifact.lease.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(artifact.lease, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        try:
            if artifact.path.is_dir():
                removed = _create_staging(artifact.path)
                artifact.path.chmod(0o755)
                artifact.path.rename(removed / artifact.path.name)
                remove_tree(removed)
            return True
        finally:
            os.close(descriptor)

    def _free_bytes(self) -> int:
        self.home.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.home).free


def open_storage(settings: Settings) -> StorageCache | None:
    """Return the home's view of ``ICCM_STORAGE``; None if it is not set."""
    return open_storage_at(settings.storage, settings.home, settings.storage_max_cache_gib)


def open_storage_at(url: str, home: Path, max_cache_gib: float) -> StorageCache | None:
    """Return a home's view of the storage at a URL; None if that is empty."""
    return StorageCache(home, ObjectStorage(url), int(max_cache_gib * (1 << 30))) if url else None


def _create_staging(target: Path) -> Path:
    # Named like other staging directories: whose process is dead is removed by erasure and maintenance.
    number = f"{threading.get_ident():x}"
    staging = target.parent / STAGING / f"storage-{target.name}-{number}-{os.getpid()}"
    remove_tree(staging)
    staging.mkdir(parents=True)
    return staging


def _publish_environment(staging: Path, target: Path) -> None:
    """Rename an environment: the sandbox's user reads all of it, and its owner can delete it."""
    for folder, _, _ in os.walk(staging):
        Path(folder).chmod(0o755)
    staging.rename(target)
    fsync(target.parent)


def _renew_lock() -> None:
    """Replace the lock in a forked process, where no thread is left that could free it."""
    global _held_lock
    _held_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _get_size(directory: Path) -> int:
    size = 0
    with suppress(FileNotFoundError):  # removed meanwhile by another process
        for path in directory.rglob("*"):
            size += path.lstat().st_size if not path.is_dir() else 0
    return size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
