"""Guardrails at their limits: what a test bets on, when it counts, when production excuses it (R1-R5)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from iccm_assets.rollout.e_process import GRID_SIZE, EProcesses, restart, start
from iccm_assets.rollout.guardrails import check_health_means, check_sequential, check_stage_means
from iccm_assets.rollout.observation import (
    ArmTotals,
    HealthWindow,
    Observation,
    ReplayPair,
    RequestCounts,
    SessionScore,
)
from iccm_assets.rollout.policy import ALPHA_SPLIT
from iccm_assets.rollout.sequential_evidence import TESTS, Evidence, update_evidence
from iccm_assets_tests.factories.decision_driver import NOW, PRODUCTION

FAMILIES = ("drop", "pass_rate", "variance_ratio", "variance", "latency", "errors")


def look(sessions=(), **changes):
    return replace(Observation("", "", NOW, 1, 1, tuple(sessions)), **changes)


def score(arm, rate, stage=1, variance=None):
    return SessionScore(arm, stage, rate, variance)


def observed(*looks, stage=1, hour=0, policy=PRODUCTION, evidence=None):
    evidence = evidence or Evidence()
    for observation in looks:
        evidence = update_evidence(evidence, observation, policy, stage, hour)
    return evidence


def crossing(*tests, factor=1.001, **sums):
    """Evidence in which these tests are just above (or, by the factor, below) their thresholds."""
    stakes = []
    for test, family in TESTS.items():
        value = PRODUCTION.threshold(family) * factor if test in tests else 1e-9
        stakes.append((math.log(value / GRID_SIZE),) * GRID_SIZE)
    return replace(Evidence(), e_processes=EProcesses(0.0, tuple(stakes)), **sums)


def violations(evidence, stage):
    return {
        violation.reason: violation.also_violated_by_production
        for violation in check_sequential(evidence, PRODUCTION, stage)
    }


# --- alpha


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_all_tests_of_a_rollout_share_one_alpha(alpha):
    policy = replace(PRODUCTION, alpha=alpha)
    assert set(TESTS.values()) == set(FAMILIES)
    # By Markov's and Ville's inequality a test crosses its threshold by chance with 1 / threshold.
    assert sum(1 / policy.threshold(family) for family in FAMILIES) == pytest.approx(alpha)
    assert all(policy.threshold(family) > 1 / alpha for family in FAMILIES)
    assert policy.threshold("drop") == min(policy.threshold(family) for family in FAMILIES)


@pytest.mark.parametrize(
    ("test", "stage", "reason"),
    [
        ("drop_first", 1, "test_pass_rate_degradation"),
        ("drop_second", 2, "test_pass_rate_degradation"),
        ("stage_floor", 1, "pass_rate_floor"),
        ("health_floor", 3, "low_pass_rate"),
        ("variance", 3, "variance_spike"),
        ("latency", 2, "latency_regression"),
        ("errors", 3, "error_rate_spike"),
    ],
)
def test_a_test_counts_from_its_own_threshold_on(test, stage, reason):
    sums = {"canary_total": ArmTotals(50, 30.0, 50, 1.0, 100, 3)}
    assert reason in violations(crossing(test, **sums), stage)
    assert not violations(crossing(test, factor=0.999, **sums), stage)


def test_evidence_that_just_reaches_the_threshold_is_a_violation():
    evidence = crossing("drop_first", factor=2.0, **EVERYTHING)
    value = evidence.e_values["drop_first"]
    alpha = 1 / (value * ALPHA_SPLIT["drop"])
    policies = [replace(PRODUCTION, alpha=alpha + step * math.ulp(alpha)) for step in range(-10, 10)]
    (policy, *_) = (policy for policy in policies if policy.threshold("drop") == value)
    assert [violation.reason for violation in check_sequential(evidence, policy, 1)] == [
        "test_pass_rate_degradation"
    ]


def test_evidence_above_one_over_alpha_but_below_the_share_is_no_violation():
    sums = {"canary_total": ArmTotals(50, 30.0, 50, 1.0, 100, 3)}
    for test, family in TESTS.items():
        factor = 1.05 / PRODUCTION.alpha / PRODUCTION.threshold(family)
        assert factor < 1 and not violations(crossing(test, factor=factor, **sums), 1)


# --- which guardrails a stage has

EVERYTHING = {"canary_total": ArmTotals(50, 30.0, 50, 1.0, 100, 3)}


def test_each_stage_judges_its_own_limits():
    evidence = crossing(*TESTS, **EVERYTHING)
    compared = {"latency_regression", "test_pass_rate_degradation", "pass_rate_floor"}
    alone = {"error_rate_spike", "low_pass_rate", "variance_spike"}
    assert set(violations(evidence, 1)) == set(violations(evidence, 2)) == compared | alone
    assert set(violations(evidence, 3)) == alone


def test_the_first_stage_allows_a_drop_that_the_second_does_not():
    first, second = crossing("drop_first", **EVERYTHING), crossing("drop_second", **EVERYTHING)
    assert violations(first, 1) and not violations(first, 2)
    assert violations(second, 2) and not violations(second, 1)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_variance_needs_evidence_against_the_ratio_and_the_floor(stage):
    assert violations(crossing("variance_ratio", "variance_above_floor", **EVERYTHING), stage)
    assert not violations(crossing("variance_ratio", **EVERYTHING), stage)
    assert not violations(crossing("variance_above_floor", **EVERYTHING), stage)


@pytest.mark.parametrize(("test", "requests"), [("errors", 20), ("latency", 20)])
def test_requests_count_from_twenty_on(test, requests):
    def at(number):
        return violations(crossing(test, canary_total=ArmTotals(requests=number, errors=number)), 1)

    assert at(requests) and not at(requests - 1)


@pytest.mark.parametrize("test", ["health_floor", "variance", "stage_floor", "drop_first"])
def test_sessions_and_replayed_pairs_count_from_ten_on(test):
    def at(sessions, pairs):
        totals = ArmTotals(sessions, 0.0, sessions, 0.0)
        return violations(crossing(test, canary_total=totals, pairs=pairs), 1)

    assert at(10, 0) and at(0, 10) and at(4, 6)
    assert not at(9, 0) and not at(0, 9) and not at(4, 5)


# --- production's excuse


def arm(pass_rate=0.9, variance=0.001, error_rate=0.0, n=20):
    return ArmTotals(n, pass_rate * n, n, variance * n, n, round(error_rate * n))


EXCUSES = [
    ("errors", "error_rate_spike", arm(error_rate=0.1), arm(error_rate=0.05)),
    ("variance", "variance_spike", arm(variance=0.06), arm(variance=0.05)),
    ("health_floor", "low_pass_rate", arm(pass_rate=0.69), arm(pass_rate=0.70)),
    ("stage_floor", "pass_rate_floor", arm(pass_rate=0.72), arm(pass_rate=0.73)),
]


@pytest.mark.parametrize(("test", "reason", "violating", "at_limit"), EXCUSES)
def test_a_limit_that_production_violates_too_is_shared_and_one_that_it_meets_is_not(
    test, reason, violating, at_limit
):
    for production, shared in ((violating, True), (at_limit, False)):
        evidence = crossing(test, **EVERYTHING, production=production, production_total=production)
        assert violations(evidence, 1) == {reason: shared}


@pytest.mark.parametrize(("test", "reason", "violating", "at_limit"), EXCUSES)
def test_production_is_measured_in_this_stage_or_else_since_the_opening(test, reason, violating, at_limit):
    def shared(in_stage, total):
        evidence = crossing(test, **EVERYTHING, production=in_stage, production_total=total)
        return violations(evidence, 1)[reason]

    few = replace(violating, sessions=9, requests=19)
    assert shared(violating, at_limit) and not shared(at_limit, violating)
    assert not shared(few, at_limit) and shared(ArmTotals(), violating)
    assert not shared(ArmTotals(), ArmTotals())
    enough = replace(violating, sessions=10, requests=20, pass_rate_sum=violating.pass_rate_sum / 2)
    assert shared(enough, at_limit)


@pytest.mark.parametrize(("test", "reason", "violating", "at_limit"), EXCUSES[:3])
def test_in_the_bake_production_is_what_it_was_before(test, reason, violating, at_limit):
    evidence = crossing(test, **EVERYTHING, production_total=violating)
    assert violations(evidence, 3) == {reason: True}


@pytest.mark.parametrize("tests", [("drop_first",), ("latency",), ("variance_ratio", "variance_above_floor")])
def test_a_comparison_with_production_is_never_excused(tests):
    poor = arm(0.1, 0.2, 0.9)
    assert list(violations(crossing(*tests, **EVERYTHING, production=poor), 1).values()) == [False]


# --- what a test bets on


def block(canary, production, stage=1, canary_variance=None, production_variance=None):
    """A chunk with one canary session, so one comparison."""
    size = {1: 20, 2: 8}[stage]
    others = [score("production", production, stage, production_variance)] * (size - 1)
    return look([score("canary", canary, stage, canary_variance), *others])


AT_THE_LIMIT = {
    "drop_first": (look(replay=(ReplayPair(0.80, 0.81),)), look(replay=(ReplayPair(0.80, 0.82),))),
    "drop_second": (look(replay=(ReplayPair(0.80, 0.80),)), look(replay=(ReplayPair(0.80, 0.805),))),
    "stage_floor": (look([score("canary", 0.73)]), look([score("canary", 0.72)])),
    "health_floor": (look([score("canary", 0.70)]), look([score("canary", 0.69)])),
    "variance_ratio": (
        block(0.8, 0.8, 1, 0.015, 0.010), block(0.8, 0.8, 1, 0.016, 0.010),
    ),
    "variance_above_floor": (
        look([score("canary", 0.8, 1, 0.005)]), look([score("canary", 0.8, 1, 0.006)]),
    ),
    "variance": (look([score("canary", 0.8, 1, 0.05)]), look([score("canary", 0.8, 1, 0.051)])),
    "latency": (
        look(canary=RequestCounts(20, 0, 20, 2), production=RequestCounts(40, 0, 40, 4)),
        look(canary=RequestCounts(20, 0, 20, 3), production=RequestCounts(40, 0, 40, 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("test", AT_THE_LIMIT)
def test_at_its_limit_a_test_wins_nothing_and_beyond_it_something(test):
    at_limit, beyond = (observed(observation).e_values[test] for observation in AT_THE_LIMIT[test])
    assert at_limit == pytest.approx(1.0, abs=1e-9)
    assert beyond > 1.0 + 1e-6


WORST = {
    "drop_first": look(replay=(ReplayPair(1.0, 0.0),)),
    "health_floor": look([score("canary", 1.0)]),
    "variance_ratio": block(0.8, 0.8, 1, 0.0, 0.25),
    "variance_above_floor": look([score("canary", 0.8, 1, 0.0)]),
    "variance": look([score("canary", 0.8, 1, 0.0)]),
    "latency": look(canary=RequestCounts(1, 0, 1, 0), production=RequestCounts(1, 0, 1, 1)),
    "errors": look(canary=RequestCounts(1, 0)),
}


@pytest.mark.parametrize("test", WORST)
def test_the_observation_that_speaks_most_for_the_candidate_leaves_a_twentieth_of_the_largest_bet(test):
    row = list(TESTS).index(test)
    stakes = observed(WORST[test]).e_processes.log_stakes[row]
    assert math.exp(stakes[0]) == pytest.approx(0.05 * 0.9 / 5)
    assert list(stakes) == sorted(stakes) and len(stakes) == 5


# Per test an observation, what is bet on with it, the worst loss, and the ratio of a bet to the next smaller.
BETS = {
    "drop_first": (look(replay=(ReplayPair(0.5, 0.7),)), 0.19, 1.01, 1.5),
    "drop_second": (look(replay=(ReplayPair(0.5, 0.7),)), 0.2, 1.01, 1.5),
    "stage_floor": (look([score("canary", 0.5)]), 0.23, 0.3, 1.8),
    "health_floor": (look([score("canary", 0.5)]), 0.2, 0.3, 1.8),
    "variance_ratio": (block(0.8, 0.8, 1, 0.1, 0.02), 4 * (0.1 - 1.5 * 0.02), 1.5, 1.8),
    "variance_above_floor": (look([score("canary", 0.8, 1, 0.1)]), 4 * 0.095, 4 * 0.005, 3.0),
    "variance": (look([score("canary", 0.8, 1, 0.1)]), 4 * 0.05, 4 * 0.05, 2.0),
    "latency": (
        look(canary=RequestCounts(10, 0, 10, 5), production=RequestCounts(10, 0, 10, 1)), 0.4, 1.0, 1.8,
    ),
    "errors": (look(canary=RequestCounts(1, 1)), 0.95, 0.05, 3.0),
}  # fmt: skip
# Limits in another order, and at the least that is possible: the losses are bounded all the same.
UNUSUAL = replace(
    PRODUCTION, allowed_drops=(0.0, 0.1), min_pass_rate=0.6, max_variance_ratio=0.5, variance_floor=0.0
)
UNUSUAL_BETS = {
    "drop_first": (BETS["drop_first"][0], 0.2, 1.1, 1.5),
    "drop_second": (BETS["drop_second"][0], 0.1, 1.1, 1.5),
    "stage_floor": (BETS["stage_floor"][0], 0.1, 0.4, 1.8),
    "health_floor": (BETS["health_floor"][0], 0.2, 0.4, 1.8),
    "variance_ratio": (BETS["variance_ratio"][0], 4 * (0.1 - 0.5 * 0.02), 1.0, 1.8),
    "variance_above_floor": (BETS["variance_above_floor"][0], 4 * 0.1, 0.01, 3.0),
}


@pytest.mark.parametrize(
    ("policy", "test", "bet"),
    [
        *((PRODUCTION, test, bet) for test, bet in BETS.items()),
        *((UNUSUAL, test, bet) for test, bet in UNUSUAL_BETS.items()),
    ],
)
def test_a_test_bets_five_shares_of_what_its_worst_observation_could_lose(policy, test, bet):
    observation, value, worst, ratio = bet
    e_value = observed(observation, policy=policy).e_values[test]
    shares = [0.95 / worst / ratio**power for power in range(5)]
    assert e_value == pytest.approx(0.1 + sum(0.9 / 5 * (1 + share * value) for share in shares), rel=1e-9)


def test_a_request_without_an_error_bets_against_the_error_rate():
    e_value = observed(look(canary=RequestCounts(3, 1))).e_values["errors"]
    shares = [0.95 / 0.05 / 3.0**power for power in range(5)]
    stakes = [(1 + share * 0.95) * (1 - share * 0.05) ** 2 for share in shares]
    assert e_value == pytest.approx(0.1 + 0.9 / 5 * sum(stakes), rel=1e-9)


def test_two_tests_of_one_quantity_bet_the_same_shares():
    """The evidence against the laxer limit is never more than that against the stricter one."""
    for sessions in ([0.0] * 9, [0.72] * 50, [1.0] * 5):
        e_values = observed(look([score("canary", rate) for rate in sessions])).e_values
        assert e_values["health_floor"] <= e_values["stage_floor"]
    for drop in (0.0, 0.02, 0.5):
        e_values = observed(look(replay=(ReplayPair(0.5, 0.5 + drop),) * 9)).e_values
        assert e_values["drop_first"] <= e_values["drop_second"]


def test_evidence_with_too_few_bets_is_rejected():
    with pytest.raises(ValueError, match="not 5 bets for each of 9 tests"):
        replace(Evidence(), e_processes=start(3))


def test_the_error_rate_is_bet_to_be_above_five_percent():
    def e_value(errors):
        return observed(look(canary=RequestCounts(200, errors))).e_values["errors"]

    assert e_value(0) < e_value(5) < e_value(10) <= 1.0 < 1.5 < e_value(20) < e_value(40)


def test_a_model_between_the_two_floors_is_below_the_stages_floor_only():
    evidence = observed(look([score("canary", 0.71)] * 400))
    assert evidence.e_values["health_floor"] < 1.0 < PRODUCTION.threshold("pass_rate")
    assert evidence.e_values["stage_floor"] > PRODUCTION.threshold("pass_rate")
    assert violations(evidence, 3) == {}  # the bake has the lower floor only
    assert violations(evidence, 1) == {"pass_rate_floor": False}


def test_a_small_drop_is_allowed_in_the_first_stage_only():
    pairs = (ReplayPair(0.795, 0.80),) * 4000
    evidence = observed(look(replay=pairs))
    assert violations(evidence, 1) == {} and violations(evidence, 2) == {"test_pass_rate_degradation": False}


@pytest.mark.parametrize("stage", [1, 2])
def test_a_block_compares_its_sessions_by_their_means(stage):
    equal = observed(block(0.8, 0.8, stage), stage=stage)
    worse = observed(block(0.5, 0.8, stage), stage=stage)
    better = observed(block(1.0, 0.8, stage), stage=stage)
    assert equal.blocks == worse.blocks == 1 and equal.open_chunk == ()
    assert equal.e_values["drop_second"] == pytest.approx(1.0)
    assert better.e_values["drop_second"] < 1.0 < worse.e_values["drop_second"]
    # A block of production sessions 1 and 0 has their mean.
    mixed = [score("canary", 0.5, stage)]
    mixed += [score("production", rate, stage) for rate in (1.0, 0.0) * ({1: 20, 2: 8}[stage] // 2)]
    mixed = observed(look(mixed[: {1: 21, 2: 9}[stage]]), stage=stage)
    assert mixed.blocks == 1 and len(mixed.open_chunk) == 1


def test_a_chunk_is_compared_when_it_is_full_and_not_before():
    sessions = [score("canary", 0.5)] + [score("production", 0.9)] * 18
    evidence = observed(look(sessions))
    assert evidence.blocks == 0 and len(evidence.open_chunk) == 19
    evidence = observed(look([score("production", 0.9)]), evidence=evidence)
    assert evidence.blocks == 1 and evidence.open_chunk == ()


def test_variances_are_compared_where_both_arms_of_a_block_have_some():
    measured = block(0.8, 0.8, 1, 0.2, 0.01)
    assert observed(measured).e_values["variance_ratio"] > 1.0
    for observation in (block(0.8, 0.8, 1, None, 0.01), block(0.8, 0.8, 1, 0.2, None)):
        assert observed(observation).e_values["variance_ratio"] == pytest.approx(1.0)


# --- latency


def test_timed_requests_are_compared_once():
    both = look(canary=RequestCounts(30, 0, 30, 20), production=RequestCounts(30, 0, 30, 2))
    compared = observed(both)
    assert compared.e_values["latency"] > 1.0 and compared.pending_timing == (0, 0, 0, 0)
    later = observed(look(), look(), evidence=compared)
    assert later.e_values["latency"] == pytest.approx(compared.e_values["latency"])


def test_timed_requests_of_one_arm_wait_for_those_of_the_other():
    canary = look(canary=RequestCounts(30, 0, 30, 20))
    production = look(production=RequestCounts(40, 0, 40, 4))
    waiting = observed(canary)
    assert waiting.e_values["latency"] == pytest.approx(1.0) and waiting.pending_timing == (30, 20, 0, 0)
    together = look(canary=RequestCounts(30, 0, 30, 20), production=RequestCounts(40, 0, 40, 4))
    for looks in ((canary, production), (production, canary)):
        assert observed(*looks).e_values["latency"] == pytest.approx(observed(together).e_values["latency"])


def test_no_request_is_slow_before_production_was_measured_on_enough():
    def threshold(timed, p95=10.0, before=None):
        window = HealthWindow(timed=timed, latency_p95=p95, requests=timed)
        evidence = replace(Evidence(), slow_threshold_ms=before)
        return observed(look(production_window=window), evidence=evidence).slow_threshold_ms

    assert threshold(19) is None and threshold(20) == pytest.approx(12.0)
    assert threshold(19, before=7.0) == 7.0 and threshold(20, before=7.0) == pytest.approx(12.0)
    assert threshold(100, p95=None, before=7.0) == 7.0


# --- sums, stages and hours


def test_sums_are_of_the_stage_and_of_the_rollout():
    sessions = [
        score("canary", 0.5, 2, 0.02),
        score("canary", 0.75, 1, None),
        score("production", 1.0, 2, 0.1),
    ]
    counts = {"canary": RequestCounts(7, 2), "production": RequestCounts(9, 1)}
    evidence = observed(look(sessions, **counts), stage=2)
    assert evidence.canary == ArmTotals(1, 0.5, 1, 0.02, 7, 2)
    assert evidence.canary_total == ArmTotals(2, 1.25, 1, 0.02, 7, 2)
    assert evidence.production == evidence.production_total == ArmTotals(1, 1.0, 1, 0.1, 9, 1)
    assert evidence.canary_total.variance == 0.02 and evidence.canary_total.pass_rate == 0.625
    assert evidence.canary.error_rate == pytest.approx(2 / 7)


def test_a_new_stage_starts_its_own_sums_and_chunk_and_keeps_the_bets():
    sessions = [score("canary", 0.5)] + [score("production", 0.9)] * 10
    before = observed(look(sessions, canary=RequestCounts(5, 0, 5, 1), replay=(ReplayPair(0.1, 0.9),)))
    after = before.at_new_stage()
    assert before.open_chunk and before.pending_timing == (5, 1, 0, 0)
    assert after.canary == after.production == ArmTotals()
    assert after.open_chunk == () and after.pending_timing == (0, 0, 0, 0)
    assert after.e_values == before.e_values and after.canary_total == before.canary_total
    assert after.comparisons == before.comparisons == 2


def test_a_new_bet_is_started_once_an_hour():
    evidence = observed(look(), hour=0)
    assert evidence.e_processes.reserve == pytest.approx(0.1)
    for hour, reserve in ((1, 0.05), (1, 0.05), (2, 0.1 / 3), (2, 0.1 / 3), (1, 0.1 / 3), (3, 0.025)):
        evidence = observed(look(), hour=hour, evidence=evidence)
        assert evidence.e_processes.reserve == pytest.approx(reserve)
    assert evidence.hour == 3
    assert all(value == pytest.approx(1.0) for value in evidence.e_values.values())


def test_the_reserve_of_all_hours_is_a_tenth():
    processes = start(2)
    assert processes.e_values() == pytest.approx([1.0, 1.0])
    for hour in range(1, 200):
        processes = restart(processes, hour)
        assert processes.reserve == pytest.approx(0.1 / (hour + 1))
    assert processes.e_values() == pytest.approx([1.0, 1.0])


def test_a_spent_reserve_starts_no_further_bet():
    spent = EProcesses(0.0, ((math.log(0.2),) * 5,))
    assert restart(spent, 5) == spent and spent.e_values() == pytest.approx([1.0])


# --- plain means


def window(pass_rate=0.9, variance=0.001, error_rate=0.0, n=20, p95=None):
    return HealthWindow(n, pass_rate * n, n, variance * n, n, round(error_rate * n), n, p95)


NO_WINDOW, NO_TOTALS = HealthWindow(), ArmTotals()


def health(canary, production=NO_WINDOW, total=NO_TOTALS):
    evidence = replace(Evidence(), production_total=total)
    observation = look(canary_window=canary, production_window=production)
    return {
        violation.reason: violation.also_violated_by_production
        for violation in check_health_means(evidence, observation, PRODUCTION)
    }


@pytest.mark.parametrize(
    ("reason", "violating", "at_limit"),
    [
        ("error_rate_spike", {"error_rate": 0.1}, {"error_rate": 0.05}),
        ("variance_spike", {"variance": 0.06}, {"variance": 0.05}),
        ("low_pass_rate", {"pass_rate": 0.69}, {"pass_rate": 0.70}),
    ],
)
def test_the_means_of_the_health_window_are_judged_at_their_limits(reason, violating, at_limit):
    bad, good = window(**violating), window(**at_limit)
    assert health(bad, good) == {reason: False} and health(good, bad) == {}
    assert health(bad, bad) == {reason: True}
    few = replace(bad, sessions=9, requests=19)
    assert health(few, good) == {}
    # Where the window has too little of production, its sums since the opening count.
    assert health(bad, few) == {reason: False} and health(bad, few, total=arm(**violating)) == {reason: True}
    assert health(bad, good, total=arm(**violating)) == {reason: False}
    n = 20 if reason == "error_rate_spike" else 10
    assert health(bad, window(**violating, n=n), total=arm(**at_limit)) == {reason: True}
    enough = window(**violating, n=n)
    assert reason in health(enough, good)


def stage_means(canary, production, stage=1, canary_window=NO_WINDOW, production_window=NO_WINDOW):
    evidence = replace(Evidence(), canary=canary, production=production)
    observation = look(canary_window=canary_window, production_window=production_window)
    return {
        violation.reason: violation.also_violated_by_production
        for violation in check_stage_means(evidence, observation, PRODUCTION, stage)
    }


@pytest.mark.parametrize(
    ("stage", "canary", "production", "reasons"),
    [
        (1, arm(0.90), arm(0.90), {}),
        (1, arm(0.891), arm(0.90), {}),  # at most 0.01 below in stage 1
        (1, arm(0.889), arm(0.90), {"test_pass_rate_degradation": False}),
        (2, arm(0.899), arm(0.90), {"test_pass_rate_degradation": False}),
        (2, arm(0.90), arm(0.90), {}),
        (3, arm(0.10, 0.2), arm(0.90), {}),  # the bake has no production arm
        (1, arm(0.73), arm(0.73), {}),
        (1, arm(0.729), arm(0.73), {"pass_rate_floor": False}),
        (1, arm(0.72), arm(0.72), {"pass_rate_floor": True}),
        (1, arm(0.9, 0.015), arm(0.9, 0.010), {}),
        (1, arm(0.9, 0.016), arm(0.9, 0.010), {"variance_spike": False}),
        (1, arm(0.9, 0.005), arm(0.9, 0.001), {}),  # not above the floor of variances
        (1, arm(0.9, 0.006), arm(0.9, 0.001), {"variance_spike": False}),
        (1, arm(0.6), ArmTotals(), {"pass_rate_floor": False}),
        (1, arm(0.9, 0.005), ArmTotals(), {}),  # without production the floor of variances is the limit
        (1, arm(0.9, 0.006), ArmTotals(), {"variance_spike": False}),
        (1, ArmTotals(), arm(0.9), {}),
    ],
)
def test_the_means_of_a_stage_are_judged_at_their_limits(stage, canary, production, reasons):
    assert stage_means(canary, production, stage) == reasons


@pytest.mark.parametrize(
    ("canary", "production", "regressed"),
    [
        (window(p95=12.0), window(p95=10.0), False),
        (window(p95=12.1), window(p95=10.0), True),
        (window(p95=99.0, n=19), window(p95=10.0), False),
        (window(p95=99.0), window(p95=10.0, n=19), False),
        (window(p95=99.0), window(p95=None), False),
    ],
)
def test_latency_is_judged_on_twenty_timed_requests_of_both_arms(canary, production, regressed):
    reasons = stage_means(arm(), arm(), 1, canary, production)
    assert ("latency_regression" in reasons) == regressed


def test_a_violation_names_its_numbers():
    (violation,) = check_sequential(crossing("health_floor", **EVERYTHING), PRODUCTION, 3)
    assert violation.description.startswith("pass rate 0.600 of 50 canary-arm sessions, limit 0.7; evidence")
    evidence = crossing("errors", **EVERYTHING)
    (violation,) = check_sequential(evidence, PRODUCTION, 3)
    needed = PRODUCTION.threshold("errors")
    assert violation.numbers["needed"] == pytest.approx(needed, abs=1e-3)
    assert violation.numbers["evidence"] == pytest.approx(needed * 1.001, rel=1e-4)
    both = crossing("variance_ratio", "variance_above_floor", factor=1.0)
    stakes = list(both.e_processes.log_stakes)
    row = list(TESTS).index("variance_ratio")
    stakes[row] = tuple(stake + math.log(50.0) for stake in stakes[row])
    evidence = replace(both, e_processes=EProcesses(0.01, tuple(stakes)), **EVERYTHING)
    (violation,) = check_sequential(evidence, PRODUCTION, 1)
    # The weaker of the two is the evidence.
    assert violation.numbers["evidence"] < 2 * PRODUCTION.threshold("variance_ratio")
    (violation,) = check_stage_means(
        replace(Evidence(), canary=arm(0.72), production=ArmTotals()), look(), PRODUCTION, 1
    )
    assert violation.numbers == {"value": 0.72, "limit": 0.73}
    (violation,) = check_health_means(Evidence(), look(canary_window=window(variance=0.06)), PRODUCTION)
    assert violation.description == "implementation variance 0.060 is above 0.050"
    assert violation.numbers == {"value": 0.06, "limit": 0.05}


@pytest.mark.parametrize(("stage", "test", "allowed"), [(1, "drop_first", "0.01"), (2, "drop_second", "0")])
def test_a_degradation_names_both_pass_rates_and_the_drop_that_the_stage_allows(stage, test, allowed):
    evidence = crossing(test, **EVERYTHING, pairs=7, production_total=arm(0.9, n=40))
    (violation,) = check_sequential(evidence, PRODUCTION, stage)
    assert violation.description.startswith(
        "pass rate 0.600 of 50 canary-arm sessions, 0.900 of 40 of production, 7 replayed pairs, "
        f"allowed drop {allowed}; evidence "
    )
    (violation,) = check_sequential(replace(evidence, pairs=0), PRODUCTION, stage)
    assert f"of production, allowed drop {allowed}; evidence " in violation.description
