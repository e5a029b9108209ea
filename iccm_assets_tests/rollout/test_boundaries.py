"""`decide` exactly at its limits: times, samples, leases, holds, and who may start what (R4-R9)."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import pytest

from iccm_assets.errors import InputError
from iccm_assets.rollout.actions import Abort, Alert, Promote, RollBack
from iccm_assets.rollout.assessment import assess
from iccm_assets.rollout.commands import apply_command
from iccm_assets.rollout.decision import decide
from iccm_assets.rollout.observation import (
    ArmTotals,
    HealthWindow,
    ReplayPair,
    RequestCounts,
    SessionScore,
    validation_errors,
)
from iccm_assets.rollout.policy import Policy
from iccm_assets.rollout.state import State
from iccm_assets.settings import EvaluationSettings, RolloutSettings
from iccm_assets_tests.factories.decision_driver import NOW, PRODUCTION, SHORT, Drive, make_observation

SECOND = timedelta(seconds=1)


def alerts(decision):
    return [action for action in decision.actions if isinstance(action, Alert)]


def running(stage=1, **changes):
    """A drive in a stage, a tick after its beginning, with these fields of its state."""
    drive = Drive().until(stage)
    drive.tick()
    drive.state = replace(drive.state, **changes)
    return drive


# --- commands and the start


def test_a_paused_rollout_starts_no_traffic_before_it_is_resumed():
    drive = Drive()
    drive.take(apply_command(drive.state, "pause", "ada", drive.now))
    for _ in range(5):
        drive.tick()
    assert (drive.state.state, drive.state.weight, drive.state.stage) == ("paused", 0.0, 1)
    drive.take(apply_command(drive.state, "resume", "ada", drive.now))
    assert (drive.state.state, drive.state.weight) == ("ramping", 0.0)
    drive.tick()
    assert drive.state.weight == 0.1


def test_the_first_traffic_needs_reliable_scores():
    drive = Drive()
    drive.tick(fresh_at=None)
    assert (drive.state.state, drive.state.weight) == ("holding", 0.0)
    started = drive.tick()
    assert (drive.state.state, drive.state.weight, drive.state.stage) == ("ramping", 0.1, 1)
    assert drive.state.stage_entered_at == drive.now and drive.state.held_since is None
    assert drive.state.stage_seconds == drive.state.healthy_seconds == 0.0
    assert [event.event_type for event in started.events] == ["started"]


def test_a_paused_rollout_does_not_advance_and_its_maximum_hold_still_ends_it():
    drive = running(healthy_seconds=10_000.0)
    drive.take(apply_command(drive.state, "pause", "ada", drive.now))
    for _ in range(5):
        drive.tick(n=8)
    assert (drive.state.state, drive.state.stage) == ("paused", 1)
    assert alerts(drive.decisions[-1]) == []
    drive.state = replace(drive.state, stage_seconds=7_100.0)
    drive.tick()
    assert drive.state.state == "aborted"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resumed_rollout_is_in_the_state_of_its_stage(stage):
    drive = running(stage)
    paused = drive.take(apply_command(drive.state, "pause", "ada", drive.now, "a look"))
    assert paused.events[-1].notes == "by ada: a look" and "by ada: a look" in paused.state.reason
    drive.now += timedelta(seconds=50)
    resumed = drive.take(apply_command(drive.state, "resume", "bob", drive.now))
    assert resumed.state.state == ("baking" if stage == 3 else "ramping")
    assert resumed.events[-1].notes == "by bob" and resumed.events[-1].actor == "bob"
    assert resumed.state.observed_at == drive.now and resumed.state.weight == {1: 0.1, 2: 0.5, 3: 1.0}[stage]
    assert resumed.state.revision == paused.state.revision + 1


def test_an_approval_is_of_its_stage_its_actor_and_its_time():
    drive = running()
    drive.take(apply_command(drive.state, "approve", "ada", drive.now))
    (approval,) = drive.state.approvals
    assert (approval.stage, approval.actor, approval.approved_at) == (1, "ada", drive.now)
    assert drive.state.state == "ramping" and drive.state.has_enough_time
    (event,) = drive.decisions[-1].events
    assert (event.event_type, event.actor) == ("approved", "ada") and event.notes.startswith(
        "approved by ada;"
    )


@pytest.mark.parametrize(
    ("stage", "command", "state", "actions", "event_version", "event_weight"),
    [
        (1, "abort", "aborted", [Abort("aborted")], "candidate", 0.0),
        (2, "abort", "aborted", [Abort("aborted")], "candidate", 0.0),
        (3, "abort", "rolled_back", [RollBack("aborted", restore=True)], "former", 1.0),
        (2, "rollback", "rolled_back", [RollBack("manual", restore=False)], "candidate", 0.0),
        (3, "rollback", "rolled_back", [RollBack("manual", restore=True)], "former", 1.0),
    ],
)
def test_a_command_that_ends_a_rollout_says_who_serves(
    stage, command, state, actions, event_version, event_weight
):
    drive = running(stage)
    ended = drive.take(apply_command(drive.state, command, "ada", drive.now, "enough"))
    assert drive.state.state == state and drive.state.closed_at == drive.now
    assert drive.state.held_since is None and drive.state.hold_reason == ""
    assert [action for action in ended.actions if not isinstance(action, Alert)] == actions
    (alert,) = alerts(ended)
    assert alert.key.startswith(f"rollout-{drive.state.id}-")
    assert alert.severity == ("info" if state == "aborted" else "warning")
    assert alert.title == ("Rollout aborted" if state == "aborted" else "Model Rollback")
    assert "enough" in alert.body and ("serves again" in alert.body) == (stage == 3)
    (event,) = ended.events
    assert (event.from_state, event.to_state) == ("baking" if stage == 3 else "ramping", state)
    assert (event.version, event.weight, event.timestamp) == (event_version, event_weight, drive.now)
    assert event.evidence["stage"] == stage


# --- the end of a stage


def test_a_stage_ends_at_its_healthy_time_and_not_before():
    early, due = running(healthy_seconds=499.0), running(healthy_seconds=500.0)
    for drive in (early, due):
        drive.tick(100.0, n=8)
    assert early.state.stage == 1 and due.state.stage == 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_ends_with_its_sessions_and_not_before(stage):
    needed = SHORT.stage_sessions[stage - 1]
    for missing in (1, 0):
        drive = Drive().until(stage)
        drive.state = replace(drive.state, healthy_seconds=10_000.0)
        decision = drive.tick(n=needed - missing)
        if missing:
            assert (drive.state.state, drive.state.stage) == ("holding", stage)
            assert drive.state.hold_reason == "samples"
        else:
            assert drive.state.state == "completed" if stage == 3 else drive.state.stage == stage + 1
            promoted = any(isinstance(action, Promote) for action in decision.actions)
            assert promoted == (stage == 2)
            assert decision.events[-1].event_type == ("advanced", "promoted", "completed")[stage - 1]


def test_a_completed_rollout_keeps_its_weight_and_a_stage_starts_from_nothing():
    drive = Drive().until(2)
    assert drive.state.evidence.canary.sessions == 0 and drive.state.evidence.canary_total.sessions > 0
    assert (drive.state.healthy_seconds, drive.state.stage_seconds) == (0.0, 0.0)
    assert drive.state.total_seconds > 0 and drive.state.hold_reason == ""
    while drive.state.is_live:
        drive.tick()
    assert (drive.state.state, drive.state.weight, drive.state.closed_at) == ("completed", 1.0, drive.now)


def test_the_maximum_hold_ends_the_stage_when_it_is_reached():
    early, due = running(stage_seconds=7_099.0), running(stage_seconds=7_100.0)
    for drive in (early, due):
        drive.tick(100.0, n=0)
    assert early.state.is_live and due.state.state == "aborted"
    assert "undecided after 0.1 days" in due.state.reason


def test_an_undecided_rollout_names_its_data_issues():
    drive = running(stage_seconds=7_150.0)
    drive.tick(100.0, None)
    assert drive.state.state == "aborted" and "nothing could be observed" in drive.state.reason


# --- time and lease


def test_a_tick_counts_at_most_a_lease_and_a_tick_at_the_end_of_the_lease_is_in_time():
    in_time, late = running(), running()
    healthy = in_time.state.healthy_seconds
    first, second = in_time.tick(180.0), late.tick(180.001)
    assert in_time.state.healthy_seconds == healthy + 180.0 and first.events == ()
    assert late.state.healthy_seconds == healthy
    assert [event.event_type for event in second.events] == ["lapsed", "recovered"]
    assert late.state.stage_seconds == pytest.approx(in_time.state.stage_seconds)
    assert late.state.lease_until == late.now + timedelta(seconds=180)


def test_a_lapse_has_no_effect_on_the_traffic_of_the_bake():
    drive = running(3)
    lapsed, recovered = drive.tick(1000.0).events[:2]
    assert (lapsed.weight, recovered.weight) == (1.0, 1.0)
    assert lapsed.timestamp == drive.now - timedelta(seconds=820)
    assert lapsed.evidence == {"gap_seconds": 1000.0, "lapse_seconds": 820.0}
    for event in (lapsed, recovered):
        assert (event.from_state, event.to_state, event.version) == ("baking", "baking", "candidate")
    assert lapsed.notes == "no tick for 1000 s, the lease expired 820 s ago; production had all traffic"
    assert recovered.notes.endswith("820 s ago; that time does not count")
    assert recovered.timestamp == drive.now and recovered.evidence == lapsed.evidence


def test_traffic_that_no_tick_was_seen_for_lapsed_when_its_stage_began():
    state = replace(running().state, lease_until=None, observed_at=None)
    now = state.stage_entered_at + timedelta(seconds=70)
    lapsed, _ = assess(state, None, now).events
    assert lapsed.timestamp == state.stage_entered_at
    assert lapsed.evidence == {"gap_seconds": 0.0, "lapse_seconds": 70.0}


def test_without_traffic_there_is_no_lease_to_lapse_and_no_healthy_time():
    drive = Drive()
    drive.tick(ready=1)
    decision = drive.tick(1000.0, ready=1)
    assert [event.event_type for event in decision.events] == []
    assert drive.state.healthy_seconds == 0.0 and drive.state.stage_seconds == 180.0
    # Reliable data alone is no healthy time, either.
    drive.take(apply_command(drive.state, "pause", "ada", drive.now))
    drive.tick()
    drive.take(apply_command(drive.state, "resume", "ada", drive.now))
    later = drive.now + SECOND
    assessed = assess(drive.state, make_observation(drive.state, later), later)
    assert assessed.before.hold_reason == "" and assessed.data_issues == ()
    assert (assessed.state.weight, assessed.state.healthy_seconds) == (0.0, 0.0)


def test_the_canary_weight_lasts_to_the_end_of_the_lease():
    state = running(2).state
    assert state.canary_weight(state.lease_until) == 0.5
    assert state.canary_weight(state.lease_until + timedelta(microseconds=1)) == 0.0
    assert replace(state, lease_until=None).canary_weight(NOW) == 0.0


def test_the_hour_of_the_evidence_is_that_of_the_rollouts_observed_time():
    drive = running(total_seconds=3_499.0)
    drive.tick(100.0)
    assert drive.state.evidence.hour == 0
    drive.tick(1.0)
    assert drive.state.evidence.hour == 1


# --- what makes data unreliable


@pytest.mark.parametrize(
    ("changes", "reliable"),
    [
        ({"fresh_at": -1800.0}, True),
        ({"fresh_at": -1801.0}, False),
        ({"fresh_at": 60.0}, True),
        ({"fresh_at": 61.0}, False),
        ({"replicas": 1, "ready": 1}, True),
        ({"replicas": 3, "ready": 2}, False),
        ({"replicas": 0, "ready": 0}, False),
    ],
)
def test_data_is_reliable_up_to_its_limits(changes, reliable):
    drive = Drive(replace(SHORT, max_data_age_seconds=1800.0)).until(1)
    drive.tick()
    now = drive.now + timedelta(seconds=100)
    if "fresh_at" in changes:
        changes = {"fresh_at": now + timedelta(seconds=changes["fresh_at"])}
    drive.tick(100.0, replace(make_observation(drive.state, now), **changes))
    assert (drive.state.hold_reason == "") == reliable and (drive.state.state == "ramping") == reliable


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ({"sessions": (SessionScore("canary", 1, 1.0, 0.25), SessionScore("production", 1, 0.0, 0.0))}, True),
        ({"sessions": (SessionScore("canary", 1, 1.001),)}, False),
        ({"sessions": (SessionScore("canary", 1, -0.001),)}, False),
        ({"sessions": (SessionScore("canary", 1, 0.5, 0.251),)}, False),
        ({"sessions": (SessionScore("canary", 1, 0.5, -0.001),)}, False),
        ({"canary": RequestCounts(5, 5, 5, 5)}, True),
        ({"canary": RequestCounts(5, 6, 0, 0)}, False),
        ({"canary": RequestCounts(5, 0, 6, 0)}, False),
        ({"canary": RequestCounts(5, 0, 4, 5)}, False),
        ({"canary": RequestCounts(0, 0, 0, 0)}, True),
        ({"production": RequestCounts(5, 0, -1, 0)}, False),
        ({"production_window": HealthWindow(0, 0.0, 0, 0.0, 5, 5, 5, 0.0)}, True),
        ({"production_window": HealthWindow(requests=5, errors=6)}, False),
        ({"production_window": HealthWindow(latency_p95=-0.001)}, False),
        ({"canary_window": HealthWindow(2, -0.1)}, False),
        ({"canary_window": HealthWindow(2, 2.0, 2, 2.5)}, False),
        ({"canary_window": HealthWindow(timed=-1)}, False),
        ({"ready": 2, "replicas": 2}, True),
        ({"ready": -1, "replicas": 2}, False),
        ({"ready": 1.0, "replicas": 2}, False),
    ],
)
def test_an_observation_is_valid_up_to_its_limits(changes, valid):
    observation = replace(make_observation(running().state, NOW), **changes)
    assert (validation_errors(observation, observation.since, NOW) == ()) == valid


def test_every_invalid_score_of_an_observation_is_counted():
    invalid = SessionScore("canary", 1, 2.0), SessionScore("canary", 1, 0.5), SessionScore("canary", 1, -1.0)
    replay = ReplayPair(0.5, 0.5), ReplayPair(2.0, 0.5), ReplayPair(0.5, -1.0)
    observation = replace(make_observation(running().state, NOW), sessions=invalid, replay=replay)
    (error,) = validation_errors(observation, observation.since, NOW)
    assert error.startswith("4 scores are not pass rates in [0, 1]")


def test_a_mean_pass_rate_is_at_most_one_although_its_sum_of_floats_is_more():
    total = math.nextafter(3.0, 4.0)
    assert ArmTotals(3, total).pass_rate == 1.0
    observation = replace(make_observation(running().state, NOW), canary_window=HealthWindow(3, total))
    assert validation_errors(observation, observation.since, NOW) == ()


def test_an_empty_window_has_measured_nothing():
    window = HealthWindow()
    assert (window.sessions, window.requests, window.errors, window.timed) == (0, 0, 0, 0)
    assert window.pass_rate is window.variance is window.error_rate is window.latency_p95 is None


# --- holds and their alerts


def test_a_hold_begins_once_and_ends_with_its_cause():
    drive = running()
    drive.tick(fresh_at=None)
    began = drive.now
    assert drive.state.held_since == began and drive.state.state == "holding"
    drive.tick(fresh_at=None)
    assert drive.state.held_since == began
    resumed = drive.tick()
    assert drive.state.held_since is None and drive.state.hold_reason == ""
    assert [event.event_type for event in resumed.events] == ["resumed"]


@pytest.mark.parametrize(("seconds", "alerted"), [(498.0, False), (500.0, True)])
def test_loading_raises_no_alert_before_its_timeout(seconds, alerted):
    drive = Drive(replace(SHORT, load_timeout_seconds=600.0))
    drive.tick(ready=0)
    drive.state = replace(drive.state, stage_seconds=seconds)
    decision = drive.tick(100.0, ready=0)
    assert [alert.title for alert in alerts(decision)] == (["Rollout held"] if alerted else [])


def test_a_hold_for_data_is_a_warning_of_its_stage_and_cause():
    drive = running(2)
    (alert,) = alerts(drive.tick(fresh_at=None))
    assert alert.severity == "warning" and alert.title == "Rollout held"
    assert alert.key == "rollout-7-held-2-unreliable_data" and alert.body.startswith("candidate: ")
    assert "freshness is unknown" in alert.body


@pytest.mark.parametrize(
    ("sessions", "stage_seconds", "severity"),
    [
        (0, 800.0, "warning"),  # no pace: no forecast
        (4, 800.0, "info"),  # one more in a quarter of the time so far
        (1, 2_000.0, "warning"),  # four more take 8 400 s, more than is left
        (1, 1_340.0, "info"),  # four more take 5 760 s, as much as is left
        (1, 1_340.2, "warning"),  # a second too late
    ],
)
def test_a_hold_for_samples_is_a_warning_if_they_will_be_too_late(sessions, stage_seconds, severity):
    drive = Drive().until(1)
    drive.state = replace(drive.state, healthy_seconds=600.0, stage_seconds=stage_seconds)
    (alert,) = alerts(drive.tick(100.0, n=sessions))
    assert (alert.title, alert.severity) == ("Rollout waiting for samples", severity)
    assert alert.key == "rollout-7-held-1-samples"


def test_plain_means_check_health_every_so_often():
    policy = replace(SHORT, evidence="point", health_interval_seconds=300.0, health_requests=4)
    drive = Drive(policy).until(1)
    checked = drive.state.checked_at
    assert checked is not None
    drive.tick(299.0 - (drive.now - checked).total_seconds(), requests=4, errors=4)
    assert drive.state.is_live and drive.state.checked_at == checked
    drive.tick(1.0, requests=4, errors=4)
    assert drive.state.state == "rolled_back" and "error_rate_spike" in drive.state.reason


def test_an_event_records_the_numbers_of_its_stage():
    drive = running()
    drive.tick(replay=(ReplayPair(0.5, 0.5),) * 3, n=10)
    (event,) = drive.take(apply_command(drive.state, "pause", "ada", drive.now)).events
    evidence = drive.state.evidence
    assert event.evidence["comparisons"] == evidence.blocks + 3 and evidence.blocks == 10
    assert event.evidence["canary"]["sessions"] == evidence.canary.sessions == 12
    assert event.evidence["stage_seconds"] == event.evidence["healthy_seconds"] == 200.0
    assert event.evidence["e_values"].keys() == evidence.e_values.keys()
    held = drive.tick(fresh_at=None)
    assert held.events == ()  # paused
    drive.take(apply_command(drive.state, "resume", "ada", drive.now))
    (event,) = drive.tick(fresh_at=None).events
    assert event.event_type == "held" and event.evidence["data_issues"] == ["score freshness is unknown"]


def test_a_decision_on_a_closed_rollout_changes_nothing():
    drive = running()
    drive.take(apply_command(drive.state, "abort", "ada", drive.now))
    decision = decide(drive.state, make_observation(drive.state, drive.now), drive.now + SECOND)
    assert decision.state == drive.state and decision.events == decision.actions == ()


# --- forecasts and policies


def test_the_forecast_is_the_later_of_time_and_samples():
    state = running(healthy_seconds=240.0, stage_seconds=300.0).state
    assert state.evidence.canary.sessions == 2  # of 5
    assert state.forecast_hours == pytest.approx(450.0 / 3600)  # three more at one per 150 s
    assert replace(state, stage_seconds=100.0).forecast_hours == pytest.approx(360.0 / 3600)
    approved = apply_command(state, "approve", "ada", NOW).state
    assert approved.forecast_hours == pytest.approx(450.0 / 3600)
    assert replace(state, stage_seconds=0.0).forecast_hours is None
    assert replace(state, stage_seconds=1.0).forecast_hours == pytest.approx(360.0 / 3600)
    enough = replace(state, healthy_seconds=700.0)
    enough = replace(
        enough, evidence=replace(state.evidence, canary=replace(state.evidence.canary, sessions=5))
    )
    assert enough.forecast_hours == 0.0 and enough.has_enough_time and enough.has_enough_sessions
    waived = apply_command(replace(enough, healthy_seconds=240.0), "approve", "ada", NOW).state
    assert waived.forecast_hours == 0.0


def test_the_policy_has_each_setting_in_its_place():
    rollout = RolloutSettings(
        first_stage_hours=1, second_stage_hours=2, bake_hours=3, first_stage_sessions=31,
        second_stage_sessions=32, health_sessions=33, first_stage_drop=0.04, second_stage_drop=0.03,
        health_window_minutes=7, max_data_age_minutes=8, max_hold_days=9, load_timeout_minutes=10,
    )  # fmt: skip
    policy = Policy.from_settings(rollout, EvaluationSettings())
    assert policy.stage_seconds == (3600.0, 7200.0, 10800.0) and policy.stage_sessions == (31, 32, 33)
    assert policy.allowed_drops == (0.04, 0.03) and policy.health_window_seconds == 420.0
    assert policy.max_data_age_seconds == 480.0 and policy.max_hold_seconds == 777_600.0
    assert policy.load_timeout_seconds == 600.0


@pytest.mark.parametrize(
    ("field", "possible", "impossible"),
    [
        *((name, [1e-9, 1 - 1e-9], [0.0, 1.0]) for name in (
            "alpha", "min_pass_rate", "health_pass_rate", "health_error_rate",
        )),
        ("allowed_drops", [(0.0, 0.0), (1 - 1e-9, 0.5)], [(-1e-9, 0.0), (0.0, 1.0)]),
    ],
)  # fmt: skip
def test_a_policy_has_rates_between_zero_and_one(field, possible, impossible):
    for value in possible:
        assert getattr(replace(PRODUCTION, **{field: value}), field) == value
    for value in impossible:
        with pytest.raises(ValueError, match=field):
            replace(PRODUCTION, **{field: value})


@pytest.mark.parametrize(("hold", "possible"), [(86_400.0, False), (86_401.0, True)])
def test_a_stage_must_be_shorter_than_the_longest_hold(hold, possible):
    if possible:
        assert replace(PRODUCTION, max_hold_seconds=hold).max_hold_seconds == hold
    else:
        with pytest.raises(ValueError, match="can never end"):
            replace(PRODUCTION, max_hold_seconds=hold)


@pytest.mark.parametrize(
    "changes", [{"weight": 0.5}, {"stage": 2, "weight": 0.1}, {"stage": 0}, {"state": "baking"}]
)
def test_a_state_that_no_decision_leads_to_is_rejected(changes):
    with pytest.raises(ValueError, match="at stage"):
        replace(State(7, "candidate", "former", SHORT, NOW, NOW), **changes)


def test_a_new_rollout_has_counted_nothing():
    state = State(7, "candidate", "former", SHORT, NOW, NOW)
    assert (state.revision, state.stage, state.weight, state.state) == (0, 1, 0.0, "ramping")
    assert (state.stage_seconds, state.total_seconds, state.healthy_seconds) == (0.0, 0.0, 0.0)
    assert state.watermark == "" and state.approval is None and not state.emergency
    assert (state.evidence.canary.pass_rate, state.evidence.canary_total.sessions) == (None, 0)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"weight": "much"}, "weight"),
        ({"stage": 7}, "row"),
        ({"policy": {"alpha": 2}}, "policy"),
        ({"weight": "much", "stage": "x"}, "stage"),
    ],
)
def test_a_damaged_row_names_its_field(changes, place):
    row = running().state.to_row()
    with pytest.raises(InputError, match=f"rollout 7: {place}"):
        State.from_row({**row, **changes})


def test_the_progress_of_a_stage_is_described_in_numbers():
    state = running(2).state
    assert "stage 2 at 50%: 100 s of 15 min healthy, 2 of 8 scored canary-arm sessions" in state.progress
    assert state.progress.endswith("pass rate 0.800 (production 0.800)")
    assert "production" not in Drive().state.progress
    assert (state.forecast, Drive().state.forecast) == ("decision in 13.3 min", "decision unknown yet")


def test_only_a_stage_that_goes_on_has_a_forecast():
    drive = running(2)
    assert "; decision " in drive.tick().reason
    while (decision := drive.tick()).state.stage == 2:
        assert "; decision " in decision.reason
    assert "; decision " not in decision.events[-1].notes
