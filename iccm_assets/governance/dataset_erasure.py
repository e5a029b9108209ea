"""Erased text in files: dataset snapshots, and models that no version names.

A snapshot that holds an erased conversation is replaced by its manifest, which then says `erased`: the digest
and the counts stay for the lineage, the examples (all of them) are deleted (V2).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil

from iccm_assets.atomic_directories import STAGING, fsync_tree, publish_directory, remove_tree
from iccm_assets.errors import ModelError
from iccm_assets.registry.manifest import read_manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.training.dataset import DATASET_MANIFEST_FILE, EXAMPLES_FILE, DatasetStore

_RETAINED = ("digest", "seed", "counts")


def rewrite_datasets(home: Path, erased: Collection[int]) -> list[str]:
    """Delete the examples of every snapshot that holds one of these conversations; return the digests.

    A snapshot that cannot be read may hold anything and loses its examples, too. Staging directories of dead
    processes are removed.
    """
    root = DatasetStore(home).root
    if not root.is_dir():
        return []
    for leftover in (root / STAGING).glob("*"):
        owner = leftover.name.rsplit("-", 1)[-1]
        if not owner.isdigit() or int(owner) == os.getpid() or not psutil.pid_exists(int(owner)):
            remove_tree(leftover)
    stripped = []
    for directory in sorted(root.iterdir()):
        if directory.name != STAGING and (directory / EXAMPLES_FILE).exists():
            conversations = _conversations(directory)
            if conversations is None or conversations & set(erased):
                _strip(directory, sorted((conversations or set()) & set(erased)))
                stripped.append(directory.name)
    return stripped


def delete_unregistered_models(home: Path, registered: Collection[str]) -> list[str]:
    """Delete models trained on a rewritten snapshot that no version names; return their digests.

    Such a model remains when a run was stopped between publishing and registering it.
    """
    store, datasets = ModelStore(home), DatasetStore(home).root
    dropped = []
    for digest in set(store.list_digests()) - set(registered):
        try:
            dataset = read_manifest(store.get_path(digest)).dataset_digest
        except ModelError:
            continue  # no provenance, no way to tell: verification refuses it anyway
        if dataset is not None and not (datasets / dataset / EXAMPLES_FILE).exists():
            remove_tree(store.get_path(digest))
            dropped.append(digest)
    return sorted(dropped)


def _conversations(directory: Path) -> set[int] | None:
    """Return the conversations of a snapshot; None when it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(directory / EXAMPLES_FILE, columns=["conversation_id"])["conversation_id"]
        return {int(value) for value in column.to_pylist() if value is not None}
    except (OSError, KeyError, pa.ArrowException):
        return None


def _strip(directory: Path, erased: list[int]) -> None:
    """Delete first, then write the manifest: a crash between the two leaves nothing, which is as good."""
    try:
        known: dict[str, Any] = json.loads((directory / DATASET_MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {"digest": directory.name}
    remove_tree(directory)
    staging = directory.parent / STAGING / f"{directory.name}-{os.getpid()}"
    staging.mkdir(parents=True, exist_ok=True)
    manifest = {name: known[name] for name in _RETAINED if name in known} | {"erased": erased}
    (staging / DATASET_MANIFEST_FILE).write_text(
        json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    fsync_tree(staging)
    publish_directory(staging, directory)
