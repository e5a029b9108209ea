from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.defs.training.training_progress import with_progress
from iccm_assets.errors import (
    CorruptCheckpointError,
    DatabaseUnreachableError,
    InputError,
    ModelNotFoundError,
    NoWeightsChangedError,
    StaleFenceError,
    TrainingDivergedError,
    TrainingError,
)
from iccm_assets.models.generation import generate, load_model
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.registry.training_runs import get_run
from iccm_assets.training import trainer_worker
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.worker_protocol import TrainingJob, parse_reply
from iccm_assets_tests.factories.forked_trainers import train_in_process
from iccm_assets_tests.factories.tiny_models import tiny_gpt2
from iccm_assets_tests.factories.training_jobs import tiny_job


def candidates(job: TrainingJob) -> set[str]:
    return set(ModelStore(Path(job.home)).list_digests()) - {Path(job.base).name}


def staging_is_empty(job: TrainingJob) -> bool:
    return list(ModelStore(Path(job.home)).staging_root.iterdir()) == []


def test_the_candidate_is_a_verified_loadable_model_with_its_provenance(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    points: list[LossPoint] = []
    outcome = train(job, progress=points.append)
    assert candidates(job) == {outcome.digest}
    manifest = ModelStore(tmp_path).verify(outcome.digest)
    assert (manifest.kind, manifest.base, manifest.parent_digest) == (
        "fine-tuned",
        "tiny_t5",
        Path(job.base).name,
    )
    assert manifest.dataset_digest == Path(job.dataset).name == outcome.dataset_digest
    assert (manifest.seed, manifest.threads) == (job.config.seed, job.config.threads)
    assert str(manifest.device).startswith("cpu ")
    assert manifest.code.keys() >= {"iccm-assets", "torch", "transformers"}
    assert not [name for name in manifest.files if not re.search(r"\.(safetensors|json|md)$", name)]
    assert manifest.files.keys() >= {
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
    }
    assert outcome.history == tuple(points)
    assert outcome.best_validation_loss < outcome.initial_validation_loss
    card = (Path(outcome.path) / "README.md").read_text()
    assert outcome.dataset_digest in card and "| new | 14 |" in card and "learning_rate" in card
    loaded = load_model(outcome.path)
    assert loaded.digest == outcome.digest
    assert len(generate(loaded, ["x = 1"], max_new_tokens=5, batch_size=1)) == 1
    assert staging_is_empty(job)


@pytest.mark.slow
def test_two_processes_in_two_homes_give_the_same_digest_bit_for_bit(tmp_path: Path) -> None:
    jobs = [tiny_job(tmp_path / name, run_id=name) for name in ("one", "two")]
    first, second = (train_in_process(job, tmp_path) for job in jobs)
    assert first.digest == second.digest
    assert first.path != second.path
    different = train(tiny_job(tmp_path / "one", seed=18, run_id="other"))
    assert different.weights_digest != first.weights_digest


def test_published_files_contain_no_path_time_or_machine_name(tmp_path: Path) -> None:
    outcome = train(tiny_job(tmp_path))
    for path in Path(outcome.path).iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert str(Path.home()).encode() + b"/" not in path.read_bytes(), path


def test_a_candidate_can_be_the_next_base_and_keeps_the_name_of_the_first(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, tiny_gpt2, epochs=1)
    first = train(job)
    second = train(tiny_job(tmp_path, tiny_gpt2, epochs=1, base=first.path, run_id="2"))
    manifest = ModelStore(tmp_path).verify(second.digest)
    assert (manifest.parent_digest, manifest.base) == (first.digest, "tiny_gpt2")


def test_an_emergency_trains_its_own_number_of_epochs(tmp_path: Path) -> None:
    outcome = train(tiny_job(tmp_path, emergency=True, emergency_epochs=1))
    assert [p.epoch for p in outcome.history if p.validation_loss is not None] == [0, 1]


def test_a_learning_rate_that_changes_no_weight_is_rejected_by_name(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, learning_rate=1e-30, weight_decay=0.0)
    with pytest.raises(NoWeightsChangedError):
        train(job)
    assert candidates(job) == set() and staging_is_empty(job)


def test_a_fence_lost_during_training_or_before_publishing_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(tmp_path)
    monkeypatch.setattr(trainer_worker, "HEARTBEAT_SECONDS", 1000.0)
    with pytest.raises(StaleFenceError, match="staging"):
        train(job, still_current=lambda: False)
    monkeypatch.setattr(trainer_worker, "HEARTBEAT_SECONDS", 0.0)
    with pytest.raises(StaleFenceError, match="step 0"):
        train(job, still_current=lambda: False)
    assert candidates(job) == set() and staging_is_empty(job)


def test_a_short_database_outage_costs_no_training_and_a_lasting_one_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_worker, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(trainer_worker, "PUBLISH_RETRY_SECONDS", (0.0, 0.0))
    job = tiny_job(tmp_path)
    points: list[LossPoint] = []

    def unreachable() -> bool:
        raise DatabaseUnreachableError("for good")

    with pytest.raises(DatabaseUnreachableError):
        train(job, progress=points.append, still_current=unreachable)
    assert candidates(job) == set()
    steps, checks = len(points), 0

    def reachable_at_the_end() -> bool:
        nonlocal checks
        checks += 1
        if checks <= steps + 2:
            raise DatabaseUnreachableError("for a moment")
        return True

    assert train(job, still_current=reachable_at_the_end).digest in candidates(job)


def test_a_damaged_base_a_missing_base_and_a_changed_training_set_are_named(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    with pytest.raises(ModelNotFoundError):
        train(tiny_job(tmp_path, base=str(tmp_path / "nothing")))
    weights = Path(job.base) / "model.safetensors"
    weights.chmod(0o644)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        train(job)
    weights.write_bytes(content)
    (Path(job.dataset) / "examples.parquet").chmod(0o644)
    (Path(job.dataset) / "examples.parquet").write_bytes(b"x")
    with pytest.raises(InputError):
        train(job)
    assert candidates(job) == set()


def test_too_little_disk_space_is_detected_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelStore, "free_bytes", lambda self: 1000)
    job = tiny_job(tmp_path)
    with pytest.raises(TrainingError, match="GB are free"):
        train(job, progress=lambda point: pytest.fail("trained"))


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root to mount a small disk"
)
def test_a_disk_that_fills_up_is_named_and_nothing_is_published(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        job = tiny_job(disk)
        (disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(disk).free - 500_000))

        def fill(point: LossPoint) -> None:
            if point.step == 1:
                free = shutil.disk_usage(disk).free
                (disk / "more").write_bytes(b"x" * max(0, free - 60_000))

        with pytest.raises(TrainingError, match="no space left"):
            train(job, progress=fill)
        assert candidates(job) == set()
        (disk / "more").unlink()
        assert train(job).digest in candidates(job)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_trainer_with_an_invalid_job_replies_with_the_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing"):
        train_in_process(tiny_job(tmp_path, base=str(tmp_path / "nothing")), tmp_path)


def test_a_job_whose_inputs_are_missing_fails_before_torch_is_imported(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    jobs = [job.model_copy(update={name: str(tmp_path / "nothing")}) for name in ("base", "dataset")]
    (tmp_path / "jobs.json").write_text(json.dumps([job.model_dump(mode="json") for job in jobs]))
    code = (
        "import json, sys; from iccm_assets.training import trainer_worker as worker;"
        " worker.prepare_process();"
        f"replies = [worker._run_job(job, print) for job in json.load(open('{tmp_path}/jobs.json'))];"
        " print([reply['error']['name'] for reply in replies], 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "['ModelNotFoundError', 'InputError'] False\n"


def test_importing_the_trainers_values_loads_no_torch() -> None:
    code = (
        "import sys, iccm_assets.training.worker_protocol, iccm_assets.training.trainer_worker,"
        " iccm_assets.training.dataset,"
        " iccm_assets.registry.model_store, iccm_assets.reporting.plots;"
        "print({'torch', 'transformers', 'pyarrow', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.slow
def test_under_dagster_losses_are_logged_and_observed_and_the_outcome_or_error_is_returned(
    tmp_path: Path,
) -> None:
    good, bad = (
        tiny_job(tmp_path, epochs=1, report_to="wandb", report_timeout_seconds=100),
        tiny_job(tmp_path, epochs=1, learning_rate=1e-30, weight_decay=0.0),
    )
    messages: dict[str, list] = {}
    observed: list[int] = []

    @dg.asset
    def probe(context, pipes: dg.PipesSubprocessClient) -> dg.MaterializeResult:
        for name, job in (("good", good), ("bad", bad)):
            result = with_progress(pipes, context).run(
                context=context,
                command=[sys.executable, "-m", "iccm_assets.training.trainer_worker"],
                extras={"job": job.model_dump(mode="json")},
            )
            messages[name] = list(result.get_custom_messages())
            # Read before the asset ends: an observation exists while the training runs.
            observed.append(len(context.instance.fetch_observations(context.asset_key, limit=99).records))
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([probe], resources={"pipes": dg.PipesSubprocessClient()}, instance=instance)
        entries = instance.all_logs(result.run_id)
        logged = [entry.user_message for entry in entries]
        [first, *_] = instance.fetch_observations(dg.AssetKey("probe"), limit=99, ascending=True).records
    # One in 30 seconds: each of the two trainings takes less, unless the machine is very busy.
    assert 1 <= observed[0] < observed[1] <= 6
    assert first.asset_observation is not None
    measured = {name: entry.value for name, entry in first.asset_observation.metadata.items()}
    assert measured.keys() == {"step", "total_steps", "epoch", "validation_loss"}
    # The tracker is not installed: the training is as good as without it.
    [warning] = [entry.user_message for entry in entries if entry.level == logging.WARNING]
    assert warning.startswith("wandb does not show this run completely") and "installed" in warning
    outcome = parse_reply(messages["good"])
    assert candidates(good) == {outcome.digest}
    assert [line for line in logged if re.match(r"step \d+/\d+ epoch [\d.]+ loss [\d.]+", line)]
    with pytest.raises(NoWeightsChangedError):
        parse_reply(messages["bad"])


@pytest.mark.parametrize("rate", [1.0, 1e-3])
def test_a_rate_that_makes_the_weights_infinite_is_named_and_leaves_the_store_unchanged(
    rate: float, tmp_path: Path
) -> None:
    job = tiny_job(tmp_path, learning_rate=rate, weight_decay=1e30, max_grad_norm=1e30, epochs=3)
    with pytest.raises(TrainingDivergedError, match=r"is (nan|inf)|not finite"):
        train(job)
    assert candidates(job) == set() and staging_is_empty(job)


def staged_copy(store: ModelStore, base: Path, fence: int) -> tuple[Path, Manifest]:
    """Create a staging directory with the base's files, and a manifest to publish it under."""
    staging = store.create_staging("race", fence, fence)
    for path in base.iterdir():
        if path.name != "MANIFEST.json":
            shutil.copyfile(path, staging / path.name)
    return staging, Manifest(kind="fine-tuned", base="tiny", files={}, seed=fence)


def test_of_two_concurrent_trainers_of_one_run_only_the_current_one_publishes(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both check their fence at the same time; the newer attempt has just claimed the row."""
    monkeypatch.setattr("iccm_assets.db.database.connect", lambda settings=None: engine)
    with engine.begin() as conn:
        row = conn.execute(
            sa.text(
                "insert into iccm.phase4_training_runs (trigger, trigger_key, status, attempt, fence,"
                " emergency) values ('manual', 'race', 'running', 1, 1, false) returning id"
            )
        ).scalar_one()
    store, job = ModelStore(tmp_path), tiny_job(tmp_path)
    together = threading.Barrier(2)

    def publish(fence: int, staging: Path, manifest: Manifest) -> str:
        still_current = trainer_worker.make_heartbeat(row, fence)
        try:
            return store.publish(staging, manifest, lambda: together.wait() >= 0 and still_current()).digest
        except StaleFenceError:
            return "stale"

    for newer in (2, 4, 6, 8):
        # The newer one is staged first: staging removes the directories of older fences.
        staged = {fence: staged_copy(store, Path(job.base), fence) for fence in (newer, newer - 1)}
        with engine.begin() as conn:
            conn.execute(sa.text("update iccm.phase4_training_runs set fence = :fence"), {"fence": newer})
        with ThreadPoolExecutor() as threads:
            results = {fence: threads.submit(publish, fence, *staged[fence]) for fence in staged}
        assert results[newer - 1].result() == "stale"
        assert results[newer].result() in candidates(job)
    assert sorted(store.verify(digest).seed or 0 for digest in candidates(job)) == [2, 4, 6, 8]


def test_the_fence_in_the_database_decides_who_may_publish(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer with an old fence trains to the end and is rejected; the current attempt publishes."""
    monkeypatch.setattr("iccm_assets.db.database.connect", lambda settings=None: engine)
    with engine.begin() as conn:
        row = conn.execute(
            sa.text(
                "insert into iccm.phase4_training_runs (trigger, trigger_key, status, attempt, fence,"
                " emergency) values ('manual', 'fence-test', 'running', 2, 2, false) returning id"
            )
        ).scalar_one()
    job = tiny_job(tmp_path, epochs=1)
    with pytest.raises(StaleFenceError):
        train(job, still_current=trainer_worker.make_heartbeat(row, 1))
    assert candidates(job) == set()
    with engine.connect() as conn:
        assert get_run(conn, row).heartbeat_at is None
    outcome = train(
        tiny_job(tmp_path, epochs=1, fence=2, attempt=2), still_current=trainer_worker.make_heartbeat(row, 2)
    )
    assert candidates(job) == {outcome.digest}
    with engine.connect() as conn:
        assert get_run(conn, row).heartbeat_at is not None
