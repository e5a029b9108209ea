"""A trainer with an empty home: its inputs come from the storage, its candidate goes there. (K2)"""

from __future__ import annotations

from pathlib import Path

import pytest

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.errors import InputError, ModelNotFoundError
from iccm_assets.object_storage import ObjectStorage
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import load_settings
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.worker_protocol import TrainingJob
from iccm_assets_tests.factories.object_storages import read_tree
from iccm_assets_tests.factories.training_jobs import tiny_job


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/share"


def share(job: TrainingJob, url: str) -> None:
    """Publish the inputs of a job as the home that made them does."""
    storage = ObjectStorage(url)
    for path in map(Path, (job.base, job.dataset)):
        storage.publish(path.parent.name, path.name, path)


def test_the_weights_are_those_of_a_training_in_the_first_home_bit_for_bit(url: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "first")
    local = train(job)
    share(job, url)
    remove_tree(Path(job.base))
    remove_tree(Path(job.dataset))
    shared = train(job.model_copy(update={"home": str(tmp_path / "node"), "storage": url}))
    assert (shared.digest, shared.weights_digest) == (local.digest, local.weights_digest)
    assert shared.path == str(tmp_path / "node" / "models" / shared.digest)
    third = ModelStore.open(load_settings(home=tmp_path / "third", storage=url)).get_path(shared.digest)
    assert read_tree(third) == read_tree(Path(local.path))


def test_an_adapter_is_trained_on_where_neither_it_nor_its_base_was_before(url: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "first", method="lora", epochs=1)
    first = train(job)
    second = job.model_copy(update={"base": first.path, "run_id": "2"})
    local = train(second)
    for path in map(Path, (job.base, first.path, job.dataset)):
        ObjectStorage(url).publish(path.parent.name, path.name, path)
        remove_tree(path)
    shared = train(second.model_copy(update={"home": str(tmp_path / "node"), "storage": url}))
    assert (shared.digest, shared.base_digest) == (local.digest, Path(job.base).name)
    third = ModelStore.open(load_settings(home=tmp_path / "third", storage=url))
    assert third.verify(shared.digest).base_digest == Path(job.base).name
    assert third.list_digests() == sorted([Path(job.base).name, shared.digest])


def test_inputs_that_the_storage_lacks_are_named_before_anything_is_trained(url: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "first").model_copy(update={"home": str(tmp_path / "node"), "storage": url})
    share(job, url)
    for path in map(Path, (job.base, job.dataset)):
        remove_tree(path)
    ObjectStorage(url).delete("datasets", Path(job.dataset).name)
    with pytest.raises(InputError, match=f"training set {Path(job.dataset).name}"):
        train(job)
    share(tiny_job(tmp_path / "first"), url)
    ObjectStorage(url).delete("models", Path(job.base).name)
    remove_tree(Path(job.base))
    with pytest.raises(ModelNotFoundError, match="nor in the storage"):
        train(job)
