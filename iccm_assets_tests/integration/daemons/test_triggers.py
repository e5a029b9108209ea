"""The triggers on real daemons, from a tick to a finished run, exactly one per cause (T1-T3, T6)."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from iccm_assets.db.clock import set_clock
from iccm_assets.monitoring import production_quality
from iccm_assets.monitoring.baseline import AT_DEPLOYMENT, Baseline
from iccm_assets.monitoring.degradation import paired_drop, unpaired_drop
from iccm_assets.registry import versions
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets_tests.factories.daemon_platforms import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("daemons")]

SUNDAY_BEFORE_TWO = datetime(2026, 3, 1, 1, 59, 40, tzinfo=UTC)
MONDAY_AT_FOUR = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)
# How much faster the daemon's clock runs: its minute between two ticks is six seconds, three, or under one.
FAST, FASTER, FASTEST = 10.0, 20.0, 90.0
# A retrain that finds too few examples ends within seconds (T5): enough where only its start is in question.
SHORT = {"ICCM_TRIGGERS__MIN_EXAMPLES": "1000"}
# A clock that jumps by a day must not make a run look lost that was asked for a moment ago.
LONG_TIMEOUTS = {
    "ICCM_TRIGGERS__DISPATCH_TIMEOUT_SECONDS": "1000000",
    "ICCM_TRAINING__HEARTBEAT_TIMEOUT_SECONDS": "1000000",
}

Make = Callable[..., Platform]
ITEMS = 30
BASELINE = 25 / ITEMS  # of the pass rates that `store_measurement` says production had at its deployment


def test_a_hundred_examples_start_exactly_one_retrain_and_ninety_nine_start_none(make_platform: Make) -> None:
    platform = make_platform(MONDAY_AT_FOUR)
    platform.add_examples(99)
    platform.start_daemons(rate=FAST)
    platform.let_tick("new_data_threshold_sensor")
    assert set(platform.skip_reasons("new_data_threshold_sensor")) == {"99 of 100 new examples"}
    assert platform.retrains() == [] == platform.training_runs()

    platform.add_examples(1)
    platform.until_over(1)
    platform.let_tick("new_data_threshold_sensor")
    [row], [run] = platform.training_runs(), platform.retrains()
    assert (row.trigger, row.trigger_key) == ("data_threshold", "data_threshold:2026-03-02")
    assert (run.tags["iccm/training_run_id"], row.dagster_run_id) == (str(row.id), run.run_id)
    assert (row.attempt, row.dispatch, row.status) == (1, 1, "gate_failed")
    assert count_training_examples(platform, row.id) == 100
    assert platform.skip_reasons("new_data_threshold_sensor")[-1] == (
        f"{row.trigger_key} already has a retraining: training run {row.id}, gate_failed"
    )


def test_a_quality_drop_starts_exactly_one_emergency_and_ten_stable_measurements_start_none(
    make_platform: Make,
) -> None:
    # Of this seed no two looks in a row have the same mean, so that each is known to have been seen.
    platform, rng = make_platform(MONDAY_AT_FOUR, **SHORT), np.random.default_rng(7)
    platform.add_examples(30)
    platform.start_daemons(rate=FASTER)
    falls = [BASELINE - measure_and_wait(platform, rng, 0.85) for _ in range(10)]
    assert max(falls) > 0.05, "chance alone has to cross the limit: only evidence may start an emergency"
    assert platform.retrains() == [] == platform.training_runs()

    store_measurement(platform, rng, 0.45)
    platform.until_over(1)
    platform.let_tick("quality_degradation_sensor")
    [row], [run] = platform.training_runs(), platform.retrains()
    assert (row.trigger, row.emergency, row.attempt, row.dispatch) == ("degradation", True, 1, 1)
    assert (run.tags["iccm/training_run_id"], row.dagster_run_id) == (str(row.id), run.run_id)
    assert (
        f"not measured since training run {row.id}" in platform.skip_reasons("quality_degradation_sensor")[-1]
    )


def test_two_daemons_at_once_start_one_run_for_each_trigger(make_platform: Make) -> None:
    # Hours pass for these daemons: none in which a schedule of every six hours has its tick.
    platform = make_platform(MONDAY_AT_FOUR.replace(hour=6, minute=5), **SHORT, **LONG_TIMEOUTS)
    platform.add_examples(60)
    store_measurement(platform, np.random.default_rng(3), 0.45)
    # They share when a sensor ticked last: both look only where its next tick is due again all the time.
    platform.start_daemons(2, rate=FASTEST)
    platform.until_over(1)
    platform.until(lambda: count_evaluations(platform, "new_data_threshold_sensor") >= 2)
    for more_examples, days in ((60, 0), (0, 1), (0, 1)):
        evaluate_all_at_once(platform, more_examples, days)
    platform.until(lambda: len(platform.retrains()) >= 2)
    for sensor in ("quality_degradation_sensor", "retrain_dispatch_sensor"):
        platform.until(lambda sensor=sensor: count_evaluations(platform, sensor) >= 2)
    keys = [row.trigger_key for row in platform.training_runs()]
    assert keys[0].startswith("degradation:")
    assert keys[1:] == [f"data_threshold:2026-03-0{day}" for day in (2, 3, 4)]
    started = [run.tags["iccm/training_run_id"] for run in platform.retrains()]
    assert len(started) == len(set(started)) >= 2


def test_on_sunday_at_two_the_week_is_retrained_or_skipped_with_its_number(make_platform: Make) -> None:
    enough, too_few = (make_platform(SUNDAY_BEFORE_TWO, **SHORT) for _ in range(2))
    enough.add_examples(50)
    too_few.add_examples(49)
    for platform in (enough, too_few):
        platform.start_daemons()
    enough.until_over(1)
    too_few.until(lambda: too_few.ticks("weekly_retrain_schedule"))
    [row], [run] = enough.training_runs(), enough.retrains()
    assert (row.trigger, row.trigger_key) == ("weekly", "weekly:2026-W09")
    assert run.tags["iccm/training_run_id"] == str(row.id)
    assert too_few.skip_reasons("weekly_retrain_schedule") == ["49 of 50 new examples"]
    assert too_few.retrains() == [] == too_few.training_runs()
    for platform in (enough, too_few):
        [tick] = platform.ticks("weekly_retrain_schedule")
        assert datetime.fromtimestamp(tick.timestamp, UTC) == SUNDAY_BEFORE_TWO.replace(
            hour=2, minute=0, second=0
        )


def store_measurement(platform: Platform, rng: np.random.Generator, level: float) -> float:
    """Production measured at a level on both sets, stored as `production_quality` does: the holdout's mean.

    The canary set's items are the same ones with the same rates as long as the level is; the holdout's
    conversations are others every time.
    """
    with platform.engine.connect() as conn:
        serving = versions.get_production_version(conn)
    assert serving is not None
    orchestra, drop = (
        load_orchestra_from_settings(platform.settings),
        platform.settings.triggers.max_quality_drop,
    )
    before = {
        f"item-{number}": rate for number, rate in enumerate(draw_pass_rates(np.random.default_rng(7), 0.85))
    }
    same = {item: max(0.0, rate - (0.85 - level)) for item, rate in before.items()}
    others = {f"c-{number}": rate for number, rate in enumerate(draw_pass_rates(rng, level))}
    falls = {
        "canary_set": (same, paired_drop(same, before, drop)),
        "production_holdout": (others, unpaired_drop(others, list(before.values()))),
    }
    timestamp = platform.at.isoformat()
    production_quality.store_measurements(
        platform.engine,
        serving,
        [
            production_quality.SetMeasurement(
                name,
                "digest",
                tuple(production_quality.ItemRating(item, rate, 0.0) for item, rate in rates.items()),
                fall,
                Baseline(before, {}, AT_DEPLOYMENT, timestamp),
                is_new_baseline=False,
            )
            for name, (rates, fall) in falls.items()
        ],
        orchestra,
        serving_path="loaded for the measurement",
    )
    mean = falls["production_holdout"][1].mean
    assert mean is not None and falls["production_holdout"][1].baseline_mean == pytest.approx(BASELINE)
    return mean


def measure_and_wait(platform: Platform, rng: np.random.Generator, level: float) -> float:
    """Store a measurement and wait until the sensor has reported its numbers."""
    before = len(platform.skip_reasons("quality_degradation_sensor"))
    mean = store_measurement(platform, rng, level)
    message = f"on production_holdout: {mean:.3f},"
    platform.until(lambda: message in " ".join(platform.skip_reasons("quality_degradation_sensor")[before:]))
    return mean


def evaluate_all_at_once(platform: Platform, more_examples: int, days: int) -> None:
    """A new cause, and for three seconds nobody who has seen that it has no row yet can write one.

    Those who look wait for the pool, then for the rows, each for less than a tick's limit of two seconds.
    """
    known = len(platform.training_runs())
    with platform.engine.begin() as rows:
        with platform.engine.begin() as pool:
            pool.execute(sa.text("lock table iccm.phase4_training_data in access exclusive mode"))
            platform.add_examples(more_examples, pool)
            with platform.engine.begin() as clock:
                set_clock(clock, shift=timedelta(days=days))
            rows.execute(sa.text("lock table iccm.phase4_training_runs in share mode"))
            time.sleep(1.5)
        time.sleep(1.5)
    platform.until(lambda: len(platform.training_runs()) > known)


def count_evaluations(platform: Platform, sensor: str) -> int:
    """Return how often each daemon has evaluated a sensor, the minimum over the daemons."""
    return min(
        daemon.output.count(f"Checking for new runs for sensor: {sensor}") for daemon in platform.daemons
    )


def draw_pass_rates(rng: np.random.Generator, level: float) -> list[float]:
    """Draw pass rates of texts: most are perfect, some are 0, with about this mean."""
    return [float(rate) for rate in rng.binomial(1, level, ITEMS)]


def count_training_examples(platform: Platform, training_run: int) -> int:
    """Count the conversations a training run was trained on."""
    with platform.engine.connect() as conn:
        return conn.execute(
            sa.text("select count(*) from iccm.training_run_examples where training_run_id = :id"),
            {"id": training_run},
        ).scalar_one()
