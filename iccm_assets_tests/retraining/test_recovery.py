"""Dagster runs that outlive their row's interest, and candidates whose deployment died with its run (T6)."""

from __future__ import annotations

import pytest

from iccm_assets.retraining.recovery import (
    DeployDecision,
    LatestRun,
    TrainingRunRow,
    UndeployedCandidate,
    decide_missed_deployment,
    find_orphaned_runs,
)
from iccm_assets.retraining.scheduling import DagsterRunState, RunState

LIMIT = 900.0
PASSED = UndeployedCandidate(7, "v2")


def started(seconds: float = 1e6, dispatch: int = 1) -> DagsterRunState:
    return DagsterRunState("r", "started", seconds, dispatch)


def row(status: str, run: str | None = "r", dispatch: int = 1, idle: float = 1e6) -> TrainingRunRow:
    return TrainingRunRow(7, status, dispatch, run, idle)


def last(state: RunState, *, answered: bool = False, deliveries: int = 0) -> LatestRun:
    return LatestRun(DagsterRunState("r", state), answered, deliveries)


@pytest.mark.parametrize(
    "kept",
    [
        row("running"),  # its heartbeat speaks for it
        row("requested", run=None),  # it may still claim the row
        row("failed", run="an earlier one"),
    ],
    ids=["works", "may claim", "may retry"],
)
def test_a_run_its_row_waits_for_is_no_stray(kept: TrainingRunRow) -> None:
    assert find_orphaned_runs([(started(), kept)], LIMIT) == []


@pytest.mark.parametrize(
    "left",
    [
        row("gate_passed"),
        row("gate_failed"),
        row("skipped", run=None),
        row("failed"),
        row("running", run="another"),
        row("requested", run=None, dispatch=2),
    ],
    ids=["passed", "refused", "called off", "attempt lost", "other hands", "dispatched again"],
)
def test_a_run_its_row_is_done_with_is_a_stray_after_the_limit(left: TrainingRunRow) -> None:
    [orphan] = find_orphaned_runs([(started(), left)], LIMIT)
    assert orphan.run_id == "r"
    assert (
        f"training run 7 has been {left.status} for" in orphan.reason and "900 s are allowed" in orphan.reason
    )


def test_a_run_that_deploys_after_its_verdict_is_given_time() -> None:
    assert find_orphaned_runs([(started(), row("gate_passed", idle=LIMIT))], LIMIT) == []
    assert find_orphaned_runs([(started(seconds=30), row("gate_passed"))], LIMIT) == []


def test_what_passed_and_died_before_its_deployment_is_deployed() -> None:
    decision = decide_missed_deployment(PASSED, last("failed"), 3)
    assert isinstance(decision, DeployDecision)
    assert (decision.candidate, decision.replaces_run_id) == ("v2", "r")
    assert "training run 7 has passed and v2 is not deployed" in decision.reason


def test_what_passed_while_a_rollout_was_live_is_deployed_when_that_has_ended() -> None:
    refused = LatestRun(
        DagsterRunState("r", "failed", seconds=7200.0), deployment_failed=True, deployment_runs=0
    )
    waits = UndeployedCandidate(7, "v2", waits_for=4, freed_seconds=90_000.0)
    assert "it waits for rollout 4 to end" in decide_missed_deployment(waits, refused, 3)
    decision = decide_missed_deployment(UndeployedCandidate(7, "v2", freed_seconds=60.0), refused, 3)
    assert isinstance(decision, DeployDecision) and decision.reason.endswith(
        "the rollout it waited for has ended"
    )
    assert "logged the reason" in decide_missed_deployment(
        UndeployedCandidate(7, "v2", freed_seconds=7201.0), refused, 3
    )


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (None, "Dagster has no run of it"),
        (last("started"), "its Dagster run r is started"),
        (last("queued"), "its Dagster run r is queued"),
        (last("canceled"), "its Dagster run r was canceled"),
        (last("succeeded"), "its Dagster run r has succeeded"),
        (last("failed", answered=True), "its Dagster run r logged the reason"),
        (last("failed", deliveries=3), "3 deployment runs have died"),
    ],
)
def test_it_is_left_alone_where_somebody_is_at_it_or_has_answered(seen: LatestRun | None, why: str) -> None:
    assert why in decide_missed_deployment(PASSED, seen, 3)
