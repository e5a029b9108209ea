"""When a retraining starts (T1-T6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from iccm_assets.learning.triggers import (
    Fire,
    Measurement,
    Skip,
    below_floor,
    data_threshold,
    degradation,
    manual,
    must_wait,
    weekly,
)
from iccm_assets.settings import Triggers

T = Triggers()
SUNDAY = datetime(2026, 1, 4, 2, 0, tzinfo=UTC)


def test_the_weekly_trigger_asks_for_fifty_examples() -> None:
    assert weekly(SUNDAY, 49, T) == Skip("49 of 50 new examples")
    fired = weekly(SUNDAY, 50, T)
    assert fired == Fire("weekly", "weekly:2026-W01", "50 new examples, 50 asked for")


def test_the_weekly_key_is_the_iso_week_in_utc() -> None:
    east = timezone(timedelta(hours=14))
    still_sunday = datetime(2026, 1, 5, 3, 0, tzinfo=east)
    assert weekly(still_sunday, 99, T).key == "weekly:2026-W01"
    assert weekly(datetime(2025, 12, 28, 2, 0, tzinfo=UTC), 99, T).key == "weekly:2025-W52"


@pytest.mark.parametrize(
    ("hour", "minute", "examples", "outcome"),
    [
        (2, 59, 500, Skip("02:59 UTC, looks from 03:00 on")),
        (3, 0, 41, Skip("41 of 100 new examples")),
        (3, 0, 99, Skip("99 of 100 new examples")),
        (3, 0, 100, "data_threshold:2026-01-04"),
        (23, 59, 140, "data_threshold:2026-01-04"),
    ],
)
def test_the_data_trigger_fires_once_a_day_at_a_hundred(
    hour: int, minute: int, examples: int, outcome: Skip | str
) -> None:
    decision = data_threshold(SUNDAY.replace(hour=hour, minute=minute), examples, T)
    assert (decision.key if isinstance(decision, Fire) else decision) == outcome


def measured(
    mean: float | None, error: float | None = 0.02, n: int = 240, baseline: float | None = 0.85
) -> Measurement:
    return Measurement(7, "v3", "production_holdout", n, mean, error, baseline)


def test_a_proven_fall_is_an_emergency_with_the_measurement_as_its_key() -> None:
    fired = degradation(measured(0.75), T)
    assert isinstance(fired, Fire)
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
        (measured(0.0, n=1), "1 items are no evidence"),
        (measured(0.95), "-0.100 below"),
    ],
)
def test_a_small_unproven_or_unmeasured_fall_is_no_emergency(measurement: Measurement, words: str) -> None:
    decision = degradation(measurement, T)
    assert isinstance(decision, Skip)
    assert words in decision.reason


def test_items_that_all_agree_do_not_prove_a_fall_of_a_few() -> None:
    assert isinstance(degradation(measured(0.78, error=0.0, n=12), T), Skip)
    assert isinstance(degradation(measured(0.78, error=0.0, n=240), T), Fire)


def test_a_manual_request_keeps_its_key_or_is_its_own_cause() -> None:
    assert manual("release-4").key == manual("release-4", "again").key == "manual:release-4"
    assert manual().key != manual().key
    assert manual(emergency=True).emergency


def test_no_two_triggers_share_a_key() -> None:
    keys = {
        weekly(SUNDAY, 99, T).key,
        data_threshold(SUNDAY.replace(hour=4), 100, T).key,
        manual("2026-W01").key,
    }
    assert len(keys) == 3


def test_below_twenty_examples_nothing_trains() -> None:
    assert below_floor(19, T) == Skip("19 of 20 new examples, too few to train on")
    assert below_floor(20, T) is None


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
def test_one_at_a_time_none_beside_a_rollout_emergencies_first(
    emergency: bool, running: int | None, rollout: int | None, ahead: int | None, reason: str | None
) -> None:
    assert must_wait(emergency, running, rollout, ahead) == reason
