"""Confidence bounds: exact where the exact value is known, never too high where it is simulated."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.evaluation.confidence_bounds import (
    confidence_above,
    confidence_of_harm,
    confidence_of_loss,
    mean,
    quantile,
    quantile_ratio_confidence,
)


def binomial_at_least(n: int, p: float, k: int) -> float:
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(("won", "lost"), [(2, 0), (3, 0), (4, 1), (10, 4), (60, 40), (3, 3), (0, 5)])
def test_differences_of_one_size_give_the_exact_sign_test(won: int, lost: int) -> None:
    values = [1.0] * won + [-1.0] * lost + [0.0] * (240 - won - lost)
    expected = 1 - binomial_at_least(won + lost, 0.5, won) if won else 0.0
    assert confidence_above(values, 0.0, -1.0) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("n", "hits", "bound"), [(20, 3, 0.05), (30, 4, 0.05), (240, 2, 0.02), (240, 9, 0.02)]
)
def test_zeros_and_ones_give_the_exact_clopper_pearson_bound(n: int, hits: int, bound: float) -> None:
    expected = 1 - binomial_at_least(n, bound, hits)
    assert confidence_above([1.0] * hits + [0.0] * (n - hits), bound, 0.0) == pytest.approx(
        expected, abs=2e-6
    )


def test_any_values_agree_with_a_simulation_of_the_weights() -> None:
    rng = np.random.default_rng(5)
    for size, bound in ((3, 0.05), (17, -0.02), (240, 0.0)):
        values = rng.normal(0.05, 0.25, size).clip(-1, 1).round(3)
        weights = rng.exponential(size=(60_000, size + 1))
        drawn = (weights @ (np.append(values, -1.0) - bound) > 0).mean()
        assert confidence_above(list(values), bound, -1.0) == pytest.approx(drawn, abs=0.012)


def test_no_values_and_equal_values_are_defined() -> None:
    assert confidence_above([], 0.0, -1.0) == 0.0
    assert confidence_above([0.0] * 240, 0.0, -1.0) == 0.0
    assert confidence_above([0.2], 0.2, -1.0) == 0.0
    # All items gained the same: the confidence is limited by a rare loss that n items cannot exclude.
    assert confidence_above([0.1] * 5, 0.0, -1.0) == pytest.approx(1 - (1 / 1.1) ** 5, abs=2e-6)
    assert confidence_above([0.0] * 240, -0.02, -1.0) == pytest.approx(1 - 0.98**240, abs=2e-6)
    assert confidence_above([0.5], -1.5, -1.0) == 1.0


@pytest.mark.parametrize("values", [[float("nan")], [float("inf")], [-1.5]])
def test_impossible_values_are_rejected(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite and at least"):
        confidence_above(values, 0.0, -1.0)


@given(st.lists(st.integers(-10, 10), min_size=1, max_size=40), st.randoms())
def test_the_order_of_the_items_does_not_matter(tenths: list[int], rng: random.Random) -> None:
    values = [tenth / 10 for tenth in tenths]
    shuffled = rng.sample(values, len(values))
    assert confidence_above(values, 0.0, -1.0) == confidence_above(shuffled, 0.0, -1.0)
    assert mean(values) == mean(shuffled)


@given(st.lists(st.integers(-10, 10), min_size=1, max_size=40), st.integers(0, 39))
def test_a_better_item_never_lowers_the_confidence(tenths: list[int], index: int) -> None:
    values = [tenth / 10 for tenth in tenths]
    better = list(values)
    better[index % len(values)] = 1.0
    assert confidence_above(better, 0.0, -1.0) >= confidence_above(values, 0.0, -1.0) - 1e-6


NULLS = {
    # name: values and probabilities, mean exactly zero
    "few items differ": ([1.0, -1.0, 0.0], [0.02, 0.02, 0.96]),
    "many items differ": ([0.6, 0.2, -0.2, -0.6, 0.0], [0.15, 0.2, 0.2, 0.15, 0.3]),
    "rare loss, frequent gain": ([-1.0, 0.25, 0.0], [0.05, 0.2, 0.75]),
    "rare gain, frequent loss": ([1.0, -0.25, 0.0], [0.05, 0.2, 0.75]),
}


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("n", [20, 60, 240])
def test_equal_models_count_as_better_in_at_most_a_tenth_of_the_cases(null: str, n: int) -> None:
    values, chances = NULLS[null]
    assert sum(v * p for v, p in zip(values, chances, strict=True)) == pytest.approx(0)
    rng = np.random.default_rng(n)
    runs = 150
    samples = rng.choice(values, p=chances, size=(runs, n))
    false_positives = sum(confidence_above(list(sample), 0.0, -1.0) >= 0.9 for sample in samples)
    # 10 % allowed; three standard errors of the simulation on top.
    assert false_positives / runs <= 0.10 + 3 * math.sqrt(0.09 / runs)


def paired(
    rng: np.random.Generator, n: int, base: float, churn: float, drop: float
) -> tuple[list[float], float]:
    """Harms of items production solves with chance ``base``; ``churn`` lost and won, ``fall`` more lost.

    Returned with the lowest harm an item could have: minus what production leaves to gain.
    """
    before = rng.random(n) < base
    lost = rng.random(n) < (churn + drop) / base
    won = rng.random(n) < (churn / (1 - base) if base < 1 else 0.0)
    after = np.where(before, ~lost, won)
    return list(before.astype(float) - after.astype(float)), float(before.min()) - 1.0


@pytest.mark.parametrize(("base", "churn"), [(1.0, 0.0), (0.9, 0.05), (0.6, 0.1)])
@pytest.mark.parametrize("n", [20, 30, 60, 240])
def test_a_drop_of_exactly_the_limit_alarms_in_about_a_tenth_and_no_drop_rarely(
    base: float, churn: float, n: int
) -> None:
    rng = np.random.default_rng(n)
    runs = 200

    def alarms(drop: float) -> float:
        samples = (paired(rng, n, base, churn, drop) for _ in range(runs))
        return sum(confidence_of_harm(harms, 0.05, lowest) >= 0.9 for harms, lowest in samples) / runs

    assert alarms(0.05) <= 0.12 + 3 * math.sqrt(0.09 / runs)
    assert alarms(0.0) <= 0.06


def test_a_real_drop_is_detected() -> None:
    rng = np.random.default_rng(8)
    samples = (paired(rng, 30, 1.0, 0.0, 0.2) for _ in range(100))
    assert sum(confidence_of_harm(harms, 0.05, lowest) >= 0.9 for harms, lowest in samples) >= 80


def test_students_t_is_used_too_but_only_for_harm() -> None:
    harms = [1.0] * 4 + [0.0] * 26
    t = (4 / 30 - 0.05) / (np.std(harms, ddof=1) / math.sqrt(30))
    assert confidence_of_harm(harms, 0.05, -1.0) == pytest.approx(scipy.stats.t.cdf(t, 29), abs=2e-6)
    assert confidence_of_harm(harms, 0.05, 0.0) == confidence_above(harms, 0.05, 0.0) > 0.9
    assert confidence_above(harms, 0.05, -1.0) < 0.8
    assert confidence_of_harm([0.1] * 30, 0.05, -1.0) == confidence_above([0.1] * 30, 0.05, -1.0)
    assert confidence_of_harm([], 0.05, -1.0) == 0.0


def test_a_real_improvement_is_detected() -> None:
    rng = np.random.default_rng(9)
    samples = rng.choice([1.0, -1.0, 0.0], p=[0.10, 0.03, 0.87], size=(100, 240))
    assert sum(confidence_above(list(sample), 0.0, -1.0) >= 0.9 for sample in samples) >= 85


def test_the_mean_of_cancelling_tenths_is_zero() -> None:
    assert mean([0.3 - 0.2, 0.1 - 0.2]) == 0.0
    with pytest.raises(ValueError, match="mean of nothing"):
        mean([])


def test_a_quantile_is_an_observed_value() -> None:
    values = [float(number) for number in range(1, 41)]
    assert quantile(values, 0.95) == 38.0
    assert quantile(values, 0.5) == 20.0
    assert quantile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="quantile of nothing"):
        quantile([], 0.5)


def test_the_ratio_of_quantiles_agrees_with_resampling() -> None:
    rng = np.random.default_rng(2)
    candidate, production = rng.lognormal(0.3, 0.3, 40), rng.lognormal(0, 0.3, 40)
    draws = 4000
    a = np.sort(candidate[rng.integers(0, 40, (draws, 40))])[:, 37]
    b = np.sort(production[rng.integers(0, 40, (draws, 40))])[:, 37]
    confidence = quantile_ratio_confidence(list(candidate), list(production), 0.95, 1.2)
    assert confidence == pytest.approx((a > 1.2 * b).mean(), abs=0.03)
    assert 0.1 < confidence < 0.999


def test_the_ratio_of_medians_of_three_is_exact() -> None:
    # The median of a resample of 1, 2, 3 is 1 when two or three of its draws are: 7 in 27.
    assert quantile_ratio_confidence([1.0, 2.0, 3.0], [1.5], 0.5, 1.0) == pytest.approx(20 / 27, abs=2e-6)
    assert quantile_ratio_confidence([1.0, 2.0, 3.0], [1.0], 0.5, 2.5) == pytest.approx(7 / 27, abs=2e-6)


def test_a_slower_candidate_is_detected_and_an_equally_fast_one_is_not() -> None:
    rng = np.random.default_rng(3)
    detected = {1.0: 0, 1.6: 0}
    for factor in detected:
        for _ in range(100):
            candidate, production = rng.lognormal(0, 0.3, 40) * factor, rng.lognormal(0, 0.3, 40)
            detected[factor] += quantile_ratio_confidence(list(candidate), list(production), 0.95, 1.2) >= 0.9
    assert detected[1.0] <= 10
    assert detected[1.6] >= 50


def test_no_latencies_are_no_evidence() -> None:
    assert quantile_ratio_confidence([], [1.0], 0.95, 1.2) == 0.0


# --- losses against what equal models lose


def test_a_loss_is_compared_with_the_sum_of_as_many_draws():
    """Of 3 items, each falls and rises by 1 with probability 1/4 (one in three seen, and one unseen)."""
    samples = [(1.0, [0.0, 0.0, 0.0])]
    single = {-1: 3 / 16, 0: 10 / 16, 1: 3 / 16}
    total = {0: 1.0}
    for _ in range(3):
        total = {
            at: sum(single.get(at - was, 0.0) * share for was, share in total.items()) for at in range(-3, 4)
        }
    for lost in range(4):
        losses = [1.0] * lost + [0.0] * (3 - lost)
        expected = sum(share for at, share in total.items() if at < lost)
        assert confidence_of_loss(losses, samples) == pytest.approx(expected, abs=2e-6)
    assert confidence_of_loss([1.0, -1.0, 0.5], samples) == confidence_of_loss([0.5, 0.0, 0.0], samples)


def test_samples_of_losses_count_by_their_weight():
    quiet, loud = [0.0] * 99, [1.0] * 99
    losses = [1.0] * 4 + [0.0] * 36
    by_weight = [confidence_of_loss(losses, [(1 - w, quiet), (w, loud)]) for w in (0.0, 0.1, 0.3, 0.6)]
    assert by_weight == sorted(by_weight, reverse=True) and by_weight[0] > 0.999 and by_weight[-1] < 0.9
    assert confidence_of_loss(losses, [(2.0, quiet), (2.0, loud)]) == confidence_of_loss(
        losses, [(1.0, quiet), (1.0, loud)]
    )


def test_a_loss_of_equal_models_is_rarely_more_than_chance():
    rng = np.random.default_rng(3)

    def draw(count):
        return np.where(rng.random(count) < 0.2, rng.choice([0.25, 0.5, 1.0], count), 0.0)

    runs = 400
    alarms = sum(
        confidence_of_loss(list(draw(40) - draw(40)), [(1.0, list(draw(400)))]) >= 0.95 for _ in range(runs)
    )
    assert alarms <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)


def test_without_items_or_samples_there_is_no_confidence():
    assert confidence_of_loss([], [(1.0, [0.0])]) == 0.0
    assert confidence_of_loss([1.0], []) == 0.0


def test_a_large_slice_is_computed_in_coarser_steps():
    """6,000 items, each of which falls and rises by 1/2 in one of 20 cases, and by 1 in one of 1,001."""
    deviation = math.sqrt(6_000 * 2 * (0.05 * 0.25 + 0.001))
    for lost in (10, 20, 30):
        losses = [0.5] * (2 * lost) + [0.0] * (6_000 - 2 * lost)
        expected = scipy.stats.norm.cdf((lost - 0.25) / deviation)
        confidence = confidence_of_loss(losses, [(1.0, [0.0] * 950 + [0.5] * 50)])
        assert confidence == pytest.approx(expected, abs=0.01)
