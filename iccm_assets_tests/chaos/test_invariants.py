"""The invariants detect and name every single violation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.registry.training_runs import TrainingRun
from iccm_assets_tests.chaos.chaos_instance import (
    CODE_SERVER,
    DAEMON,
    RUN_WORKER,
    TRAINER,
    VICTIMS,
    get_process_kind,
)
from iccm_assets_tests.chaos.invariants import Aftermath, violations
from iccm_assets_tests.chaos.scenarios import plan

RUN = TrainingRun(
    id=1,
    trigger="manual",
    trigger_key="manual:1",
    attempt=1,
    fence=1,
    heartbeat_at=None,
    emergency=True,
    status="gate_passed",
    timestamp=datetime(2026, 3, 1, tzinfo=UTC),
    base_version="v1",
    candidate_version="v2",
    dataset_digest="d",
    config={},
    improvement=0.0,
    notes=None,
    error=None,
    dagster_run_id="r",
)
CLEAN = Aftermath(
    run=RUN,
    moved=False,
    runs=("SUCCESS",),
    unfinished_runs=(),
    rollouts=1,
    alerts=0,
    live_rollouts=1,
    productions=1,
    staging=(),
    damaged=(),
    unknown_models=(),
    slots=(),
    processes=(),
)
REFUSED = replace(CLEAN, run=replace(RUN, status="gate_failed"), runs=("FAILURE",), rollouts=0)
FAILED = replace(
    REFUSED,
    run=replace(RUN, status="failed", attempt=3, candidate_version=None, error="its worker died"),
    runs=("FAILURE",) * 3,
    alerts=1,
    staging=("1-3-5",),  # until the daily sweep
)


@pytest.mark.parametrize("clean", [CLEAN, REFUSED, FAILED], ids=["passed", "refused", "failed"])
def test_one_outcome_without_leftovers_is_no_violation(clean: Aftermath) -> None:
    assert violations(clean) == []


@pytest.mark.parametrize(
    ("clean", "change", "words"),
    [
        (CLEAN, {"rollouts": 0}, "passed, and 0 rollouts"),
        (CLEAN, {"rollouts": 2}, "passed, and 2 rollouts"),
        (REFUSED, {"rollouts": 1}, "not passed, and 1 rollouts"),
        (CLEAN, {"moved": True}, "still changes"),
        (CLEAN, {"runs": ("SUCCESS", "SUCCESS")}, "2 Dagster runs succeeded"),
        (CLEAN, {"unfinished_runs": ("r STARTED",)}, "not ended: r STARTED"),
        (CLEAN, {"live_rollouts": 2}, "2 live rollouts"),
        (CLEAN, {"productions": 0}, "0 versions in production"),
        (CLEAN, {"staging": ("1-1-1",)}, "staging left"),
        (CLEAN, {"damaged": ("d: half",)}, "damaged models: d: half"),
        (CLEAN, {"unknown_models": ("d",)}, "models no version names"),
        (CLEAN, {"slots": ("training (1 held, 0 waiting)",)}, "slots taken: training"),
        (CLEAN, {"processes": ("trainer 12",)}, "orphans: trainer 12"),
        (FAILED, {"alerts": 0}, "0 alerts"),
        (FAILED, {"alerts": 2}, "2 alerts"),
    ],
)
def test_every_leftover_is_named(clean: Aftermath, change: dict, words: str) -> None:
    [violation] = violations(replace(clean, **change))
    assert words in violation


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"status": "running"}, "the row is running, no outcome"),
        ({"status": "failed", "attempt": 2}, "failed after 2 of 3 attempts"),
        ({"status": "failed", "attempt": 3, "error": ""}, "failed without a reason"),
        ({"status": "gate_passed", "candidate_version": None}, "an outcome without a candidate"),
    ],
)
def test_a_row_without_an_end_or_a_reason_is_named(row: dict, words: str) -> None:
    assert words in violations(replace(CLEAN, run=replace(RUN, **row)))


@given(st.integers(0, 10**6))
def test_every_get_process_kind_victim_comes_once_before_any_comes_twice(seed: int) -> None:
    kinds = len(VICTIMS)
    planned = plan(2 * kinds + 1, Random(seed))
    assert sorted(kill.victim for kill in planned[:kinds]) == sorted(VICTIMS)
    assert sorted(kill.victim for kill in planned[kinds : 2 * kinds]) == sorted(VICTIMS)
    assert all(kill.share is None or 0 <= kill.share <= 0.6 for kill in planned)


def test_processes_are_known_by_their_command() -> None:
    assert get_process_kind(["python", "-m", "iccm_assets.training.trainer_worker"]) == TRAINER
    assert get_process_kind(["python", "-m", "iccm_assets.evaluation.evaluation_worker"]) == TRAINER
    assert get_process_kind(["python", "-c", "from multiprocessing.spawn import spawn_main"]) == RUN_WORKER
    assert get_process_kind(["python", "dagster", "api", "grpc", "-h"]) == CODE_SERVER
    assert get_process_kind(["python", "/bin/dagster-daemon", "run"]) == DAEMON
    assert get_process_kind(["postgres"]) is None
