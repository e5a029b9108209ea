"""Dagster runs that their row no longer needs, and candidates whose deployment run died (T6)."""

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


def latest(state: RunState, *, deployment_failed: bool = False, deployment_runs: int = 0) -> LatestRun:
    return LatestRun(DagsterRunState("r", state, 0.0, 0), deployment_failed, deployment_runs)


@pytest.mark.parametrize(
    "needed",
    [
        row("running"),  # its heartbeat decides
        row("requested", run=None),  # it may still claim the row
        row("failed", run="an earlier one"),
    ],
    ids=["works", "may claim", "may retry"],
)
def test_a_run_that_its_row_needs_is_not_an_orphan(needed: TrainingRunRow) -> None:
    assert find_orphaned_runs([(started(), needed)], LIMIT) == []


@pytest.mark.parametrize(
    "unneeded",
    [
        row("gate_passed"),
        row("gate_failed"),
        row("skipped", run=None),
        row("failed"),
        row("running", run="another"),
        row("requested", run=None, dispatch=2),
    ],
    ids=["passed", "failed gate", "skipped", "failed attempt", "another run", "dispatched again"],
)
def test_a_run_that_its_row_does_not_need_is_an_orphan_after_the_limit(unneeded: TrainingRunRow) -> None:
    [orphan] = find_orphaned_runs([(started(), unneeded)], LIMIT)
    assert orphan.run_id == "r"
    assert (
        f"training run 7 has been {unneeded.status} for" in orphan.reason
        and "900 s are allowed" in orphan.reason
    )


def test_a_run_that_deploys_after_its_verdict_is_given_time() -> None:
    assert find_orphaned_runs([(started(), row("gate_passed", idle=LIMIT))], LIMIT) == []
    assert find_orphaned_runs([(started(seconds=30), row("gate_passed"))], LIMIT) == []
    assert find_orphaned_runs([(started(seconds=LIMIT), row("gate_passed"))], LIMIT) == []
    assert find_orphaned_runs([(started(seconds=LIMIT + 1), row("gate_passed"))], LIMIT) != []


def test_a_passed_candidate_whose_run_died_before_deployment_is_deployed() -> None:
    decision = decide_missed_deployment(PASSED, latest("failed"), 3)
    assert isinstance(decision, DeployDecision)
    assert (decision.candidate, decision.replaces_run_id) == ("v2", "r")
    assert "training run 7 has passed and v2 is not deployed" in decision.reason


def test_a_deployment_that_died_is_tried_again_as_often_as_allowed() -> None:
    decision = decide_missed_deployment(PASSED, latest("failed", deployment_runs=2), 3)
    assert isinstance(decision, DeployDecision) and decision.reason.endswith("its Dagster run r died")
    assert decision.id == 7


def test_a_candidate_that_passed_during_a_live_rollout_is_deployed_after_it() -> None:
    rejected = LatestRun(DagsterRunState("r", "failed", 7200.0, 0), deployment_failed=True, deployment_runs=0)
    waiting = UndeployedCandidate(7, "v2", live_rollout=4, rollout_ended_seconds=90_000.0)
    assert "it waits for rollout 4 to end" in decide_missed_deployment(waiting, rejected, 3)
    decision = decide_missed_deployment(UndeployedCandidate(7, "v2", rollout_ended_seconds=60.0), rejected, 3)
    assert isinstance(decision, DeployDecision) and decision.reason.endswith(
        "the rollout it waited for has ended"
    )
    for seconds in (7200.0, 7201.0):  # it ended no later than the deployment failed
        assert "logged the reason" in decide_missed_deployment(
            UndeployedCandidate(7, "v2", rollout_ended_seconds=seconds), rejected, 3
        )


@pytest.mark.parametrize(
    ("latest_run", "reason"),
    [
        (None, "Dagster has no run of it"),
        (latest("started"), "its Dagster run r is started"),
        (latest("queued"), "its Dagster run r is queued"),
        (latest("canceled"), "its Dagster run r was canceled"),
        (latest("succeeded"), "its Dagster run r has succeeded"),
        (latest("failed", deployment_failed=True), "its Dagster run r logged the reason"),
        (latest("created"), "its Dagster run r is created"),
        (latest("failed", deployment_runs=3), "3 deployment runs have died"),
        (latest("failed", deployment_runs=4), "4 deployment runs have died"),
    ],
)
def test_no_deployment_starts_if_a_run_is_active_or_has_failed_with_an_error(
    latest_run: LatestRun | None, reason: str
) -> None:
    assert reason in decide_missed_deployment(PASSED, latest_run, 3)
