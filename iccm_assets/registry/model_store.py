"""The model store: ``$ICCM_HOME/models/<digest>/``, content-addressed, immutable, verifiable (L6).

With ``ICCM_STORAGE`` a model is also published there, and one that the home lacks is downloaded (K2).
A model appears by rename and only if its writer still holds the fencing token; its name is the digest of its
manifest, so publishing the same weights again changes nothing. Which version a directory is, and when it was
made, is stored in the database only.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from iccm_assets.atomic_directories import (
    STAGING,
    find_stale_directories,
    fsync_tree,
    publish_directory,
    remove_tree,
)
from iccm_assets.errors import (
    ArtifactNotFoundError,
    CorruptArtifactError,
    CorruptCheckpointError,
    ModelError,
    ModelNotFoundError,
    OperationNotAllowedError,
    StaleFenceError,
    first_line,
)
from iccm_assets.registry.hub import (
    ADAPTER_CONFIG_FILE,
    PICKLE_SUFFIXES,
    check_loadable,
    has_manifest,
    is_adapter,
    is_local_path,
    resolve,
)
from iccm_assets.registry.manifest import (
    MANIFEST_FILE,
    Manifest,
    Prompt,
    describe_files,
    is_digest,
    read_manifest,
    verify,
)
from iccm_assets.settings import Settings, get_settings
from iccm_assets.storage_cache import StorageCache, open_storage

log = logging.getLogger(__name__)

KIND = "models"
STAGING_LIFETIME_SECONDS = 24 * 3600.0
# The weights of other frameworks, and code: never copied, never published.
FOREIGN_FILES = (*PICKLE_SUFFIXES, ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite", ".py", ".pyc")
# Raised with each change of the code after which the same training gives other bits. 2: an optimizer step is
# divided into forward passes by length.
TRAINING_PROCEDURE = "2"


@dataclass(frozen=True)
class StoredModel:
    """A model in the store."""

    digest: str
    path: Path
    manifest: Manifest


class ModelStore:
    """The models below one ``$ICCM_HOME``, and of the storage that it shares with other homes, if any."""

    def __init__(self, home: Path, storage: StorageCache | None = None) -> None:
        self.root = Path(home) / KIND
        self.staging_root = self.root / STAGING
        self.storage = storage

    @classmethod
    def open(cls, settings: Settings) -> ModelStore:
        """Return the model store of these settings."""
        return cls(settings.home, open_storage(settings))

    def get_path(self, digest: str) -> Path:
        """Return a model's directory, downloaded if only the storage has it.

        It stays in the home until ``release`` or the end of this process, and so does the base of an adapter,
        which is downloaded with it. Raises ``ModelNotFoundError`` if one of them does not exist,
        ``CorruptCheckpointError``, ``StorageError``.
        """
        directory = self.root / digest
        if self.storage is not None and is_digest(digest):
            directory = self._fetch(digest)
            if base_digest := _read_base_digest(directory):
                try:
                    self._fetch(base_digest)
                except ModelNotFoundError as error:
                    self.storage.release(KIND, digest)
                    raise _base_not_found(directory, base_digest, error) from None
                except BaseException:
                    self.storage.release(KIND, digest)
                    raise
            return directory
        if not digest or not directory.is_dir():
            raise ModelNotFoundError(f"{directory}")
        return directory

    def locate_base(self, adapter: Path) -> Path:
        """Return the directory of the whole model whose weights an adapter's directory changes.

        It is found by its digest: next to the adapter, else in this store. Raises ``ModelNotFoundError`` if
        it is nowhere, ``ModelError`` if the directory is not an adapter with a manifest, and what
        ``get_path`` raises.
        """
        base_digest = read_manifest(adapter).base_digest
        if base_digest is None:
            raise ModelError(f"{adapter} is a whole model, not an adapter")
        if (adapter.parent / base_digest).is_dir():
            return adapter.parent / base_digest
        try:
            return self.get_path(base_digest)
        except ModelNotFoundError as error:
            raise _base_not_found(adapter, base_digest, error) from None

    def _fetch(self, digest: str) -> Path:
        """Return a directory that the storage has, downloaded if the home lacks it, and lease it."""
        assert self.storage is not None
        try:
            return self.storage.fetch(KIND, digest, lambda staged: _verify_digest(staged, digest))
        except ArtifactNotFoundError as error:
            raise ModelNotFoundError(f"{self.root / digest}, nor in the storage: {error.detail}") from None
        except CorruptArtifactError as error:
            raise CorruptCheckpointError(error.detail, hint=error.hint) from None

    def locate(self, path: str | Path) -> Path:
        """Return the directory of a model that was published at this path of this or another home."""
        directory = Path(path)
        if self.storage is None or directory.parent.name != KIND or not is_digest(directory.name):
            return directory
        is_elsewhere = directory.parent != self.root and directory.is_dir()
        return directory if is_elsewhere else self.get_path(directory.name)

    def release(self, digest: str) -> None:
        """Let the home remove a model again that ``get_path`` has returned, where the storage has it."""
        if self.storage is None:
            return
        base_digest = _read_base_digest(self.root / digest)
        if self.storage.release(KIND, digest) and base_digest:
            self.storage.release(KIND, base_digest)

    def verify(self, digest: str) -> Manifest:
        """Hash a model's files; raises ``CorruptCheckpointError`` or ``ModelNotFoundError``."""
        return self.verify_directory(self.get_path(digest))

    def verify_directory(self, directory: Path, *, hash_files: bool = True) -> Manifest:
        """Compare a model with its manifest, and the base of an adapter with its own.

        Raises ``CorruptCheckpointError`` or ``ModelNotFoundError``.
        """
        manifest = verify(directory, hash_files=hash_files)
        if manifest.base_digest is not None:
            verify(self.locate_base(directory), hash_files=hash_files)
        return manifest

    def list_digests(self) -> list[str]:
        """Return the digests of all models in the store, sorted."""
        return sorted(
            path.name for path in self.root.glob("*") if path.is_dir() and not path.name.startswith(".")
        )

    def list_all_digests(self) -> list[str]:
        """Return the digests of all models in the home and in the storage, sorted."""
        return sorted({*self.list_digests(), *self.list_shared()})

    def list_shared(self) -> dict[str, datetime]:
        """Return the digests of the models in the storage, and when each was published."""
        artifacts = self.storage.storage.list_artifacts(KIND) if self.storage else []
        return {artifact.name: artifact.modified for artifact in artifacts}

    def read_manifest(self, digest: str) -> Manifest:
        """Read a model's manifest, downloading nothing else; raises ``ModelError``, ``StorageError``."""
        if self.storage is None or (self.root / digest).is_dir():
            return read_manifest(self.get_path(digest))
        stored = self.storage.storage.read_manifest(KIND, digest)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MANIFEST_FILE
            path.write_bytes(self.storage.storage.read_file(stored, MANIFEST_FILE))
            return read_manifest(path.parent)

    def list_bases(self) -> dict[str, str]:
        """Return the digest of the base of each adapter in the home and in the storage, by its own digest.

        Raises ``StorageError`` if the storage cannot be read: a base that nobody seems to need is deleted.
        """
        bases = {}
        for digest in self.list_all_digests():
            if base_digest := self._find_base_digest(digest):
                bases[digest] = base_digest
        return bases

    def _find_base_digest(self, digest: str) -> str | None:
        directory = self.root / digest
        if directory.is_dir():
            return _read_base_digest_of_any(directory)
        try:
            return self.read_manifest(digest).base_digest
        except (ArtifactNotFoundError, CorruptArtifactError, ModelError):
            return None  # deleted meanwhile, or nothing of it can be loaded any more

    def delete(self, digest: str) -> int:
        """Delete a model from the storage and from the home; return the bytes that it had there.

        Raises ``OperationNotAllowedError`` for the base of an adapter that exists.
        """
        if adapters := sorted(name for name, base in self.list_bases().items() if base == digest):
            raise OperationNotAllowedError(
                f"the model {digest[:12]} is the base of {len(adapters)} adapters ({adapters[0][:12]})",
                hint="Delete the adapters first.",
            )
        if self.storage is not None:
            self.storage.storage.delete(KIND, digest)
        size = sum(path.stat().st_size for path in (self.root / digest).rglob("*") if path.is_file())
        remove_tree(self.root / digest)
        return size

    def create_staging(self, run: str, attempt: int, fence: int, inherit: str = "") -> Path:
        """Create the staging directory of one attempt, and remove those of the run's older fences.

        The subdirectory ``inherit`` moves into it from the newest older directory that has one.
        """
        staging = self.staging_root / f"{run}-{attempt}-{fence}"
        # Fence 0 is below every claimed fence. If this process dies here, the next attempt inherits from it.
        inherited = self.staging_root / f"{run}-{attempt}-0"
        older = [path for path in self.staging_root.glob(f"{run}-*-*") if _parse_fence(path) <= fence]
        for directory in sorted(older, key=_parse_fence, reverse=True):
            if inherit and (directory / inherit).is_dir() and not inherited.exists():
                inherited.mkdir()
                (directory / inherit).rename(inherited / inherit)
            if directory != inherited:
                remove_tree(directory)
        if inherited.exists():
            inherited.rename(staging)
        staging.mkdir(parents=True, exist_ok=True)
        return staging

    def publish(
        self, staging: Path, manifest: Manifest, still_current: Callable[[], bool] = lambda: True
    ) -> StoredModel:
        """Write the manifest of a staging directory and move the directory into the store.

        ``manifest`` describes the origin of the weights; its ``files`` are filled in here. The fence
        is checked last, directly before the rename. Raises ``StaleFenceError``, or ``ModelError`` if the
        directory contains anything but a loadable safetensors model; nothing is published then.
        """
        check_loadable(staging)
        if is_adapter(staging) != (manifest.base_digest is not None):
            raise ModelError(
                f"{staging} may not be published: an adapter names its base by digest, a whole model has none"
            )
        if foreign := sorted(path.name for path in staging.rglob("*") if path.suffix in FOREIGN_FILES):
            raise ModelError(f"{', '.join(foreign)} may not be published: pickles and code run when opened")
        manifest = manifest.model_copy(update={"files": describe_files(staging)})
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        fsync_tree(staging)
        if not still_current():
            raise StaleFenceError(f"staging {staging.name}")
        target = self.root / manifest.digest
        self._move_damaged_away(target)
        try:
            publish_directory(staging, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            remove_tree(staging)  # the same model was published before, and was just verified
        self._share(manifest.digest, target)
        return StoredModel(manifest.digest, target, manifest)

    def _share(self, digest: str, directory: Path) -> None:
        """Publish a model in the storage, after its base; it stays in the home while this process lasts."""
        if self.storage is None:
            return
        if base_digest := _read_base_digest(directory):
            base = self.locate_base(directory)
            self.storage.publish(KIND, base_digest, base)
        self.storage.publish(KIND, digest, directory)
        self.storage.make_room(0)

    def import_model(self, path_or_hub_id: str, prompt: Prompt | None = None) -> StoredModel:
        """Copy a model into the store, so that the first production version is verifiable, too.

        A directory with a manifest is verified, and keeps its digest and its prompt; an adapter's base is
        imported from the directory next to it, unless the store has it. Raises ``ModelNotFoundError``,
        ``CorruptCheckpointError``, ``ModelError``.
        """
        source = resolve(path_or_hub_id)
        manifest = verify(source) if has_manifest(source) else None
        check_loadable(source)
        if is_adapter(source) and (manifest is None or manifest.base_digest is None):
            raise ModelError(
                f"{source} is an adapter that was not trained by this platform: its base is unknown",
                hint="Merge it with merge_and_unload() and save_pretrained(), and use the result.",
            )
        if manifest is not None and manifest.base_digest is not None:
            base_directory = self.locate_base(source)
            if base_directory.parent.absolute() != self.root.absolute():
                self.import_model(str(base_directory))
        if source.parent == self.root.absolute() and manifest is not None:
            self._share(manifest.digest, source)
            return StoredModel(manifest.digest, source, manifest)
        local = is_local_path(path_or_hub_id) or Path(path_or_hub_id).exists()
        # The directory name of a hub snapshot is its commit.
        base = source.name if local else f"{path_or_hub_id}@{source.name}"
        staging = self.create_staging(f"import{os.getpid()}", 1, 1)
        try:
            _copy_model(source, staging, manifest)
            imported = Manifest(kind="imported", base=base, files={}, prompt=prompt)
            return self.publish(staging, manifest or imported)
        finally:
            remove_tree(staging)

    def remove_stale_staging(self, older_than_seconds: float = STAGING_LIFETIME_SECONDS) -> list[str]:
        """Remove staging directories without a write for this long; return their names."""
        stale = list(find_stale_directories(self.staging_root, older_than_seconds))
        for directory in stale:
            remove_tree(directory)
        return [directory.name for directory in stale]

    def free_bytes(self) -> int:
        """Return the free space of the store's file system in bytes."""
        self.root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.root).free

    def _move_damaged_away(self, target: Path) -> None:
        """Move a damaged model to ``.damaged``: it must not block an intact one of the same digest."""
        if not target.exists():
            return
        try:
            verify(target)
        except (CorruptCheckpointError, ModelNotFoundError):
            damaged = self.root / ".damaged" / target.name
            damaged.parent.mkdir(exist_ok=True)
            remove_tree(damaged)
            target.chmod(0o755)
            target.rename(damaged)


def fetch_model(path: str | Path, settings: Settings | None = None) -> Path:
    """Return a registered model's directory, from the storage if the home lacks it.

    ``path`` is that of a version, in this home or in another one. It stays in the home until
    ``ModelStore.release`` or the end of this process. Raises what ``ModelStore.get_path`` raises; without a
    storage nothing is looked up.
    """
    return ModelStore.open(settings or get_settings()).locate(path)


def find_base(adapter: Path, settings: Settings | None = None) -> Path:
    """Return the directory of an adapter's base, as ``ModelStore.locate_base`` does."""
    return ModelStore.open(settings or get_settings()).locate_base(adapter)


def verify_model(directory: Path, settings: Settings | None = None, *, hash_files: bool = True) -> Manifest:
    """Compare a model, and its base if it is an adapter, with their manifests.

    Raises ``CorruptCheckpointError`` or ``ModelNotFoundError``.
    """
    store = ModelStore.open(settings or get_settings())
    return store.verify_directory(directory, hash_files=hash_files)


def _read_base_digest_of_any(directory: Path) -> str | None:
    """Return the digest of an adapter's base, also of an adapter whose manifest is damaged."""
    if not is_adapter(directory):
        return None
    try:
        return read_manifest(directory).base_digest
    except ModelError:
        try:
            config = json.loads((directory / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
            return str(config["base_model_name_or_path"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged, and its base unknown (%s)", directory, first_line(error))
            return None


def _read_base_digest(directory: Path) -> str | None:
    """Return the digest of an adapter's base; None for a whole model, or a directory without a manifest."""
    return read_manifest(directory).base_digest if is_adapter(directory) else None


def _base_not_found(adapter: Path, base_digest: str, error: ModelNotFoundError) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the base {base_digest[:12]} of the adapter {adapter.name[:12]} ({error.detail})",
        hint="Copy the directory of this digest into the model store, or restore it from a backup.",
    )


def _verify_digest(directory: Path, digest: str) -> None:
    if (actual := verify(directory).digest) != digest:
        raise CorruptCheckpointError(f"the storage has {actual[:12]} under the digest {digest[:12]}")


def training_provenance(method: str = "full") -> dict[str, str]:
    """Return the versions of what determines the weights, for ``Manifest.code``."""
    names = ["iccm-assets", "torch", "transformers", "accelerate", "safetensors"]
    names += ["peft"] if method == "lora" else []
    return {"training procedure": TRAINING_PROCEDURE, **{name: version(name) for name in names}}


def _parse_fence(staging: Path) -> int:
    suffix = staging.name.rsplit("-", 1)[1]
    return int(suffix) if suffix.isdecimal() else 0


def _copy_model(source: Path, target: Path, manifest: Manifest | None) -> None:
    """Copy the files of a model: the listed ones, or without a manifest all but foreign ones."""
    files = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
    for name in (
        manifest.files if manifest else [path.name for path in files if path.suffix not in FOREIGN_FILES]
    ):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        # A hub cache contains links to blobs: the content is copied, not the link.
        shutil.copyfile(source / name, target / name)
        (target / name).chmod(0o644)
