"""Erased text in files: dataset snapshots, and models that no version names.

A snapshot that holds an erased conversation is replaced by its manifest, which then says `erased`: the digest
and the counts stay for the lineage, the examples (all of them) are deleted (V2).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import psutil

from iccm_assets.atomic_directories import STAGING, fsync_tree, publish_directory, remove_tree
from iccm_assets.errors import CorruptArtifactError, ModelError, StorageError
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.storage_cache import StorageCache
from iccm_assets.training.dataset import DATASET_MANIFEST_FILE, EXAMPLES_FILE, KIND, DatasetStore

_RETAINED = ("digest", "seed", "counts")


def rewrite_datasets(home: Path, erased: Collection[int], storage: StorageCache | None = None) -> list[str]:
    """Delete the examples of every snapshot that holds one of these conversations; return the digests.

    A snapshot that cannot be read may hold anything and loses its examples, too. Staging directories of dead
    processes are removed. In the storage the same is done: with the next call, if this one is killed.
    """
    root, rewritten = DatasetStore(home).root, []
    if storage is not None:
        rewritten += _download_datasets(root, storage)
    _remove_orphaned_staging(root / STAGING)
    for examples in sorted(root.glob(f"*/{EXAMPLES_FILE}")):
        conversations = _read_conversations(examples)
        if conversations is None or not conversations.isdisjoint(erased):
            _replace_by_manifest(examples.parent, sorted((conversations or set()).intersection(erased)))
            rewritten.append(examples.parent.name)
    if storage is not None:
        _rewrite_stored(root, storage)
    return rewritten


def _download_datasets(root: Path, storage: StorageCache) -> list[str]:
    """Get every snapshot of the storage that has examples; return those that were damaged and lost them."""
    damaged = []
    for artifact in storage.storage.list_artifacts(KIND):
        try:
            if EXAMPLES_FILE in storage.storage.read_manifest(KIND, artifact.name).files:
                storage.fetch(KIND, artifact.name)
                storage.release(KIND, artifact.name)
        except CorruptArtifactError:
            remove_tree(root / artifact.name)
            _write_manifest(root / artifact.name, {"digest": artifact.name}, [])
            damaged.append(artifact.name)
    return damaged


def _rewrite_stored(root: Path, storage: StorageCache) -> None:
    """Replace in the storage every snapshot of which the home has only the manifest."""
    for artifact in storage.storage.list_artifacts(KIND):
        directory = root / artifact.name
        if directory.is_dir() and not (directory / EXAMPLES_FILE).exists():
            storage.replace(KIND, artifact.name, directory)


def _remove_orphaned_staging(staging_root: Path) -> None:
    """Remove staging directories whose process, named after the last hyphen, is dead or this one."""
    for directory in staging_root.glob("*"):
        pid = directory.name.rsplit("-", 1)[-1]
        if not pid.isdigit() or int(pid) == os.getpid() or not psutil.pid_exists(int(pid)):
            remove_tree(directory)


def delete_unregistered_models(
    home: Path, registered: Collection[str], storage: StorageCache | None = None
) -> list[str]:
    """Delete models trained on a rewritten snapshot that no version names; return their digests.

    Such a model remains when a run was stopped between publishing and registering it.
    """
    store, datasets = ModelStore(home, storage), DatasetStore(home, storage)
    deleted = []
    bases = store.list_bases()
    unregistered = set(store.list_all_digests()) - set(registered)
    for digest in sorted(unregistered, key=lambda digest: digest not in bases):  # adapters before their bases
        if digest in bases.values():
            continue  # an adapter that stays needs it
        try:
            dataset = store.read_manifest(digest).dataset_digest
        except (ModelError, StorageError):
            continue  # without provenance nothing is known about it, and verification rejects it
        if dataset is not None and not datasets.has_examples(dataset):
            store.delete(digest)
            bases.pop(digest, None)
            deleted.append(digest)
    return sorted(deleted)


def _read_conversations(examples: Path) -> set[int] | None:
    """Return the conversations of a snapshot's examples; None when they cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(examples, columns=["conversation_id"])["conversation_id"]
        return {int(value) for value in column.to_pylist() if value is not None}
    except (OSError, KeyError, pa.ArrowException):
        return None


def _replace_by_manifest(directory: Path, erased: list[int]) -> None:
    """Replace a snapshot by its manifest.

    Deletes first: a crash before the manifest is written leaves nothing, which erases as well.
    """
    try:
        known: dict[str, Any] = json.loads((directory / DATASET_MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {"digest": directory.name}
    remove_tree(directory)
    _write_manifest(directory, known, erased)


def _write_manifest(directory: Path, known: Mapping[str, Any], erased: list[int]) -> None:
    staging = directory.parent / STAGING / f"{directory.name}-{os.getpid()}"
    staging.mkdir(parents=True, exist_ok=True)
    manifest = {name: known[name] for name in _RETAINED if name in known} | {"erased": erased}
    (staging / DATASET_MANIFEST_FILE).write_text(
        json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    fsync_tree(staging)
    publish_directory(staging, directory)
