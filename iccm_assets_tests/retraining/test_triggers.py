"""When a retraining starts (T1-T6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.registry.training_runs import TriggerFired, blocking_reason
from iccm_assets.retraining.triggers import (
    EmergencyStatus,
    QualityMeasurement,
    TriggerSkipped,
    below_minimum,
    decide_data_threshold,
    decide_degradation,
    decide_weekly,
    manual_trigger,
    should_start_emergency,
)
from iccm_assets.settings import TriggerSettings

T = TriggerSettings()
SUNDAY = datetime(2026, 1, 4, 2, 0, tzinfo=UTC)


def test_the_weekly_trigger_requires_fifty_examples() -> None:
    assert decide_weekly(SUNDAY, 49, T) == TriggerSkipped("49 of 50 new examples")
    fired = decide_weekly(SUNDAY, 50, T)
    assert fired == TriggerFired("weekly", "weekly:2026-W01", "50 new examples, 50 required")


def test_the_weekly_key_is_the_iso_week_in_utc() -> None:
    east = timezone(timedelta(hours=14))
    still_sunday = datetime(2026, 1, 5, 3, 0, tzinfo=east)
    assert decide_weekly(still_sunday, 99, T).key == "weekly:2026-W01"
    assert decide_weekly(datetime(2025, 12, 28, 2, 0, tzinfo=UTC), 99, T).key == "weekly:2025-W52"


@pytest.mark.parametrize(
    ("hour", "minute", "examples", "outcome"),
    [
        (2, 59, 500, TriggerSkipped("02:59 UTC, runs from 03:00 on")),
        (3, 0, 41, TriggerSkipped("41 of 100 new examples")),
        (3, 0, 99, TriggerSkipped("99 of 100 new examples")),
        (3, 0, 100, "data_threshold:2026-01-04"),
        (23, 59, 140, "data_threshold:2026-01-04"),
    ],
)
def test_the_data_trigger_fires_once_a_day_from_a_hundred_examples(
    hour: int, minute: int, examples: int, outcome: TriggerSkipped | str
) -> None:
    decision = decide_data_threshold(SUNDAY.replace(hour=hour, minute=minute), examples, T)
    assert (decision.key if isinstance(decision, TriggerFired) else decision) == outcome


def measured(
    mean: float | None, error: float | None = 0.02, n: int = 240, baseline: float | None = 0.85
) -> QualityMeasurement:
    return QualityMeasurement(7, "v3", "production_holdout", n, mean, error, baseline)


def test_a_significant_drop_is_an_emergency_keyed_by_its_measurement() -> None:
    fired = decide_degradation(measured(0.75), T)
    assert isinstance(fired, TriggerFired)
    assert (fired.key, fired.emergency, fired.trigger) == ("degradation:7", True, "degradation")
    assert "0.100 below its baseline 0.850 (n 240, confidence 0.994" in fired.reason


@pytest.mark.parametrize(
    ("measurement", "words"),
    [
        (measured(0.81), "0.040 below"),
        (measured(0.79), "confidence 0.691"),
        (measured(0.79, error=0.2), "confidence 0.520"),
        (measured(0.80, error=0.0), "0.050 below"),
        (measured(None), "not comparable"),
        (measured(0.5, error=None), "not comparable"),
        (measured(0.5, baseline=None), "not comparable"),
        (measured(float("nan")), "not comparable"),
        (measured(0.5, error=float("inf")), "not comparable"),
        (measured(0.5, baseline=float("inf")), "not comparable"),
        (measured(0.0, n=1), "1 of 20 items are too few"),
        (measured(0.95), "-0.100 below"),
    ],
)
def test_a_small_insignificant_or_unmeasured_drop_is_no_emergency(
    measurement: QualityMeasurement, words: str
) -> None:
    decision = decide_degradation(measurement, T)
    assert isinstance(decision, TriggerSkipped)
    assert words in decision.reason


def test_a_few_items_that_all_agree_do_not_prove_a_drop() -> None:
    assert isinstance(decide_degradation(measured(0.78, error=0.0, n=12), T), TriggerSkipped)
    assert isinstance(decide_degradation(measured(0.78, error=0.0, n=240), T), TriggerFired)


@pytest.mark.parametrize(("n", "fires"), [(20, False), (240, True)])
@pytest.mark.parametrize("error", [0.0, 1e-9])
def test_a_mean_is_known_no_better_than_to_a_single_item(n: int, fires: bool, error: float) -> None:
    decision = decide_degradation(measured(0.78, error=error, n=n), T)
    assert isinstance(decision, TriggerFired) == fires
    assert ("too few" in decision.reason) is False


@pytest.mark.parametrize(
    ("mean", "confidence", "fires"),
    [(0.80, 1.0, False), (0.799, 0.99, True), (0.799, 0.989, False), (0.7, 0.0, False), (0.90, 1.0, False)],
)
def test_a_drop_is_above_the_allowed_one_with_the_required_confidence(
    mean: float, confidence: float, fires: bool
) -> None:
    decision = decide_degradation(replace(measured(mean), confidence=confidence), T)
    assert isinstance(decision, TriggerFired) == fires


@pytest.mark.parametrize(("n", "fires"), [(19, False), (20, True)])
def test_a_drop_on_twenty_items_can_be_an_emergency(n: int, fires: bool) -> None:
    assert (
        isinstance(decide_degradation(replace(measured(0.1), n=n, confidence=1.0), T), TriggerFired) == fires
    )


def test_the_confidence_is_that_of_the_normal_distribution() -> None:
    # One standard error above the allowed drop: 84.1 %.
    assert "confidence 0.841" in decide_degradation(measured(0.78), T).reason
    assert "confidence 0.841" in decide_degradation(measured(0.75, error=0.0, n=20), T).reason
    assert "confidence 0.159" in decide_degradation(measured(0.82), T).reason


def test_the_effect_of_the_cap_is_in_the_reason() -> None:
    assert decide_weekly(SUNDAY, 50, T, "9 over the cap").reason == (
        "50 new examples, 50 required; 9 over the cap"
    )
    late = SUNDAY.replace(hour=4)
    assert decide_data_threshold(late, 3, T, "cap").reason == "3 of 100 new examples; cap"


def test_a_manual_request_keeps_its_key_or_gets_a_unique_one() -> None:
    assert manual_trigger("release-4").key == manual_trigger("release-4", "again").key == "manual:release-4"
    assert manual_trigger().key != manual_trigger().key
    assert manual_trigger(emergency=True).emergency and not manual_trigger().emergency
    assert manual_trigger().reason == "requested manually" and manual_trigger(reason="new").reason == "new"


def test_no_two_triggers_share_a_key() -> None:
    keys = {
        decide_weekly(SUNDAY, 99, T).key,
        decide_data_threshold(SUNDAY.replace(hour=4), 100, T).key,
        manual_trigger("2026-W01").key,
    }
    assert len(keys) == 3


def test_fewer_than_twenty_examples_are_not_trained_on() -> None:
    assert below_minimum(19, T) == TriggerSkipped("19 of 20 new examples, too few to train on")
    assert below_minimum(20, T) is None


@pytest.mark.parametrize(
    ("emergency", "running", "rollout", "ahead", "reason"),
    [
        (False, None, None, None, None),
        (False, 3, None, None, "training run 3 is running"),
        (True, 3, None, None, "training run 3 is running"),
        (False, None, 8, None, "rollout 8 is live"),
        (False, None, None, 5, "the emergency of training run 5 goes first"),
        (True, None, None, 5, None),
    ],
)
def test_one_run_at_a_time_none_during_a_rollout_emergencies_first(
    emergency: bool, running: int | None, rollout: int | None, ahead: int | None, reason: str | None
) -> None:
    assert blocking_reason(emergency, running, rollout, ahead) == reason


def dropped(number: int, name: str = "canary_set", hours: int = 0, mean: float = 0.6) -> QualityMeasurement:
    at = SUNDAY + timedelta(hours=hours)
    return QualityMeasurement(number, "v3", name, 240, mean, 0.02, 0.85, at)


def test_a_drop_on_both_sets_is_one_emergency() -> None:
    fired = should_start_emergency([dropped(7), dropped(8, "production_holdout")], EmergencyStatus(), T)
    assert isinstance(fired, TriggerFired) and fired.key == "degradation:7"


@pytest.mark.parametrize(
    ("emergency", "words"),
    [
        (EmergencyStatus(4, "waiting"), "training run 4, an emergency, is waiting"),
        (EmergencyStatus(4, "running"), "training run 4, an emergency, is running"),
        (
            EmergencyStatus(4, "gate_passed", SUNDAY, rollout=2),
            "rollout 2 of an emergency's candidate is live",
        ),
        (
            EmergencyStatus(4, "gate_failed", SUNDAY),
            "not measured since training run 4, an emergency, ended gate_failed",
        ),
    ],
)
def test_a_drop_starts_no_second_emergency_while_one_is_in_progress(
    emergency: EmergencyStatus, words: str
) -> None:
    decision = should_start_emergency([dropped(7)], emergency, T)
    assert isinstance(decision, TriggerSkipped)
    assert words in decision.reason and "0.250 below its baseline" in decision.reason


def test_a_drop_measured_again_after_a_failed_emergency_is_a_new_cause() -> None:
    fired = should_start_emergency([dropped(9, hours=6)], EmergencyStatus(4, "gate_failed", SUNDAY), T)
    assert isinstance(fired, TriggerFired) and fired.key == "degradation:9"


def test_no_measurement_and_no_drop_are_stated_as_reasons() -> None:
    assert "not been measured" in should_start_emergency([], EmergencyStatus(), T).reason
    both = should_start_emergency(
        [dropped(1, mean=0.85), dropped(2, "production_holdout", mean=0.83)], EmergencyStatus(), T
    )
    assert isinstance(both, TriggerSkipped)
    assert "canary_set: 0.850" in both.reason and "production_holdout: 0.830" in both.reason


@given(
    st.lists(st.builds(dropped, st.integers(1, 9), st.sampled_from(["canary_set", "production_holdout"]))),
    st.builds(EmergencyStatus, st.just(4), st.sampled_from(["waiting", "running"]), st.none(), st.none()),
)
def test_no_measurement_starts_a_second_emergency_while_one_is_in_progress(
    measurements: list[QualityMeasurement], emergency: EmergencyStatus
) -> None:
    assert isinstance(should_start_emergency(measurements, emergency, T), TriggerSkipped)


@pytest.mark.parametrize("status", [EmergencyStatus(), EmergencyStatus(4, "running")])
def test_without_a_drop_its_numbers_are_the_only_reason(status: EmergencyStatus) -> None:
    small, none = measured(0.84), measured(0.85)
    decision = should_start_emergency([small, none], status, T)
    reasons = [decide_degradation(measurement, T).reason for measurement in (small, none)]
    assert decision == TriggerSkipped("; ".join(reasons))
