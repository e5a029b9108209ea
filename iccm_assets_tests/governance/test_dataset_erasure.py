"""Dataset snapshots lose their examples, and unregistered models are deleted (V2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.governance.dataset_erasure import delete_unregistered_models, rewrite_datasets
from iccm_assets.registry.manifest import Manifest
from iccm_assets.training.dataset import Dataset, DatasetStore, TrainingExample


def stored(home: Path, *ids: int) -> Dataset:
    examples = tuple(TrainingExample(id, f"def f{id}(): ...", f"text {id}", "new", "pool") for id in ids)
    dataset = Dataset(examples, 1)
    DatasetStore(home).write(dataset)
    return dataset


def test_only_snapshots_that_hold_an_erased_conversation_lose_their_examples(tmp_path: Path) -> None:
    hit, missed = stored(tmp_path, 1, 2), stored(tmp_path, 3, 4)
    assert rewrite_datasets(tmp_path, {2, 9}) == [hit.digest]
    directory = tmp_path / "datasets" / hit.digest
    assert [path.name for path in directory.iterdir()] == ["manifest.json"]
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest == {"digest": hit.digest, "seed": 1, "counts": hit.counts, "erased": [2]}
    assert DatasetStore(tmp_path).load(missed.digest) == missed
    assert rewrite_datasets(tmp_path, {2, 9}) == []


def test_a_snapshot_that_cannot_be_read_loses_its_examples_too(tmp_path: Path) -> None:
    dataset = stored(tmp_path, 1)
    examples = tmp_path / "datasets" / dataset.digest / "examples.parquet"
    examples.chmod(0o644)
    examples.write_bytes(b"PAR1 half of it")
    assert rewrite_datasets(tmp_path, {7}) == [dataset.digest]


def test_staging_of_a_dead_process_is_deleted_and_that_of_a_live_one_is_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    staging = tmp_path / "datasets" / ".staging"
    for owner in (dead.pid, os.getppid()):
        (staging / f"abc-{owner}").mkdir(parents=True)
    rewrite_datasets(tmp_path, set())
    assert [path.name for path in staging.iterdir()] == [f"abc-{os.getppid()}"]


def test_a_home_without_snapshots_is_unchanged(tmp_path: Path) -> None:
    assert rewrite_datasets(tmp_path, {1}) == [] and delete_unregistered_models(tmp_path, set()) == []
    assert list(tmp_path.iterdir()) == []


def test_an_unregistered_model_trained_on_a_rewritten_snapshot_is_deleted(tmp_path: Path) -> None:
    dataset, other = stored(tmp_path, 1), stored(tmp_path, 2)
    manifests = [
        Manifest(kind="fine-tuned", base="b", files={}, dataset_digest=snapshot.digest, seed=seed)
        for seed, snapshot in enumerate((dataset, dataset, other))
    ]
    for manifest in manifests:
        (tmp_path / "models" / manifest.digest).mkdir(parents=True)
        (tmp_path / "models" / manifest.digest / "MANIFEST.json").write_text(manifest.to_json())
    (tmp_path / "models" / "imported").mkdir()
    rewrite_datasets(tmp_path, {1})
    assert delete_unregistered_models(tmp_path, {manifests[1].digest}) == [manifests[0].digest]
    left = {path.name for path in (tmp_path / "models").iterdir()}
    assert left == {manifests[1].digest, manifests[2].digest, "imported"}
    remove_tree(tmp_path / "datasets" / dataset.digest)
    assert delete_unregistered_models(tmp_path, {manifests[1].digest}) == []


def test_the_unregistered_base_of_a_registered_adapter_is_kept_and_deleted_after_the_adapter(
    tmp_path: Path,
) -> None:
    dataset = stored(tmp_path, 1)
    base = Manifest(kind="fine-tuned", base="b", files={}, dataset_digest=dataset.digest)
    adapter = base.model_copy(update={"base_digest": base.digest})
    for manifest, config in ((base, "config.json"), (adapter, "adapter_config.json")):
        directory = tmp_path / "models" / manifest.digest
        directory.mkdir(parents=True)
        (directory / config).write_text("{}")
        (directory / "MANIFEST.json").write_text(manifest.to_json())
    rewrite_datasets(tmp_path, {1})
    assert delete_unregistered_models(tmp_path, {adapter.digest}) == []
    assert delete_unregistered_models(tmp_path, set()) == sorted([base.digest, adapter.digest])
    assert list((tmp_path / "models").iterdir()) == []
