"""Real processes are killed: every trigger ends in one finished retrain or one clear failure.

One round; CHAOS_ROUNDS says otherwise, CHAOS_SEED begins elsewhere. `python -m benchmarks.chaos` is the
same with a line a round.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from dagster import DagsterRunStatus, job

from iccm_assets_tests.chaos.chaos_instance import Instance, platform
from iccm_assets_tests.chaos.invariants import load_aftermath, violations
from iccm_assets_tests.chaos.scenarios import play

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "1373"))
FAKE_TRAINER = [sys.executable, "-c", "import time; time.sleep(600)", "iccm_assets.training.trainer_worker"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 * (ROUNDS + 1)), pytest.mark.xdist_group("chaos")]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with platform() as made:
        yield made


def test_every_trigger_ends_once_whatever_is_killed(instance: Instance) -> None:
    for played in play(instance, ROUNDS, Random(SEED)):
        sys.stdout.write(played.line() + "\n")  # shown when it fails
        assert not played.violations, played.line()


def test_violations_planted_on_purpose_are_detected(instance: Instance) -> None:
    """Prove that the checks of the rounds above can fail."""
    with instance.engine.connect() as conn:
        run_id, path = conn.execute(
            sa.text(
                """select r.id, v.path from iccm.phase4_training_runs r
                   join iccm.model_versions v on v.version = r.candidate_version order by r.id desc limit 1"""
            )
        ).one()
    storage = instance.dagster.event_log_storage
    storage.set_concurrency_slots("training", 1)
    storage.claim_concurrency_slot("training", "somebody", "fine_tuned_checkpoint")
    instance.dagster.create_run_for_job(nothing, status=DagsterRunStatus.STARTED)
    home = Path(instance.environment["ICCM_HOME"])
    staging = home / "models" / ".staging" / f"{run_id}-1-1"
    staging.mkdir(parents=True)
    weights = home / path / "model.safetensors"
    weights.chmod(0o644)
    with weights.open("ab") as file:
        file.write(b"!")
    orphan = subprocess.Popen(FAKE_TRAINER, env=instance.environment)
    try:
        listed = "\n".join(violations(load_aftermath(instance, run_id)))
    finally:
        orphan.kill()
        orphan.wait()
    for words in (
        "slots taken: training (1 held",
        "Dagster runs not ended",
        f"staging left by a finished run: {run_id}-1-1",
        "damaged models",
        f"orphans: trainer {orphan.pid}",
    ):
        assert words in listed


@job
def nothing() -> None:
    pass
