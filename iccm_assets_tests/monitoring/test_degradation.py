"""How far production's quality has dropped: paired on the canary set, two samples on the holdout (T2)."""

from __future__ import annotations

import math
import random
from statistics import fmean, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.evaluation.confidence_bounds import confidence_above
from iccm_assets.monitoring.degradation import paired_drop, unpaired_drop
from iccm_assets.registry.training_runs import TriggerFired
from iccm_assets.retraining.triggers import QualityMeasurement, decide_degradation
from iccm_assets.settings import TriggerSettings

T = TriggerSettings()
RATES = st.floats(0, 1)
ITEMS = st.dictionaries(st.integers(0, 500).map(str), RATES, min_size=20, max_size=80)


def decide(drop, name="canary_set"):
    values = (drop.n, drop.mean, drop.standard_error, drop.baseline_mean)
    return decide_degradation(QualityMeasurement(1, "v1", name, *values, confidence=drop.confidence), T)


@given(ITEMS)
def test_the_same_rates_as_at_the_deployment_are_no_drop(rates: dict[str, float]) -> None:
    drop = paired_drop(rates, rates, T.max_quality_drop)
    assert drop.baseline_mean == drop.mean and drop.confidence == 0.0
    assert not isinstance(decide(drop), TriggerFired)


@given(ITEMS, st.lists(RATES, min_size=20, max_size=80))
def test_every_result_fits_the_table(rates: dict[str, float], before: list[float]) -> None:
    for drop in (
        paired_drop(rates, dict.fromkeys(rates, 0.5), 0.05),
        unpaired_drop(rates, before),
    ):
        assert 0 <= drop.mean <= 1 and 0 <= drop.baseline_mean <= 1 and drop.standard_error >= 0


@given(ITEMS, st.lists(RATES, min_size=20, max_size=80))
def test_a_rise_is_never_a_drop(rates: dict[str, float], before: list[float]) -> None:
    best = dict.fromkeys(rates, 1.0)
    assert not isinstance(decide(paired_drop(best, rates, 0.05)), TriggerFired)
    assert not isinstance(decide(unpaired_drop(best, before)), TriggerFired)


def test_a_drop_on_many_items_is_significant_and_on_a_few_it_is_not() -> None:
    before = dict.fromkeys(map(str, range(240)), 1.0)
    some = {item: 0.0 if int(item) < 40 else 1.0 for item in before}
    few = {item: 0.0 if int(item) < 14 else 1.0 for item in before}
    assert isinstance(decide(paired_drop(some, before, 0.05)), TriggerFired)
    assert not isinstance(decide(paired_drop(few, before, 0.05)), TriggerFired)


def test_the_holdout_compares_two_samples_of_conversations() -> None:
    draw = random.Random(5)
    before = [1.0 if draw.random() < 0.85 else 0.3 for _ in range(90)]
    same = {str(n): 1.0 if draw.random() < 0.85 else 0.3 for n in range(90)}
    drifted = {str(n): 1.0 if draw.random() < 0.4 else 0.3 for n in range(90)}
    assert not isinstance(decide(unpaired_drop(same, before), "production_holdout"), TriggerFired)
    assert isinstance(decide(unpaired_drop(drifted, before), "production_holdout"), TriggerFired)


@pytest.mark.parametrize("missing", [3, 20])
def test_items_without_a_score_are_skipped_and_too_many_prevent_a_measurement(missing: int) -> None:
    before = dict.fromkeys(map(str, range(30)), 0.9)
    now = {item: None if int(item) < missing else 0.9 for item in before}
    for drop in (paired_drop(now, before, 0.05), unpaired_drop(now, list(before.values()))):
        if missing == 3:
            assert (drop.n, drop.mean) == (27, 0.9)
        else:
            assert drop.mean is None and drop.remark == "20 of 30 items have no score"
            assert not isinstance(decide(drop), TriggerFired)


def test_missing_items_and_a_missing_baseline_are_remarked() -> None:
    assert unpaired_drop({}, [0.5] * 30).remark == "no items"
    first = paired_drop({"a": 0.5, "b": 1.0}, None, 0.05)
    assert (first.mean, first.baseline_mean, first.remark) == (0.75, None, "no baseline yet")


def test_the_error_of_a_drop_of_two_samples_is_that_of_both() -> None:
    now = {str(n): rate for n, rate in enumerate([0.0, 1.0] * 10)}
    before = [0.9, 1.0, 1.0, 0.7] * 8
    errors = [math.sqrt(variance(values) / len(values)) for values in (list(now.values()), before)]
    drop = unpaired_drop(now, before)
    assert drop.standard_error == pytest.approx(math.hypot(*errors))
    assert drop.standard_error > max(errors)
    assert (drop.n, drop.mean, drop.baseline_mean, drop.confidence) == (20, 0.5, 0.9, None)


def test_the_error_of_a_paired_drop_is_that_of_its_differences() -> None:
    before = {str(n): 0.5 + n / 100 for n in range(30)}
    now = {item: rate - 0.1 for item, rate in before.items()}
    assert paired_drop(now, before, 0.05).standard_error == pytest.approx(0.0, abs=1e-9)
    now["0"] = 0.0
    drops = [0.5] + [0.1] * 29
    drop = paired_drop(now, before, 0.05)
    assert drop.standard_error == pytest.approx(math.sqrt(variance(drops) / 30))
    assert drop.baseline_mean - drop.mean == pytest.approx(fmean(drops))
    assert drop.confidence == confidence_above(drops, 0.05, -1.0)


def test_only_items_of_both_measurements_are_compared() -> None:
    now = {"a": 0.5, "b": 0.7, "c": 1.0, "new": 0.0}
    drop = paired_drop(now, {"a": 0.6, "b": 0.9, "old": 1.0}, 0.05)
    assert (drop.n, drop.mean, drop.baseline_mean) == (2, 0.6, 0.75)
    single = paired_drop(now, {"a": 0.6, "old": 1.0}, 0.05)
    assert (single.n, single.mean, single.baseline_mean, single.confidence) == (4, 0.55, None, None)
    assert single.remark == "1 items of the baseline were measured" and single.standard_error is None


@pytest.mark.parametrize(("missing", "measured"), [(2, True), (3, False), (20, False)])
def test_a_tenth_of_the_items_may_be_missing(missing: int, measured: bool) -> None:
    now = {str(n): None if n < missing else 0.5 for n in range(20)}
    for drop in (paired_drop(now, None, 0.05), unpaired_drop(now, [0.5, 0.6])):
        assert (drop.mean is not None) == measured and drop.n == 20 - missing


def test_a_single_value_has_no_error() -> None:
    assert paired_drop({"a": 0.5}, None, 0.05).standard_error is None
    single = unpaired_drop({"a": 0.5}, [0.5, 0.6])
    assert (single.mean, single.standard_error, single.baseline_mean) == (0.5, None, None)
    few = unpaired_drop({"a": 0.5, "b": 0.7}, [0.5])
    assert (few.mean, few.baseline_mean, few.remark) == (0.6, None, "no baseline yet")
    assert few.standard_error == pytest.approx(0.1)
    assert unpaired_drop({"a": 0.5, "b": 0.7}, [0.8] * 9).standard_error == pytest.approx(0.1)
    pair = unpaired_drop({"a": 0.5, "b": 0.7}, [0.5, 0.7])
    assert (pair.baseline_mean, pair.standard_error) == (0.6, pytest.approx(math.hypot(0.1, 0.1)))
