"""Sequential evidence: its arithmetic, its false-alarm rate at any number of checks, and its power."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from pydantic import TypeAdapter

from iccm_assets.rollout import sequential_evidence as ev
from iccm_assets.rollout.e_process import restart, start, update
from iccm_assets.rollout.guardrails import check_sequential
from iccm_assets.rollout.observation import Observation, ReplayPair, RequestCounts, SessionScore
from iccm_assets.rollout.sequential_evidence import TESTS, Evidence, update_evidence
from iccm_assets_tests.factories.decision_driver import NOW, PRODUCTION

ONE = ((0.7, 1.8),)


def look(sessions=(), **changes):
    return replace(Observation("", "", NOW, 1, 1, tuple(sessions)), **changes)


def session(rng, arm, stage, mean):
    """A score of ten tests, easy or hard together (correlation 0.4)."""
    rate = rng.binomial(10, rng.beta(1.5 * mean, 1.5 * (1 - mean))) / 10
    return SessionScore(arm, stage, rate, 0.2 * rate * (1 - rate))


def served(rng, n, stage, canary, production, weight=None):
    weight = {1: 0.1, 2: 0.5, 3: 1.0}[stage] if weight is None else weight
    arms = ["canary" if draw < weight else "production" for draw in rng.random(n)]
    return [session(rng, arm, stage, canary if arm == "canary" else production) for arm in arms]


def test_the_e_value_equals_the_stakes_computed_by_hand():
    values, counts = [0.3, -0.7, 0.25, 0.0, -0.1], [1, 2, 1, 1, 30]
    book = update(start(1), ONE, [0, 0, 0], values[:3], counts[:3])
    book = update(restart(book, 1), ONE, [0, 0], values[3:], counts[3:])
    bets = [Fraction(0.95) / Fraction(0.7) / Fraction(1.8) ** power for power in range(5)]
    early = [(Fraction(value), count) for value, count in zip(values, counts, strict=True)]
    grown = [math.prod((1 + b * z) ** n for z, n in early) for b in bets]
    late = [math.prod((1 + b * z) ** n for z, n in early[3:]) for b in bets]
    opening, hour = Fraction(9, 10), Fraction(1, 20)
    by_hand = (1 - opening - hour) + sum(opening / 5 * stake for stake in grown)
    by_hand += sum(hour / 5 * stake for stake in late)
    assert book.e_values()[0] == pytest.approx(float(by_hand), rel=1e-12)


def test_the_order_of_late_scores_does_not_matter():
    rng = np.random.default_rng(3)
    values = rng.uniform(-0.7, 0.3, 200)
    books = [start(1), start(1)]
    for value in values:
        books[0] = update(books[0], ONE, [0], [value], [1])
    books[1] = update(books[1], ONE, [0] * 200, sorted(values.tolist()), [1] * 200)
    assert books[0].e_values() == pytest.approx(books[1].e_values(), rel=1e-9)


def test_the_reserve_is_never_more_than_spent_and_nothing_overflows():
    book = start(1)
    for hour in range(1, 3000):
        book = restart(book, hour)
    assert 0 <= book.reserve < 1e-4 and book.e_values()[0] == pytest.approx(1.0)
    lost = update(book, ONE, [0], [-0.7], [10**9])
    won = update(book, ONE, [0], [0.3], [10**9])
    assert 0 < lost.e_values()[0] < 1e-4
    # The largest evidence is exp(700), still a number.
    assert won.e_values()[0] == pytest.approx(math.exp(700), rel=1e-9)
    assert all(math.isfinite(value) for value in (*lost.e_values(), *won.e_values()))


def ever_crossed(rng, canary, production, slices, drift=0.0):
    """Whether an equal or worse candidate ever violates a guardrail, checked after every few sessions."""
    evidence, crossed = Evidence(), set()
    for at in range(slices):
        stage = 1 if at < slices // 3 else 2
        if at == slices // 3:
            evidence = evidence.at_new_stage()
        shift = -drift if at > slices // 4 else 0.0
        sessions = served(rng, 6, stage, canary + shift, production + shift)
        evidence = update_evidence(evidence, look(sessions), PRODUCTION, stage, at // 10)
        crossed |= {violation.reason for violation in check_sequential(evidence, PRODUCTION, stage)}
    return crossed


@pytest.mark.parametrize("drift", [0.0, 0.25])
def test_equal_models_are_seldom_flagged_at_any_number_of_checks(drift):
    # 0.05 is promised for ever; with 80 trials three standard errors are another 0.073. A drift of both
    # arms, with the split changing too, must not look like a difference; the floor it may cross is excused.
    crossed = [ever_crossed(np.random.default_rng((7, trial)), 0.9, 0.9, 80, drift) for trial in range(80)]
    accused = sum(bool(reasons & {"test_pass_rate_degradation", "variance_spike"}) for reasons in crossed)
    assert accused / 80 <= 0.05 + 0.073


def test_exactly_at_the_limit_no_test_exceeds_its_share_of_alpha():
    # 600 streams whose mean is exactly the floor, watched after every fifth session.
    rng = np.random.default_rng(11)
    streams = rng.binomial(10, rng.beta(1.5 * 0.73, 1.5 * 0.27, (600, 150))) / 10
    part = PRODUCTION.alpha * 0.16
    crossed = 0
    for stream in streams:
        book = start(1)
        for offset in range(0, 150, 5):
            book = update(
                book, ((0.30, 1.8),), [0] * 5, (0.73 - stream[offset : offset + 5]).tolist(), [1] * 5
            )
            if book.e_values()[0] >= 1 / part:
                crossed += 1
                break
    assert crossed / 600 <= part + 3 * math.sqrt(part * (1 - part) / 600)


def test_an_independent_implementation_needs_about_as_many_sessions():
    ville = pytest.importorskip("ville", reason="needs the package ville (extra `dev`)")
    alpha, floor, ours, reference = 0.05, 0.73, [], []
    for trial in range(40):
        rng = np.random.default_rng((5, trial))
        stream = rng.binomial(10, rng.beta(0.75, 0.75, 300)) / 10  # a mean of 0.5
        book = start(1)
        for n, value in enumerate(stream, 1):
            book = update(book, ((0.30, 1.8),), [0], [floor - value], [1])
            if book.e_values()[0] >= 1 / alpha:
                ours.append(n)
                break
        # A two-sided sequence at 2 alpha, half of it for either side.
        sequence = ville.BettingCS(alpha=2 * alpha, grid=1001).fit(stream)
        reference.append(sequence.excludes(floor))
    assert None not in reference
    assert len(ours) == 40  # both find every one of them
    assert 0.4 <= np.median(ours) / np.median(reference) <= 1.3


@pytest.mark.parametrize(("stage", "most"), [(1, 70), (2, 110)])
def test_a_drop_of_fifteen_points_is_detected_within_so_many_canary_sessions(stage, most):
    needed = []
    for trial in range(30):
        rng, evidence = np.random.default_rng((9, trial)), Evidence()
        while not check_sequential(evidence, PRODUCTION, stage) and evidence.canary.sessions < 400:
            evidence = update_evidence(
                evidence, look(served(rng, 10, stage, 0.65, 0.8)), PRODUCTION, stage, 0
            )
        needed.append(evidence.canary.sessions)
    assert np.median(needed) <= most


def test_a_late_spike_of_errors_is_detected_after_any_number_of_good_requests():
    evidence = Evidence()
    for hour in range(20):
        evidence = update_evidence(evidence, look(canary=RequestCounts(5000, 25, 0, 0)), PRODUCTION, 3, hour)
    assert not check_sequential(evidence, PRODUCTION, 3)
    bad = 0
    while not check_sequential(evidence, PRODUCTION, 3) and bad < 1000:
        evidence = update_evidence(
            evidence, look(canary=RequestCounts(10, 3, 0, 0)), PRODUCTION, 3, 20 + bad // 500
        )
        bad += 10
    assert bad <= 150
    assert [violation.reason for violation in check_sequential(evidence, PRODUCTION, 3)] == [
        "error_rate_spike"
    ]


def test_a_few_sessions_or_requests_give_no_verdict():
    six = update_evidence(Evidence(), look([SessionScore("canary", 1, 0.0)] * 6), PRODUCTION, 1, 0)
    assert six.e_values["stage_floor"] > PRODUCTION.threshold("pass_rate")
    assert check_sequential(six, PRODUCTION, 1) == []
    ten = update_evidence(six, look([SessionScore("canary", 1, 0.0)] * 4), PRODUCTION, 1, 0)
    assert "pass_rate_floor" in [violation.reason for violation in check_sequential(ten, PRODUCTION, 1)]
    five = update_evidence(Evidence(), look(canary=RequestCounts(5, 5, 0, 0)), PRODUCTION, 1, 0)
    assert five.e_values["errors"] > PRODUCTION.threshold("errors") and not check_sequential(
        five, PRODUCTION, 1
    )
    twenty = update_evidence(five, look(canary=RequestCounts(15, 15, 0, 0)), PRODUCTION, 1, 0)
    assert [violation.reason for violation in check_sequential(twenty, PRODUCTION, 1)] == ["error_rate_spike"]


def test_replayed_pairs_are_evidence_of_their_own():
    evidence, pairs = Evidence(), 0
    while not check_sequential(evidence, PRODUCTION, 1) and pairs < 100:
        evidence = update_evidence(evidence, look(replay=(ReplayPair(0.6, 0.8),)), PRODUCTION, 1, 0)
        pairs += 1
    assert pairs <= 40 and evidence.pairs == pairs and evidence.canary.sessions == 0
    assert "replayed pairs" in check_sequential(evidence, PRODUCTION, 1)[0].description


def test_every_session_is_in_at_most_one_comparison_with_its_contemporaries():
    rng = np.random.default_rng(2)
    sessions = [session._replace(variance=None) for session in served(rng, 487, 2, 0.8, 0.8)]
    whole, rest = ev._cut(sessions, 2)
    used = [session for canary, production in whole for session in (*canary, *production)]
    assert len(rest) == 487 % 8 and len(whole) >= 487 // 8
    assert all(canary and production for canary, production in whole)
    assert len({id(session) for session in used}) == len(used) <= 487
    position = {id(session): at // 8 for at, session in enumerate(sessions)}
    assert all(
        len({position[id(session)] for session in (*canary, *production)}) == 1
        for canary, production in whole
    )
    # Given one by one they are compared in the same way.
    evidence = Evidence()
    for session in sessions:
        evidence = update_evidence(evidence, look([session]), PRODUCTION, 2, 0)
    assert evidence.blocks == len(whole) and evidence.open_chunk == rest


def test_a_session_of_an_earlier_stage_counts_for_the_candidates_own_limits_only():
    evidence = update_evidence(Evidence(), look([SessionScore("canary", 1, 0.1, 0.2)] * 30), PRODUCTION, 2, 0)
    assert evidence.canary.sessions == 0 and evidence.canary_total.sessions == 30
    assert evidence.blocks == 0 and evidence.open_chunk == ()
    assert "low_pass_rate" in [violation.reason for violation in check_sequential(evidence, PRODUCTION, 2)]


def test_evidence_survives_json_to_the_last_bit():
    rng, evidence = np.random.default_rng(8), Evidence()
    for at in range(40):
        counts = {"canary": RequestCounts(9, 1, 8, 1), "production": RequestCounts(9, 0, 9, 0)}
        sessions = served(rng, 7, 1, 0.7, 0.8)
        evidence = update_evidence(
            evidence, look(sessions, replay=(ReplayPair(0.5, 0.6),), **counts), PRODUCTION, 1, at
        )
    document = TypeAdapter(Evidence).dump_python(evidence, mode="json")
    stored = json.loads(json.dumps(document, allow_nan=False))
    assert TypeAdapter(Evidence).validate_python(stored) == evidence
    assert len(evidence.e_values) == len(TESTS)
