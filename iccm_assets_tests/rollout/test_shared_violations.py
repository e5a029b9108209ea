"""A guardrail that production violates, too: it holds the stage, with one alert, in every live state (R5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from iccm_assets.rollout.actions import Alert, RollBack
from iccm_assets.rollout.commands import apply_command
from iccm_assets.rollout.observation import HealthWindow, RequestCounts, SessionScore
from iccm_assets.rollout.summary import list_waiting_conditions
from iccm_assets_tests.factories.decision_driver import SHORT, Drive, make_observation

# Enough of each quantity for its guardrail; a rollout without a violation would leave the stage.
PATIENT = replace(SHORT, max_hold_seconds=10**6, health_interval_seconds=300.0)


def floor_alerts(drive):
    actions = [action for decision in drive.decisions for action in decision.actions]
    return [
        action.key
        for action in actions
        if isinstance(action, Alert) and action.title == "Production violates guardrail"
    ]


def failing(canary, production):
    """Errors, variances or pass rates of both arms: a tick's observation with these means."""

    def observe(drive, seconds=100.0):
        state, now = drive.state, drive.now + timedelta(seconds=seconds)
        arms = [("canary", canary)] + ([("production", production)] if state.stage < 3 else [])
        sessions, counts, windows = [], {}, {}
        for arm, (rate, variance, error_rate) in arms:
            sessions += [SessionScore(arm, state.stage, rate, variance)] * 4
            errors = round(40 * error_rate)
            counts[arm] = RequestCounts(40, errors)
            windows[f"{arm}_window"] = HealthWindow(12, 12 * rate, 12, 12 * variance, 40, errors)
        if state.stage == 3:
            counts["production"], windows["production_window"] = RequestCounts(), HealthWindow()

        return replace(make_observation(state, now), sessions=tuple(sessions), **counts, **windows)

    return observe


GOOD = (0.9, 0.001, 0.0)
VIOLATIONS = {
    "pass rate": (0.0, 0.001, 0.0),
    "variance": (0.9, 0.24, 0.0),
    "error rate": (0.9, 0.001, 0.5),
}


def drive_on(drive, observe, ticks):
    for _ in range(ticks):
        if drive.state.is_live:
            drive.tick(100.0, observe(drive))
    return drive


@pytest.mark.parametrize("evidence", ["sequential", "point"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("quantity", VIOLATIONS)
def test_both_arms_under_a_limit_hold_the_stage_with_one_alert(quantity, stage, evidence):
    both = VIOLATIONS[quantity]
    drive = Drive(replace(PATIENT, evidence=evidence)).until(stage)
    if stage == 3:  # the bake has no production arm: its totals are from before
        state = drive.state
        rate, variance, error_rate = both
        total = replace(
            state.evidence.production_total,
            pass_rate_sum=rate * state.evidence.production_total.sessions,
            variance_sum=variance * state.evidence.production_total.variance_count,
            requests=100,
            errors=round(100 * error_rate),
        )
        drive.state = replace(state, evidence=replace(state.evidence, production_total=total))
    drive_on(drive, failing(both, both), 40)
    assert (drive.state.state, drive.state.stage) == ("holding", stage), drive.state.reason
    assert drive.state.hold_reason == "guardrail"
    assert "production violates the guardrail, too" in drive.state.reason
    assert drive.state.has_enough_time and drive.state.has_enough_sessions
    keys = floor_alerts(drive)
    assert keys and len(keys) == len(set(keys))
    assert "production to meet the guardrail that it violates, too" in list_waiting_conditions(drive.state)
    held = [event for event in drive.events if event == "held"]
    assert len(held) == 1  # a stable hold, not one that comes and goes


@pytest.mark.parametrize("evidence", ["sequential", "point"])
@pytest.mark.parametrize("quantity", VIOLATIONS)
def test_the_candidate_alone_under_a_limit_is_rolled_back(quantity, evidence):
    drive = Drive(replace(PATIENT, evidence=evidence)).until(1)
    drive_on(drive, failing(VIOLATIONS[quantity], GOOD), 40)
    assert drive.state.state == "rolled_back"
    assert not floor_alerts(drive)


@pytest.mark.parametrize("evidence", ["sequential", "point"])
def test_neither_an_approval_nor_a_pause_lets_both_arms_under_the_floor_advance(evidence):
    both = failing(VIOLATIONS["pass rate"], VIOLATIONS["pass rate"])
    drive = Drive(replace(PATIENT, evidence=evidence)).until(1)
    drive_on(drive, both, 4)
    drive.take(apply_command(drive.state, "approve", "ada", drive.now))
    drive_on(drive, both, 10)
    assert (drive.state.state, drive.state.stage) == ("holding", 1)
    drive.take(apply_command(drive.state, "pause", "ada", drive.now))
    drive_on(drive, both, 10)
    assert (drive.state.state, drive.state.stage, drive.state.weight) == ("paused", 1, 0.1)
    keys = floor_alerts(drive)
    assert keys and len(keys) == len(set(keys))


def test_a_shared_violation_ends_undecided_after_the_maximum_hold():
    drive = Drive(replace(PATIENT, max_hold_seconds=7200.0)).until(1)
    drive_on(drive, failing(VIOLATIONS["pass rate"], VIOLATIONS["pass rate"]), 100)
    assert drive.state.state == "aborted" and "undecided" in drive.state.reason
    assert "production violates the guardrail, too" in drive.state.reason
    assert not [action for action in drive.decisions[-1].actions if isinstance(action, RollBack)]


def test_the_stage_goes_on_once_production_and_candidate_meet_the_guardrail():
    policy = replace(PATIENT, evidence="point", stage_sessions=(5, 8, 3))
    drive = Drive(policy).until(1)
    drive_on(drive, failing(VIOLATIONS["error rate"], VIOLATIONS["error rate"]), 10)
    assert drive.state.hold_reason == "guardrail"
    drive_on(drive, failing(GOOD, GOOD), 2)
    assert drive.state.stage == 2 and drive.state.hold_reason == ""
