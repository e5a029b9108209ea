"""The model store: ``$ICCM_HOME/models/<digest>/``, content-addressed, immutable, verifiable (L6).

A model appears by rename and only when its writer still holds the fence; its name is the digest of its
manifest, so publishing the same weights again changes nothing. Which version a directory serves as, and
when it was made, is in the database alone.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from iccm_assets.errors import DamagedCheckpoint, ModelError, ModelNotFound, StaleFence
from iccm_assets.learning.directories import STAGING, flush_tree, move_into_place, remove_tree, stale
from iccm_assets.models.manifest import MANIFEST, Manifest, describe_files, verify
from iccm_assets.models.resolve import PICKLES, check_loadable, is_published, looks_local, resolve

STAGING_LIFETIME_SECONDS = 24 * 3600.0
# Other frameworks' weights and code: never copied, never published.
FOREIGN = (*PICKLES, ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite", ".py", ".pyc")


@dataclass(frozen=True)
class Published:
    """A model in the store."""

    digest: str
    path: Path
    manifest: Manifest


class ModelStore:
    """The models below one ``$ICCM_HOME``."""

    def __init__(self, home: Path) -> None:
        self.root = Path(home) / "models"
        self.staging_root = self.root / STAGING

    def path(self, digest: str) -> Path:
        """Where a model lies; raises ``ModelNotFound`` when it does not."""
        directory = self.root / digest
        if not digest or not directory.is_dir():
            raise ModelNotFound(f"{directory}")
        return directory

    def verify(self, digest: str) -> Manifest:
        """Hash a stored model again; raises ``DamagedCheckpoint`` naming the file, or ``ModelNotFound``."""
        return verify(self.path(digest))

    def digests(self) -> list[str]:
        """Every model in the store, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )

    def open_staging(self, run: str, attempt: int, fence: int, inherit: str = "") -> Path:
        """A fresh staging directory for one attempt; what older fences of the run left is removed.

        The subdirectory ``inherit`` of the newest leftover that has one is moved into it.
        """
        staging = self.staging_root / f"{run}-{attempt}-{fence}"
        heirloom = self.staging_root / f"{run}-{attempt}-0"  # sorts before every fence: nobody's staging
        leftovers = [path for path in self.staging_root.glob(f"{run}-*-*") if _fence_of(path) <= fence]
        for leftover in sorted(leftovers, key=_fence_of, reverse=True):
            if inherit and (leftover / inherit).is_dir() and not heirloom.exists():
                heirloom.mkdir()
                (leftover / inherit).rename(heirloom / inherit)
            if leftover != heirloom:
                remove_tree(leftover)
        if heirloom.exists():
            heirloom.rename(staging)
        staging.mkdir(parents=True, exist_ok=True)
        return staging

    def publish(
        self, staging: Path, manifest: Manifest, still_current: Callable[[], bool] = lambda: True
    ) -> Published:
        """Seal a staging directory and move it into the store.

        ``manifest`` says where the weights come from; its ``files`` are filled in here. The fence is asked
        last, directly before the rename. Raises ``StaleFence``, or ``ModelError`` when the directory holds
        anything but a loadable safetensors model; nothing is published then.
        """
        check_loadable(staging)
        _refuse_foreign(staging)
        manifest = replace(manifest, files=describe_files(staging))
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        flush_tree(staging)
        if not still_current():
            raise StaleFence(f"staging {staging.name}")
        target = self.root / manifest.digest
        self._set_damaged_aside(target)
        try:
            move_into_place(staging, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            remove_tree(staging)  # published before, and just verified
        return Published(manifest.digest, target, manifest)

    def import_model(self, path_or_hub_id: str) -> Published:
        """Copy a foreign model into the store, so that the first production version is verifiable too.

        A directory that already has a manifest is verified and keeps its digest. Raises ``ModelNotFound``,
        ``DamagedCheckpoint``, ``ModelError``.
        """
        source = resolve(path_or_hub_id)
        known = verify(source) if is_published(source) else None
        check_loadable(source)
        if source.parent == self.root.absolute() and known is not None:
            return Published(known.digest, source, known)
        local = looks_local(path_or_hub_id) or Path(path_or_hub_id).exists()
        # The folder of a hub snapshot is named by its commit.
        base = source.name if local else f"{path_or_hub_id}@{source.name}"
        staging = self.open_staging(f"import{os.getpid()}", 1, 1)
        try:
            _copy_model(source, staging, known)
            return self.publish(staging, known or Manifest(kind="imported", base=base, files={}))
        finally:
            remove_tree(staging)

    def sweep(self, older_than_seconds: float = STAGING_LIFETIME_SECONDS) -> list[str]:
        """Remove staging directories nobody has written to for so long; returns their names."""
        removed = []
        for directory in stale(self.staging_root, older_than_seconds):
            remove_tree(directory)
            removed.append(directory.name)
        return removed

    def free_bytes(self) -> int:
        """Free space on the store's file system."""
        self.root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.root).free

    def _set_damaged_aside(self, target: Path) -> None:
        """A damaged copy must not stand in the way of a good one with the same digest."""
        if not target.exists():
            return
        try:
            verify(target)
        except (DamagedCheckpoint, ModelNotFound):
            graveyard = self.root / ".damaged"
            graveyard.mkdir(exist_ok=True)
            remove_tree(graveyard / target.name)
            target.chmod(0o755)
            target.rename(graveyard / target.name)


def training_provenance(code: Mapping[str, str] | None = None) -> dict[str, str]:
    """The versions of the packages that make the weights, for ``Manifest.code``."""
    from importlib.metadata import version

    names = ("iccm-assets", "torch", "transformers", "accelerate", "safetensors")
    return {**{name: version(name) for name in names}, **(code or {})}


def _fence_of(staging: Path) -> int:
    try:
        return int(staging.name.rsplit("-", 1)[1])
    except ValueError:
        return 0


def _copy_model(source: Path, target: Path, known: Manifest | None) -> None:
    """Copy what belongs to the model: the listed files, or without a manifest all but foreign ones."""
    names = (
        sorted(known.files) if known else [path.name for path in sorted(source.iterdir()) if _belongs(path)]
    )
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        # Hub caches hold links to blobs: the content is copied, not the link.
        shutil.copyfile(source / name, target / name)
        (target / name).chmod(0o644)


def _belongs(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix not in FOREIGN


def _refuse_foreign(directory: Path) -> None:
    foreign = sorted(path.name for path in directory.rglob("*") if path.suffix in FOREIGN)
    if foreign:
        raise ModelError(f"{', '.join(foreign)} may not be published: pickles and code run when opened")
