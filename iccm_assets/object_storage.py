"""Object storage: what homes share below one URL of fsspec, such as ``s3://bucket/prefix``. (K2)

    <URL>/<kind>/<name>.json          the manifest of an artifact: written last, and created only once
    <URL>/<kind>/<name>/<sha256>      its files, each under the digest of its content

An artifact is a directory that never changes, such as a model, called by its digest. A reader starts with the
manifest and verifies every file that it names, so it gets all of an artifact or an error. Two publishers of
one artifact write the same bytes to the same keys; the storage lets one of them create the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from iccm_assets.atomic_directories import fsync
from iccm_assets.errors import (
    ArtifactNotFoundError,
    CorruptArtifactError,
    IccmError,
    StorageError,
    first_line,
)

KINDS = ("models", "datasets", "environments")
MANIFEST_SUFFIX = ".json"
# What a publisher that was killed leaves behind is deleted after this time, like a staging directory.
ABANDONED_AFTER_SECONDS = 24 * 3600.0
LOCAL_PROTOCOLS = frozenset(("file", "local"))
# A damaged download may be the network's fault: it is read once more.
_DOWNLOADS = 2
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class ArtifactFile(BaseModel):
    """One file of an artifact: sha256 in hex, size in bytes, permissions."""

    model_config = _STRICT

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    mode: int = Field(0o444, ge=0, le=0o777)


class ArtifactManifest(BaseModel):
    """The files of an artifact by their POSIX path in its directory."""

    model_config = _STRICT

    kind: str
    name: str
    files: Mapping[str, ArtifactFile]
    format: int = 1

    @field_validator("files", mode="after")
    @classmethod
    def _check_paths(cls, files: Mapping[str, ArtifactFile]) -> Mapping[str, ArtifactFile]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
                raise ValueError(f"{name!r} is no file of an artifact")
        return files

    @property
    def size(self) -> int:
        """Total bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of the manifest."""
        return _hash_values(self.model_dump(mode="json"))

    def to_json(self) -> str:
        """The text of the manifest, with its own digest."""
        values = {**self.model_dump(mode="json"), "digest": self.digest}
        return json.dumps(values, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class StoredArtifact:
    """A published artifact, and when its manifest was written."""

    name: str
    modified: datetime


class ObjectStorage:
    """The artifacts below one URL. Errors of the storage are ``StorageError``, whatever the protocol."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    # ---- reading ---------------------------------------------------------------------------------

    def read_manifest(self, kind: str, name: str) -> ArtifactManifest:
        """Read an artifact's manifest; raises ``ArtifactNotFoundError``, ``CorruptArtifactError``."""
        key = f"{kind}/{name}{MANIFEST_SUFFIX}"
        try:
            with self._open() as (fs, root):
                text = fs.cat_file(f"{root}/{key}")
        except FileNotFoundError:
            raise ArtifactNotFoundError(f"{self.url}/{kind}/{name}") from None
        try:
            values = json.loads(text)
            recorded = values.pop("digest")
            manifest = ArtifactManifest.model_validate_json(json.dumps(values))
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CorruptArtifactError(f"{self.url}/{key} cannot be read ({first_line(error)})") from None
        if recorded != _hash_values(values) or (manifest.kind, manifest.name) != (kind, name):
            raise CorruptArtifactError(f"{self.url}/{key} was changed")
        return manifest

    def read_file(self, manifest: ArtifactManifest, name: str) -> bytes:
        """Read one small file of an artifact, verified; raises ``CorruptArtifactError``."""
        entry = manifest.files[name]
        try:
            with self._open() as (fs, root):
                content = bytes(fs.cat_file(f"{root}/{manifest.kind}/{manifest.name}/{entry.sha256}"))
        except FileNotFoundError:
            raise CorruptArtifactError(f"{name} of {self._describe(manifest)} is missing") from None
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise CorruptArtifactError(f"{name} of {self._describe(manifest)} was changed")
        return content

    def exists(self, kind: str, name: str) -> bool:
        """Return whether an artifact is published."""
        with self._open() as (fs, root):
            return bool(fs.exists(f"{root}/{kind}/{name}{MANIFEST_SUFFIX}"))

    def list_artifacts(self, kind: str) -> list[StoredArtifact]:
        """List the published artifacts of a kind by name."""
        with self._open() as (fs, root):
            entries = _list_entries(fs, f"{root}/{kind}")
        artifacts = [
            StoredArtifact(PurePosixPath(entry["name"]).stem, get_time(entry))
            for entry in entries
            if entry["type"] == "file" and entry["name"].endswith(MANIFEST_SUFFIX)
        ]
        return sorted(artifacts, key=lambda artifact: artifact.name)

    def download(self, manifest: ArtifactManifest, target: Path) -> None:
        """Write the verified files of an artifact into a directory, which nobody reads before the return.

        Raises ``ArtifactNotFoundError`` if it is deleted meanwhile, ``CorruptArtifactError`` with the name of
        a file that is not what was published, and ``StorageError`` if the disk is full.
        """
        for folder in {(target / name).parent for name in manifest.files}:
            folder.mkdir(parents=True, exist_ok=True)
        pending = dict(manifest.files)
        for _ in range(_DOWNLOADS):
            self._get_files(manifest, pending, target)
            pending = {name: entry for name, entry in pending.items() if not _matches(target / name, entry)}
            if not pending:
                break
        for name, entry in pending.items():
            raise CorruptArtifactError(
                f"{name} of {self._describe(manifest)}, {entry.size} bytes, sha256 {entry.sha256[:12]}",
                hint="`iccm storage push --verify` in a home that has it intact replaces it.",
            )
        for name, entry in manifest.files.items():
            (target / name).chmod(entry.mode)

    def _get_files(
        self, manifest: ArtifactManifest, pending: Mapping[str, ArtifactFile], target: Path
    ) -> None:
        try:
            with self._open() as (fs, root):
                folder = f"{root}/{manifest.kind}/{manifest.name}"
                keys = [f"{folder}/{entry.sha256}" for entry in pending.values()]
                if keys:
                    fs.get(keys, [str(target / name) for name in pending])
        except FileNotFoundError:
            if self._was_deleted(manifest):
                raise ArtifactNotFoundError(f"{self._describe(manifest)} was deleted meanwhile") from None
            raise CorruptArtifactError(f"a file of {self._describe(manifest)} is missing") from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise StorageError(
                f"{shutil.disk_usage(target).free:,} bytes are free for {self._describe(manifest)},"
                f" which has {manifest.size:,}",
                hint="Free space below ICCM_HOME, or lower ICCM_STORAGE_MAX_CACHE_GIB.",
            ) from None

    def _was_deleted(self, manifest: ArtifactManifest) -> bool:
        try:
            return self.read_manifest(manifest.kind, manifest.name) != manifest
        except ArtifactNotFoundError:
            return True

    def _describe(self, manifest: ArtifactManifest) -> str:
        return f"{self.url}/{manifest.kind}/{manifest.name}"

    # ---- writing ---------------------------------------------------------------------------------

    def publish(
        self,
        kind: str,
        name: str,
        directory: Path,
        files: Iterable[Path] | None = None,
        *,
        verify: bool = False,
    ) -> bool:
        """Publish a directory, or only these files of it; return whether this call did, not an earlier one.

        Of an artifact that is published already, missing files are written again; with ``verify`` also
        damaged ones, which reads all of it.
        """
        manifest, sources = describe_artifact(kind, name, directory, files)
        try:
            published = self.read_manifest(kind, name)
        except ArtifactNotFoundError:
            self._put_files(manifest, sources)
            if self._create_manifest(manifest):
                return True
            published = self.read_manifest(kind, name)
        except CorruptArtifactError:
            self._put_files(manifest, sources)
            self._write_manifest(manifest)
            return True
        self._repair(published, sources, verify)
        return False

    def replace(self, kind: str, name: str, directory: Path, files: Iterable[Path] | None = None) -> None:
        """Put the files of a directory in place of a published artifact's, whose other files are deleted."""
        manifest, sources = describe_artifact(kind, name, directory, files)
        self._put_files(manifest, sources)
        self._write_manifest(manifest)
        needed = {entry.sha256 for entry in manifest.files.values()}
        with self._open() as (fs, root):
            unused = [
                key for key in fs.find(f"{root}/{kind}/{name}") if PurePosixPath(key).name not in needed
            ]
            if unused:
                fs.rm(unused)

    def delete(self, kind: str, name: str) -> None:
        """Delete an artifact, its manifest first; deleting what does not exist is no error."""
        with self._open() as (fs, root):
            for key, recursive in (
                (f"{root}/{kind}/{name}{MANIFEST_SUFFIX}", False),
                (f"{root}/{kind}/{name}", True),
            ):
                if fs.exists(key):
                    fs.rm(key, recursive=recursive)

    def remove_abandoned(self, kind: str, older_than_seconds: float = ABANDONED_AFTER_SECONDS) -> list[str]:
        """Delete files without a manifest and without a write for this long; return the artifacts' names."""
        published = {artifact.name for artifact in self.list_artifacts(kind)}
        limit, removed = datetime.now(UTC).timestamp() - older_than_seconds, []
        with self._open() as (fs, root):
            for entry in _list_entries(fs, f"{root}/{kind}"):
                name = PurePosixPath(entry["name"].rstrip("/")).name
                if entry["type"] != "directory" or name in published:
                    continue
                files = fs.find(entry["name"], detail=True).values()
                if all(get_time(file).timestamp() < limit for file in files):
                    fs.rm(entry["name"], recursive=True)
                    removed.append(name)
        return removed

    def check(self) -> str:
        """Write, read and delete a small object; return a description. Raises ``StorageError``."""
        content, name = uuid.uuid4().bytes, f".check-{uuid.uuid4().hex}"
        with self._open(writing=True) as (fs, root):
            key = f"{root}/{name}"
            created = create_object(fs, key, content)
            try:
                refused = not create_object(fs, key, b"")
                if not created or fs.cat_file(key) != content:
                    raise StorageError(f"{self.url} does not return what was written to it")
            finally:
                fs.rm(key)
        how = "conditional create" if refused else "no conditional create: the last of two publishers wins"
        return f"{self.url} can be written and read ({how})"

    def _put_files(self, manifest: ArtifactManifest, sources: Mapping[str, Path]) -> None:
        """Write every file under its digest, then compare what the storage lists with what was written."""
        folder = f"{manifest.kind}/{manifest.name}"
        with self._open(writing=True) as (fs, root):
            put_files(fs, {f"{root}/{folder}/{digest}": path for digest, path in sources.items()})
        for digest in self._find_missing(manifest):
            raise StorageError(f"{self.url}/{folder}/{digest} was not stored completely", hint="Try again.")

    def _find_missing(self, manifest: ArtifactManifest) -> list[str]:
        """Return the digests of an artifact's files that the storage lacks, or has in another size."""
        with self._open() as (fs, root):
            files = fs.find(f"{root}/{manifest.kind}/{manifest.name}", detail=True)
        sizes = {PurePosixPath(key).name: entry["size"] for key, entry in files.items()}
        return sorted(
            {entry.sha256 for entry in manifest.files.values() if sizes.get(entry.sha256) != entry.size}
        )

    def _create_manifest(self, manifest: ArtifactManifest) -> bool:
        with self._open(writing=True) as (fs, root):
            key = f"{root}/{manifest.kind}/{manifest.name}{MANIFEST_SUFFIX}"
            return create_object(fs, key, manifest.to_json().encode("utf-8"))

    def _write_manifest(self, manifest: ArtifactManifest) -> None:
        with self._open(writing=True) as (fs, root):
            key = f"{root}/{manifest.kind}/{manifest.name}{MANIFEST_SUFFIX}"
            write_object(fs, key, manifest.to_json().encode("utf-8"))

    def _repair(self, published: ArtifactManifest, sources: Mapping[str, Path], verify: bool) -> None:
        """Write files again that are missing or damaged, as far as this directory has them."""
        damaged = set(self._find_missing(published))
        if verify:
            with self._open() as (fs, root):
                folder = f"{root}/{published.kind}/{published.name}"
                for digest in {entry.sha256 for entry in published.files.values()} - damaged:
                    with fs.open(f"{folder}/{digest}", "rb") as stream:
                        if _hash_stream(stream) != digest:
                            damaged.add(digest)
        if not damaged:
            return
        if lacking := sorted(damaged - sources.keys()):
            raise CorruptArtifactError(
                f"{len(lacking)} files of {self._describe(published)}, which this home does not have either"
            )
        with self._open() as (fs, root):
            folder = f"{root}/{published.kind}/{published.name}"
            put_files(fs, {f"{folder}/{digest}": sources[digest] for digest in damaged})

    @contextmanager
    def _open(self, *, writing: bool = False) -> Iterator[tuple[Any, str]]:
        """Connect; yield the file system and the path of the URL in it. Translates errors."""
        with translated_errors(self.url, writing=writing):
            yield open_url(self.url)


def open_url(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, without its cache of listings, and the path in it.

    It is looked up for each use: fsspec caches it by process, and a forked one may not use its parent's.
    """
    from fsspec.core import url_to_fs

    # A listing must show what other processes have written.
    fs, root = (
        url_to_fs(url, use_listings_cache=False, auto_mkdir=True)
        if is_local_url(url)
        else url_to_fs(url, use_listings_cache=False)
    )
    return fs, str(root).rstrip("/")


def is_local_url(url: str) -> bool:
    """Return whether a URL names a directory of a file system of this machine."""
    return url.partition("://")[0] in LOCAL_PROTOCOLS


@contextmanager
def translated_errors(url: str, *, writing: bool = False) -> Iterator[None]:
    """Translate what an access to a URL raises into ``StorageError``.

    A full disk passes as ``OSError``, and where nothing is written a missing file: its name says what it is.
    """
    try:
        yield
    except IccmError:
        raise
    except FileNotFoundError as error:
        if not writing and not _is_bucket_missing(error):
            raise
        hint = "Create the bucket, or correct the URL."
        raise StorageError(f"{url} does not exist ({first_line(error)})", hint=hint) from None
    except ImportError as error:
        protocol = url.partition("://")[0]
        extra = "`pip install 'iccm-assets[s3]'`." if protocol in {"s3", "s3a"} else f"{first_line(error)}."
        raise StorageError(f"{url} needs a package that is not installed", hint=extra) from None
    except PermissionError as error:
        raise StorageError(
            f"{url}: access was refused ({first_line(error)})",
            hint="Correct the credentials (for s3:// those of AWS: AWS_ACCESS_KEY_ID, a profile, a role).",
        ) from None
    # Each protocol's library has errors of its own, most of them no OSError.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise _describe_error(url, error) from error


def _describe_error(url: str, error: Exception) -> StorageError:
    text, kind = first_line(error), type(error).__name__
    if kind == "NoCredentialsError":
        return StorageError(
            f"{url}: no credentials were found",
            hint="Set those of AWS: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role.",
        )
    if isinstance(error, ValueError) and "Protocol" in text:
        return StorageError(f"{url}: {text}", hint="Use a URL such as s3://bucket/prefix.")
    return StorageError(f"{url}: {text}" + ("" if text == kind else f" ({kind})"))


def describe_artifact(
    kind: str, name: str, directory: Path, files: Iterable[Path] | None = None
) -> tuple[ArtifactManifest, dict[str, Path]]:
    """Hash the files of a directory; return the manifest, and a file for each digest."""
    chosen = sorted(files if files is not None else (path for path in directory.rglob("*") if path.is_file()))
    entries, sources = {}, {}
    for path in chosen:
        with path.open("rb") as stream:
            digest, status = _hash_stream(stream), os.fstat(stream.fileno())
        entries[path.relative_to(directory).as_posix()] = ArtifactFile(
            sha256=digest, size=status.st_size, mode=status.st_mode & 0o777
        )
        sources[digest] = path
    return ArtifactManifest(kind=kind, name=name, files=entries), sources


def _hash_stream(stream: Any) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_values(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def _matches(path: Path, entry: ArtifactFile) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as stream:
        return _hash_stream(stream) == entry.sha256


def _list_entries(fs: Any, path: str) -> list[dict[str, Any]]:
    try:
        return list(fs.ls(path, detail=True))
    except FileNotFoundError as error:
        if _is_bucket_missing(error):
            raise
        return []


def _is_bucket_missing(error: FileNotFoundError) -> bool:
    """Tell a missing bucket, which is an error, from a missing object in it."""
    return "bucket does not exist" in str(error)


def get_time(entry: Mapping[str, Any]) -> datetime:
    """Return when an object was written; protocols name it differently. Now, where one does not say it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        match entry.get(name):
            case datetime() as value:
                return value if value.tzinfo else value.replace(tzinfo=UTC)
            case int() | float() as value:
                return datetime.fromtimestamp(value, UTC)
            case str() as value:
                return datetime.fromisoformat(value)
    return datetime.now(UTC)


def put_files(fs: Any, sources: Mapping[str, Path]) -> None:
    """Write files; an object appears complete or not at all."""
    if not _is_local(fs):
        if sources:
            fs.put([str(path) for path in sources.values()], list(sources))
        return
    for key, path in sources.items():
        with _partial_file(key) as partial:
            shutil.copyfile(path, partial)
            fsync(partial)
            partial.replace(key)


def write_object(fs: Any, key: str, content: bytes) -> None:
    """Write an object, or replace it as a whole."""
    if not _is_local(fs):
        fs.pipe_file(key, content)
        return
    with _partial_file(key) as partial:
        partial.write_bytes(content)
        fsync(partial)
        partial.replace(key)


def create_object(fs: Any, key: str, content: bytes) -> bool:
    """Create an object if there is none; return whether this call did.

    A storage without conditional writes is asked first and written then: two publishers may both succeed
    there. Readers do not mind, since each of both manifests names files that are all stored.
    """
    try:
        if _is_local(fs):
            with _partial_file(key) as partial:
                partial.write_bytes(content)
                fsync(partial)
                os.link(partial, key)
        else:
            fs.pipe_file(key, content, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno == errno.ENOSYS and not fs.exists(key):
            fs.pipe_file(key, content)
            return True
        # S3 answers "precondition failed" or "conflict" to the slower of two publishers.
        if error.errno in {errno.EINVAL, errno.EBUSY, errno.ENOSYS} and fs.exists(key):
            return False
        raise
    return True


def _is_local(fs: Any) -> bool:
    return not LOCAL_PROTOCOLS.isdisjoint((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


@contextmanager
def _partial_file(key: str) -> Iterator[Path]:
    """Yield the name of a file next to a key, to be written, flushed and renamed."""
    Path(key).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(key).with_name(f".{uuid.uuid4().hex}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
