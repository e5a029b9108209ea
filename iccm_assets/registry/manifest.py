"""The manifest of a published model directory: its files, its provenance, its digest (L6).

``MANIFEST.json`` lists the sha256 and size of every other file of the directory, and what the weights
were made from. It holds no time, host or path, so the same training gives the same manifest; its digest
identifies the model everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from iccm_assets.errors import CorruptCheckpointError, ModelNotFoundError

MANIFEST_FILE = "MANIFEST.json"
FORMAT = 1
# A manifest with an unknown key or a converted value would no longer match its own digest.
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_LATER_FIELDS = ("prompt", "base_digest", "accelerate")


class FileEntry(BaseModel):
    """One file of a model directory: sha256 in hex, size in bytes."""

    model_config = _STRICT

    sha256: str
    size: int


class Prompt(BaseModel):
    """How a source becomes the input of a model (L8): ``models/tokenization.py`` renders it."""

    model_config = _STRICT

    format: Literal["plain", "chat", "template"] = "plain"
    system: str = ""
    template: str = ""


class Manifest(BaseModel):
    """Provenance and content of a model.

    ``kind`` is ``imported`` or ``fine-tuned``; ``config`` is the training configuration; ``code`` maps
    package names to the versions that made the weights. Fields that an imported model lacks are null. A
    manifest without a prompt, as written before models had one, means the plain one.
    The parent is identified by digest: version names belong to one database, digests to all.
    ``base_digest`` is the whole model whose weights an adapter changes; null for a whole model.
    ``accelerate`` describes the processes that trained it, their number among others; null for one process.
    """

    model_config = _STRICT

    kind: str
    base: str
    files: Mapping[str, FileEntry]
    parent_digest: str | None = None
    dataset_digest: str | None = None
    config: Mapping[str, Any] = {}
    seed: int | None = None
    threads: int | None = None
    device: str | None = None
    code: Mapping[str, str] = {}
    prompt: Prompt | None = None
    base_digest: str | None = None
    accelerate: Mapping[str, Any] | None = None
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """The model's content address: sha256 over the canonical JSON of the whole manifest."""
        return sha256_json(self._values())

    @property
    def weights_digest(self) -> str:
        """sha256 over the weight files alone: equal if two trainings agree bit for bit (L5)."""
        return sha256_json(
            {name: entry.sha256 for name, entry in self.files.items() if name.endswith(".safetensors")}
        )

    @property
    def size(self) -> int:
        """Total bytes of all listed files."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> str:
        """The text of ``MANIFEST.json``."""
        values = {**self._values(), "digest": self.digest}
        return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _values(self) -> dict[str, Any]:
        """The fields, without those later ones that are null: the digests of older manifests still hold."""
        return self.model_dump(exclude={name for name in _LATER_FIELDS if getattr(self, name) is None})


def sha256_json(value: Any) -> str:
    """Hash the canonical JSON of a value: sorted keys, no spaces, UTF-8; raises ``ValueError`` for NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """Hash every file below a directory except the manifest itself, keyed by POSIX path, sorted.

    Raises ``CorruptCheckpointError`` for a link or a special file, whose content can change from outside.
    """
    return {name: describe_file(path) for name, path in sorted(_files(directory)) if name != MANIFEST_FILE}


def read_manifest(directory: Path) -> Manifest:
    """Read ``MANIFEST.json`` and check it against its own digest; the files are not touched.

    Raises ``ModelNotFoundError`` if the directory or the manifest does not exist, ``CorruptCheckpointError``
    if the manifest is unreadable, does not match its digest, or is in another model's directory of a store.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise ModelNotFoundError(f"{directory} has no {MANIFEST_FILE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        recorded = values.pop("digest")
        manifest = Manifest.model_validate(values)
        actual = manifest.digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
    if recorded != actual:
        raise CorruptCheckpointError(
            f"{path} was changed (digest {actual[:12]}, recorded {str(recorded)[:12]})"
        )
    if is_digest(directory.name) and directory.name != actual:
        raise CorruptCheckpointError(f"{path} is the manifest of {actual[:12]}, not of this directory")
    return manifest


def verify(directory: Path, *, hash_files: bool = True) -> Manifest:
    """Compare every file with the manifest: its size and, unless ``hash_files`` is false, its sha256.

    Raises ``CorruptCheckpointError`` with the name of the first changed, missing or unlisted file, and
    ``ModelNotFoundError`` if there is no manifest.
    """
    manifest = read_manifest(directory)
    present = dict(_files(directory))
    present.pop(MANIFEST_FILE, None)
    for name in sorted(manifest.files.keys() ^ present.keys()):
        problem = f"is not listed in {MANIFEST_FILE}" if name in present else "is missing"
        raise CorruptCheckpointError(f"{directory / name} {problem}")
    for name, expected in sorted(manifest.files.items()):
        size = present[name].stat().st_size
        if size != expected.size:
            raise CorruptCheckpointError(
                f"{directory / name} has {size} bytes, {expected.size} were published"
            )
        if hash_files and (sha256 := describe_file(present[name]).sha256) != expected.sha256:
            raise CorruptCheckpointError(f"{directory / name} was changed (sha256 {sha256[:12]})")
    return manifest


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CorruptCheckpointError(f"{path} is a link or a special file")
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path


def describe_file(path: Path) -> FileEntry:
    """Hash one file; raises ``CorruptCheckpointError`` if it cannot be read."""
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(sha256=sha256, size=path.stat().st_size)
    except OSError as error:
        raise CorruptCheckpointError(f"{path} cannot be read ({error.strerror})") from error


def is_digest(name: str) -> bool:
    """Return whether a directory name is a digest, so that the directory must hold a published model."""
    return len(name) == 64 and set(name) <= set("0123456789abcdef")
