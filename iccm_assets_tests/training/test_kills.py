"""A trainer killed at any time publishes nothing by halves, and the weights are the same afterwards."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from iccm_assets.registry.model_store import ModelStore
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome
from iccm_assets_tests.factories.forked_trainers import start_trainer
from iccm_assets_tests.factories.tiny_models import tiny_gpt2
from iccm_assets_tests.factories.training_jobs import tiny_job


def kill_trainer(job: TrainingJob, killed_at: str) -> None:
    process = start_trainer(job, killed_at)
    process.join(240)
    assert process.exitcode == -signal.SIGKILL


def next_attempt(job: TrainingJob) -> TrainingJob:
    return job.model_copy(update={"attempt": job.attempt + 1, "fence": job.fence + 1})


def published(job: TrainingJob) -> list[str]:
    """Verify the candidates in the store and return their digests."""
    store = ModelStore(Path(job.home))
    candidates = [digest for digest in store.list_digests() if digest != Path(job.base).name]
    for digest in candidates:
        store.verify(digest)
    return candidates


def train_uninterrupted(job: TrainingJob, tmp_path: Path) -> TrainingOutcome:
    """Run the same training in another home, without interruption."""
    return train(job.model_copy(update={"home": str(tmp_path / "elsewhere")}))


@pytest.mark.slow
def test_a_trainer_killed_ten_times_at_random_ends_with_the_same_weights(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "home", epochs=4)
    started = time.monotonic()
    expected = train_uninterrupted(job, tmp_path)
    duration = time.monotonic() - started
    rng = random.Random(os.environ.get("ICCM_TEST_SEED", "4"))
    kills = 0
    while kills < 10:
        process = start_trainer(job)
        process.join(rng.uniform(0.0, duration))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        assert published(job) in ([], [expected.digest])
        assert process.exitcode in (0, -signal.SIGKILL)
        # After a success, start a new run.
        job = job.model_copy(update={"run_id": f"{kills}"}) if process.exitcode == 0 else next_attempt(job)
    last = train(job)
    assert last.digest == expected.digest and published(job) == [expected.digest]
    assert list(ModelStore(Path(job.home)).staging_root.glob(f"{job.run_id}-*")) == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full", marks=pytest.mark.slow),
        pytest.param({"method": "lora"}, id="lora", marks=pytest.mark.slow),
        pytest.param({"make": tiny_gpt2}, id="causal"),
    ],
)
def test_the_next_attempt_resumes_from_the_last_complete_epoch_with_the_same_bits(
    changes: dict, tmp_path: Path
) -> None:
    job = tiny_job(tmp_path / "home", epochs=4, **changes)
    expected = train_uninterrupted(job, tmp_path)
    kill_trainer(job, "step 11")  # of the third epoch's nine to twelve
    resumed = train(next_attempt(job))
    assert resumed.resumed_from_step == 8
    assert resumed.history == expected.history
    assert resumed.digest == expected.digest


@pytest.mark.slow
def test_a_training_on_preferences_that_was_killed_begins_anew_with_the_same_bits(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "home", tiny_gpt2, objective="dpo", epochs=3)
    expected = train_uninterrupted(job, tmp_path)
    kill_trainer(job, "step 3")  # of the second epoch's three and four
    again = train(next_attempt(job))
    assert (again.resumed_from_step, again.history) == (0, expected.history)
    assert published(job) == [expected.digest] == [again.digest]
    assert list(ModelStore(Path(job.home)).staging_root.glob(f"{job.run_id}-*")) == []


@pytest.mark.slow
def test_no_checkpoint_is_resumed_with_another_configuration(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "home", epochs=4)
    other = next_attempt(job).model_copy(update={"config": job.config.model_copy(update={"seed": 99})})
    expected = train_uninterrupted(other, tmp_path)
    kill_trainer(job, "step 11")
    restarted = train(other)
    assert (restarted.resumed_from_step, restarted.digest) == (0, expected.digest)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("half written", marks=pytest.mark.slow),
        "before the rename",
        "after the rename",
        pytest.param("before its row", marks=pytest.mark.slow),
    ],
)
def test_a_kill_during_publishing_leaves_a_complete_model_or_none(stage: str, tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "home", epochs=2)
    expected = train_uninterrupted(job, tmp_path)
    kill_trainer(job, stage)
    assert published(job) == ([expected.digest] if stage in ("after the rename", "before its row") else [])
    assert train(next_attempt(job)).digest == expected.digest
    assert published(job) == [expected.digest]
