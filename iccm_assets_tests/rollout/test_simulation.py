"""The simulation: equal outcomes for equal seeds, and the guaranteed error rates on few runs (R10)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iccm_assets.rollout import simulation
from iccm_assets.rollout.simulation import TrueEffect, simulate
from iccm_assets_tests.factories.decision_driver import PRODUCTION


def test_an_equal_model_is_promoted_and_a_much_worse_one_is_rolled_back():
    # docs/explanation/rollout.md has the shares of 400 runs each; these few leave room for two unlucky ones.
    equal = simulate(TrueEffect(0.8, 0.8, 500), PRODUCTION, 12, 1).to_json()
    assert equal["promoted"] >= 0.9 and equal["rolled_back"] <= 0.1
    assert 42 <= equal["hours"]["promoted"]["median"] <= 60  # 42 h of health, and 30 sessions at 50 a day
    worse = simulate(TrueEffect(0.8, 0.65, 500), PRODUCTION, 30, 1).to_json()
    assert worse["rolled_back"] >= 0.9
    assert worse["canary_sessions_until_rollback"]["median"] <= 100
    assert worse["promoted"] + worse["rolled_back"] + worse["undecided"] == pytest.approx(1)


def test_the_same_seed_gives_the_same_rollouts_and_another_gives_others():
    first, second = (simulate(TrueEffect(0.8, 0.7, 300), PRODUCTION, 4, 5).outcomes for _ in range(2))
    assert first == second
    assert simulate(TrueEffect(0.8, 0.7, 300), PRODUCTION, 4, 6).outcomes != first
    assert simulate(TrueEffect(0.8, 0.7, 300), PRODUCTION, 2, 5).outcomes == first[:2]


def test_plain_means_roll_back_most_equal_models():
    point = simulate(TrueEffect(0.8, 0.8, 500), replace(PRODUCTION, evidence="point"), 12, 1)
    assert len(point.with_outcome("rolled_back")) >= 8


def test_too_little_traffic_is_undecided_and_says_when():
    (ending,) = simulate(TrueEffect(0.8, 0.8, 2), PRODUCTION, 1, 1).outcomes
    assert ending.outcome == "undecided" and ending.hours == pytest.approx(14 * 24, abs=25)


@pytest.mark.parametrize(("canary", "outcome"), [(0.0, "rolled_back"), (1.0, "promoted")])
def test_the_ends_of_the_scale_are_defined(canary, outcome):
    simulation = simulate(TrueEffect(0.8, canary, 400), PRODUCTION, 3, 1)
    assert len(simulation.with_outcome(outcome)) == 3
    assert len(simulate(TrueEffect(0.0, 0.0, 400), PRODUCTION, 1, 1).outcomes) == 1


def test_scores_have_the_mean_and_the_spread_that_are_promised():
    rng = np.random.default_rng(4)
    rates = simulation._passed(rng, simulation._easiness(rng.random(40_000), 0.8, rng))
    assert rates.mean() == pytest.approx(0.8, abs=0.006)
    assert rates.std() == pytest.approx(0.27, abs=0.01)
    assert (rates == 1.0).mean() == pytest.approx(0.47, abs=0.015)
    pairs = simulation._pairs(TrueEffect(0.8, 0.8, 199), rng)
    assert len(pairs) == int(199 * 0.15 * 28)
    differences = np.array([pair.canary - pair.production for pair in pairs])
    assert abs(differences.mean()) < 0.02 and differences.std() == pytest.approx(0.14, abs=0.02)
    assert simulation._pairs(TrueEffect(0.8, 0.8, 200), rng) == []
