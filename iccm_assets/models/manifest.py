"""What a published model directory consists of, and the proof that it still does (L6).

``MANIFEST.json`` lists the sha256 and size of every other file of the directory, and what the weights
were made from. It holds no time, host or path, so the same training gives the same manifest; its digest
is the model's name everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iccm_assets.errors import DamagedCheckpoint, ModelNotFound

MANIFEST = "MANIFEST.json"
FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """One file of a model directory: sha256 in hex, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """Provenance and content of a model.

    ``kind`` is ``imported`` or ``fine-tuned``; ``config`` is the training configuration; ``code`` maps
    package names to the versions that made the weights. Fields that an imported model lacks are null.
    The parent is named by digest: version names belong to one database, digests to all.
    """

    kind: str
    base: str
    files: Mapping[str, FileEntry]
    parent_digest: str | None = None
    dataset_digest: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    threads: int | None = None
    device: str | None = None
    code: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON of everything in the manifest: the model's content address."""
        return sha256_json(asdict(self))

    @property
    def weights_digest(self) -> str:
        """sha256 over the weight files alone: equal when two trainings agree bit for bit (L5)."""
        weights = {name: entry.sha256 for name, entry in self.files.items() if name.endswith(".safetensors")}
        return sha256_json(weights)

    @property
    def size(self) -> int:
        """Bytes of all listed files."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> str:
        """The text of ``MANIFEST.json``."""
        return (
            json.dumps({**asdict(self), "digest": self.digest}, indent=1, sort_keys=True, ensure_ascii=False)
            + "\n"
        )


def sha256_json(value: Any) -> str:
    """sha256 of the canonical JSON of a value: sorted keys, no spaces, UTF-8; NaN is refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """Hash every file below a directory except the manifest itself, keyed by POSIX path, sorted.

    Raises ``DamagedCheckpoint`` for a link or a special file: they cannot be vouched for.
    """
    return {name: describe_file(path) for name, path in sorted(_files(directory)) if name != MANIFEST}


def read_manifest(directory: Path) -> Manifest:
    """Read ``MANIFEST.json`` and check it against its own digest; the files are not touched.

    Raises ``ModelNotFound`` when there is no such directory or manifest, ``DamagedCheckpoint`` when the
    manifest is not readable, does not fit its digest, or lies in the wrong directory of a store.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise ModelNotFound(f"{directory} has no {MANIFEST}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        digest = raw.pop("digest")
        raw["files"] = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        manifest = Manifest(**raw)
        actual = manifest.digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error})") from error
    if digest != actual:
        raise DamagedCheckpoint(f"{path} was changed (digest {actual[:12]}, recorded {str(digest)[:12]})")
    if is_digest(directory.name) and directory.name != actual:
        raise DamagedCheckpoint(f"{path} is the manifest of {actual[:12]}, not of this directory")
    return manifest


def verify(directory: Path) -> Manifest:
    """Hash every file again and compare with the manifest.

    Raises ``DamagedCheckpoint`` naming the first file that is changed, missing or not listed, and
    ``ModelNotFound`` when there is no manifest.
    """
    manifest = read_manifest(directory)
    present = dict(_files(directory))
    present.pop(MANIFEST, None)
    for name in sorted(manifest.files.keys() - present.keys()):
        raise DamagedCheckpoint(f"{directory / name} is missing")
    for name in sorted(present.keys() - manifest.files.keys()):
        raise DamagedCheckpoint(f"{directory / name} is not listed in {MANIFEST}")
    for name, expected in sorted(manifest.files.items()):
        actual = describe_file(present[name])
        if actual.size != expected.size:
            raise DamagedCheckpoint(
                f"{directory / name} has {actual.size} bytes, {expected.size} were published"
            )
        if actual.sha256 != expected.sha256:
            raise DamagedCheckpoint(f"{directory / name} was changed (sha256 {actual.sha256[:12]})")
    return manifest


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DamagedCheckpoint(f"{path} is a link or a special file")
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path


def describe_file(path: Path) -> FileEntry:
    """Hash one file; raises ``DamagedCheckpoint`` when it cannot be read."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(digest, path.stat().st_size)
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror})") from error


def is_digest(name: str) -> bool:
    """Whether a directory of this name claims to be a published model."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")
