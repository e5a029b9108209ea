"""The gate exactly at its limits, with a slow tail, and with gaps counted in the candidate's favor (E3)."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import betainc

from iccm_assets.errors import InputError
from iccm_assets.evaluation import confidence_bounds
from iccm_assets.evaluation.confidence_bounds import (
    confidence_above,
    confidence_of_harm,
    mean,
    quantile,
    quantile_ratio_confidence,
)
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence, RuleResult, Verdict
from iccm_assets.evaluation.quality_gate import evaluate_gate, find_detectable_loss
from iccm_assets.settings import EvaluationSettings

GATE = EvaluationSettings()
# With so little confidence required, only the observed harm decides.
LAX = GATE.model_copy(update={"confidence": 0.01})
STEADY = tuple(2.0 + (i % 7) / 20 for i in range(40))


def items(pairs, name="numbers", variances=(0.01, 0.01)):
    return tuple(ItemEvidence(f"{name}-{i}", name, *pair, *variances) for i, pair in enumerate(pairs))


def gate(*parts, settings=GATE, emergency=False, **changes):
    flat = tuple(item for part in parts for item in part)
    evidence = GateEvidence("v2", "v1", flat, len(flat), STEADY, STEADY)
    return evaluate_gate(replace(evidence, **changes), settings, emergency)


BETTER = items([(1.0, 0.5)] * 30 + [(1.0, 1.0)] * 170)


# --- improvement


def test_a_confidence_exactly_as_required_is_enough():
    confidence = gate(BETTER).rule("improvement").numbers["confidence"]
    exact = GATE.model_copy(update={"confidence": confidence})
    assert gate(BETTER, settings=exact).rule("improvement").outcome == "pass"
    close = items([(1.0, 0.0)] * 10 + [(0.0, 1.0)] * 4 + [(1.0, 1.0)] * 226)
    rule = gate(close, settings=GATE.model_copy(update={"confidence": 0.914})).rule("improvement")
    assert rule.outcome == "inconclusive" and "confidence 0.910 that" in rule.reason
    # Rounded to three digits, this confidence would be the required one.
    short = items([(1.0, 0.0)] * 11 + [(0.0, 1.0)] * 5 + [(1.0, 1.0)] * 226)
    rule = gate(short, settings=GATE.model_copy(update={"confidence": 0.895})).rule("improvement")
    assert rule.outcome == "inconclusive" and "confidence 0.894943 that" in rule.reason
    harms = items([(0.0, 1.0)] * 9 + [(1.0, 1.0)] * 191)
    confidence = gate(harms).rule("test_pass_rate_degradation").numbers["confidence"]
    for required, outcome in ((confidence, "fail"), (confidence + 1e-6, "pass")):
        settings = GATE.model_copy(update={"confidence": required})
        assert gate(harms, settings=settings).rule("test_pass_rate_degradation").outcome == outcome


@pytest.mark.parametrize(
    ("gain", "emergency", "outcome"), [(0.0, False, "fail"), (0.001, False, "pass"), (-0.02, True, "fail")]
)
def test_an_improvement_is_above_its_bound(gain, emergency, outcome):
    rule = gate(items([(0.5 + gain, 0.5)] * 200), settings=LAX, emergency=emergency).rule("improvement")
    assert (rule.outcome, rule.numbers["improvement"]) == (outcome, gain)
    assert rule.numbers["bound"] == (-0.02 if emergency else 0.0)
    assert rule.numbers["candidate"] == pytest.approx(0.5 + gain) and rule.numbers["production"] == 0.5
    assert rule.numbers["items"] == 200


def test_items_that_were_never_measured_could_be_gains():
    slightly_worse = items([(0.0, 1.0)] * 2 + [(1.0, 1.0)] * 198)
    assert gate(slightly_worse).rule("improvement").outcome == "fail"
    assert gate(slightly_worse, expected_items=202).rule("improvement").outcome == "fail"
    assert gate(slightly_worse, expected_items=203).rule("improvement").outcome == "inconclusive"
    evidence = gate(slightly_worse, expected_items=203).rule("complete_evidence")
    assert evidence.outcome == "inconclusive" and evidence.numbers == {"items": 200.0, "missing": 3.0}
    # Exactly at the bound only the missing items could make an improvement.
    even = items([(1.0, 0.0)] * 20 + [(0.0, 1.0)] * 20)
    rule = gate(even, expected_items=41, settings=LAX).rule("improvement")
    assert rule.outcome == "inconclusive" and rule.reason.endswith("and 1 missing items could change that")


@pytest.mark.parametrize(
    ("expected", "reason"), [(0, "nothing was measured"), (240, "240 of 240 items were not measured")]
)
def test_without_any_item_the_evidence_is_incomplete(expected, reason):
    rule = gate((), expected_items=expected).rule("complete_evidence")
    assert (rule.outcome, rule.reason) == ("inconclusive", reason)


def test_items_that_were_never_measured_could_make_up_a_drop():
    worse = items([(0.0, 1.0)] * 12 + [(1.0, 1.0)] * 188)
    assert gate(worse).rule("test_pass_rate_degradation").outcome == "fail"
    saved = gate(worse, expected_items=212).rule("test_pass_rate_degradation")
    assert saved.outcome == "pass" and saved.numbers["confidence"] < 0.9
    gap = gate(worse, expected_items=201).rule("test_pass_rate_degradation")
    harms = [1.0] * 12 + [0.0] * 188 + [-1.0]
    assert gap.numbers["confidence"] == pytest.approx(confidence_of_harm(harms, 0.02, -1.0))


def test_fewer_expected_items_than_measured_are_no_gap():
    assert gate(BETTER, expected_items=150).status == "pass"


# --- drops and slices


@pytest.mark.parametrize(("lost", "outcome"), [(4, "pass"), (5, "fail")])
def test_a_drop_of_exactly_two_points_is_allowed(lost, outcome):
    pairs = [(0.0, 1.0)] * lost + [(1.0, 1.0)] * (200 - lost)
    rule = gate(items(pairs), settings=LAX).rule("test_pass_rate_degradation")
    assert rule.outcome == outcome and rule.numbers["change"] == -lost / 200


def test_a_slice_of_twenty_items_is_judged_and_one_of_nineteen_is_not():
    for size, outcome in ((20, "fail"), (19, "pass")):
        lost = items([(0.0, 1.0)] * 6 + [(1.0, 1.0)] * (size - 6), "strings")
        rule = gate(BETTER, lost).rule("forgetting")
        assert rule.outcome == outcome and rule.numbers["strings"] == pytest.approx(-6 / size)
    # Items without a score belong to the slice as well, and could have been gains.
    lost = items([(0.0, 1.0)] * 9 + [(1.0, 1.0)] * 10 + [(None, 1.0)], "strings")
    assert gate(BETTER, lost).rule("forgetting").outcome == "fail"


@pytest.mark.parametrize(("lost", "outcome"), [(4, "pass"), (5, "fail")])
def test_a_slice_may_drop_by_exactly_five_points(lost, outcome):
    slice_ = items([(0.0, 1.0)] * lost + [(1.0, 1.0)] * (80 - lost), "strings")
    assert gate(BETTER, slice_).rule("forgetting").outcome == outcome


@pytest.mark.parametrize(
    ("noise", "lost"),
    [((0.0, 0), 3), ((1.0, 2), 4), ((1.0, 20), 7), ((0.3, 60), 4)],
)
def test_a_slice_is_lost_when_it_falls_by_more_than_the_others_do_by_chance(noise, lost):
    """Of 200 items of other slices, so many lose so much (and as many gain it)."""
    size, count = noise
    pairs = [(1.0 - size, 1.0)] * count + [(1.0, 1.0 - size)] * count + [(1.0, 1.0)] * (200 - 2 * count)
    others = [items(pairs[n::5], f"other {n}") for n in range(5)]
    gains = items([(1.0, 0.0)] * 12 + [(0.0, 0.0)] * 100, "not mastered")
    for losses, outcome in ((lost - 1, "pass"), (lost, "fail")):
        slice_ = items([(0.0, 1.0)] * losses + [(1.0, 1.0)] * (40 - losses), "strings")
        assert gate(*others, gains, slice_).rule("forgetting").outcome == outcome, losses
    gap = items([(0.0, 1.0)] * lost + [(1.0, 1.0)] * (40 - lost) + [(None, None)] * lost, "strings")
    assert gate(*others, gains, gap).rule("forgetting").outcome == "pass"


def test_what_a_slice_gains_says_what_chance_takes_from_it():
    slice_ = [(0.0, 1.0)] * 3 + [(1.0, 1.0)] * 37
    assert gate(items([(1.0, 1.0)] * 200), items(slice_, "s")).rule("forgetting").outcome == "fail"
    restless = [(0.0, 1.0)] * 8 + [(1.0, 0.0)] * 5 + [(1.0, 1.0)] * 27
    verdict = gate(items([(1.0, 1.0)] * 200), items(restless, "s"))
    assert verdict.rule("forgetting").numbers["s"] == -0.075
    assert verdict.rule("forgetting").outcome == "pass"


def test_slices_are_compared_with_those_of_their_kind():
    """What a slice that production does not master loses says nothing about one that it masters."""
    restless = items([(0.0, 1.0)] * 20 + [(1.0, 0.0)] * 20 + [(0.0, 0.0)] * 40, "not mastered")
    slice_ = items([(0.0, 1.0)] * 4 + [(1.0, 1.0)] * 36, "s")
    assert gate(BETTER, restless, slice_).rule("forgetting").outcome == "fail"
    assert (
        gate(BETTER, items([(0.0, 1.0)] * 40 + [(1.0, 1.0)] * 160, "o"), slice_)
        .rule("forgetting")
        .reason.startswith("slice o")
    )


@pytest.mark.parametrize("rates", [[1.0] * 20 + [0.0] * 4, [0.9] * 15 + [0.4] * 15, [1.0] * 40])
def test_the_loss_that_can_be_shown_is_the_smallest_that_fails(rates):
    kept = items([(rate, rate) for rate in rates], "s")
    loss = find_detectable_loss((*BETTER, *kept), "s", GATE)
    outcomes = []
    for lost in range(1, len(rates) + 1):
        pairs = [(0.0 if at < lost else rate, rate) for at, rate in enumerate(rates)]
        outcomes.append(gate(BETTER, items(pairs, "s")).rule("forgetting").outcome)
    count = outcomes.index("fail") + 1
    assert loss == pytest.approx(sum(rates[:count]) / len(rates))
    assert set(outcomes[count:]) <= {"fail"}


@pytest.mark.parametrize(
    ("rates", "loss"),
    [
        ([0.052, 0.051] * 10, None),
        ([0.05] * 40, None),
        ([1.0] * 19, None),
        ([0.0] * 40, None),
        ([1.0] * 20, 3 / 20),
        ([1.0] * 40, 3 / 40),
        # Exactly the allowed loss is none.
        ([1.0] * 80, 5 / 80),
    ],
)
def test_the_loss_that_can_be_shown_depends_on_the_items(rates, loss):
    loss_shown = find_detectable_loss((*BETTER, *items([(rate, rate) for rate in rates], "s")), "s", GATE)
    assert loss_shown == (None if loss is None else pytest.approx(loss))


@pytest.mark.parametrize(("confidence", "is_lost"), [(0.95, True), (0.949999, False)])
def test_a_slice_is_lost_from_the_required_confidence_on(monkeypatch, confidence, is_lost):
    """One slice of enough items is judged, so that 0.95 is required."""
    monkeypatch.setattr(confidence_bounds, "confidence_of_loss", lambda losses, samples: confidence)
    slice_ = items([(0.0, 1.0)] * 4 + [(1.0, 1.0)] * 36, "s")
    assert gate(slice_).rule("forgetting").outcome == ("fail" if is_lost else "pass")
    assert find_detectable_loss(slice_, "s", GATE) == (3 / 40 if is_lost else None)


def test_a_slice_is_mastered_from_a_pass_rate_of_080_on():
    for solved, masters in ((32, 1.0), (31, 0.0)):
        slice_ = items([(1.0, 1.0)] * solved + [(0.0, 0.0)] * (40 - solved), "s")
        assert gate(slice_).rule("pooled_forgetting").numbers["slices"] == masters


@pytest.mark.parametrize(("lost", "outcome"), [(18, "pass"), (19, "fail")])
def test_the_slices_that_production_masters_are_judged_together(lost, outcome):
    """Three points of 600 items are allowed; no slice of 40 lost more than two items."""
    counts = [lost // 15 + (n < lost % 15) for n in range(15)]
    old = [
        item
        for n, count in enumerate(counts)
        for item in items([(0.0, 1.0)] * count + [(1.0, 1.0)] * (40 - count), f"old {n}")
    ]
    new = items([(1.0, 0.0)] * 40, "new")
    verdict = gate(old, new)
    rule = verdict.rule("pooled_forgetting")
    assert rule.outcome == outcome and verdict.rule("forgetting").outcome == "pass"
    assert rule.numbers["slices"] == 15 and rule.numbers["change"] == pytest.approx(-lost / 600)
    assert rule.reason.startswith("the 15 slices that production masters changed by -0.03")
    assert "masters no slice" in gate(new).rule("pooled_forgetting").reason


def equal_models(rng, slices):
    """Two models that differ by chance: rarely where production is good, often where it is not."""
    for n in range(slices):
        good = n < slices * 2 // 3
        for at in range(40):
            production = rng.choice([1.0, 0.5, 0.0], p=[0.96, 0.03, 0.01] if good else [0.15, 0.3, 0.55])
            candidate = production
            if rng.random() < (0.03 if good else 0.45):
                candidate = min(1.0, max(0.0, production + rng.choice([-1, 1]) * rng.uniform(0.2, 0.6)))
            yield ItemEvidence(f"{n}-{at}", f"s{n}", float(candidate), float(production))


def lose(rng, evidence, chosen, loss, fraction):
    """Let the candidate lose ``loss`` over these slices, in so many of the items that it solves."""
    at = [n for n, item in enumerate(evidence) if item.slice in chosen]
    losers = rng.choice(at, round(fraction * len(at)), replace=False)
    changed = list(evidence)
    for n in losers:
        rate = max(0.0, evidence[n].candidate - loss / fraction)
        changed[n] = replace(evidence[n], candidate=rate)
    return changed


def lose_whole(rng, evidence, name, count):
    """Let the candidate fail so many of the items of a slice that it solves best."""
    at = sorted(
        (n for n, item in enumerate(evidence) if item.slice == name),
        key=lambda n: (-round(evidence[n].candidate, 1), rng.random()),
    )
    changed = list(evidence)
    for n in at[:count]:
        changed[n] = replace(evidence[n], candidate=0.0)
    return changed


@pytest.mark.slow
def test_forgetting_has_power_of_090_and_a_false_positive_rate_of_005():
    """Of 80 simulated evaluations with a loss in one slice, in the old slices, and in none."""
    rng = np.random.default_rng(5)
    old = [f"s{n}" for n in range(12)]
    false_positives, spread, whole, detected_all = 0, 0, 0, 0
    for _ in range(80):
        evidence = list(equal_models(rng, 18))
        rules = {rule.name: rule.outcome for rule in gate(evidence).rules}
        false_positives += "fail" in (rules["forgetting"], rules["pooled_forgetting"])
        in_one = gate(lose(rng, evidence, [rng.choice(old)], 0.10, 0.3))
        spread += in_one.rule("forgetting").outcome == "fail"
        whole += gate(lose_whole(rng, evidence, rng.choice(old), 4)).rule("forgetting").outcome == "fail"
        detected_all += gate(lose(rng, evidence, old, 0.04, 0.1)).rule("pooled_forgetting").outcome == "fail"
    assert false_positives <= 4
    assert spread >= 72 and whole >= 72 and detected_all >= 72


def test_the_worst_slice_is_named_and_a_gain_elsewhere_does_not_hide_it():
    better, worse = items([(1.0, 0.5)] * 20, "a"), items([(0.9, 1.0)] * 5, "b")
    rule = gate(BETTER, better, worse).rule("forgetting")
    assert rule.numbers == {"numbers": 0.075, "a": 0.5, "b": pytest.approx(-0.1)}
    assert "worst: b -0.1000" in rule.reason and "(1 with fewer than 20 items not judged)" in rule.reason
    assert "no slice of 2 " in rule.reason
    assert "not judged" not in gate(BETTER, better).rule("forgetting").reason


def test_without_any_reliable_item_the_comparing_rules_are_inconclusive():
    verdict = gate(items([(None, 1.0)] * 30))
    outcomes = {rule.name: rule.outcome for rule in verdict.rules}
    assert outcomes.pop("latency_regression") == outcomes.pop("blank_responses") == "pass"
    assert set(outcomes.values()) == {"inconclusive"} and verdict.improvement is None


# --- variance


def varied(candidate, production, n=200, **changes):
    return gate(items([(1.0, 0.5)] * n, variances=(candidate, production)), settings=LAX, **changes).rule(
        "variance_spike"
    )


@pytest.mark.parametrize(
    ("candidate", "production", "outcome"),
    [(0.03, 0.02, "pass"), (0.031, 0.02, "fail"), (0.005, 0.0, "pass"), (0.006, 0.0, "fail")],
)
def test_a_variance_is_judged_above_the_ratio_and_the_floor(candidate, production, outcome):
    rule = varied(candidate, production)
    assert rule.outcome == outcome
    assert rule.numbers["limit"] == pytest.approx(max(0.005, 1.5 * production))


def test_a_mean_variance_exactly_at_the_limit_is_no_spike():
    half = items([(1.0, 0.5)] * 20, "a", (0.06, 0.02)), items([(1.0, 0.5)] * 20, "b", (0.0, 0.02))
    rule = gate(*half, settings=LAX).rule("variance_spike")
    assert rule.numbers["candidate"] == rule.numbers["limit"] == pytest.approx(0.03)
    assert rule.numbers["confidence"] > 0.01 and rule.outcome == "pass"


def test_items_without_a_variance_count_in_the_candidates_favor():
    spread = items([(1.0, 0.5)] * 20, variances=(0.2, 0.01))
    assert gate(spread).rule("variance_spike").outcome == "fail"
    unknown = [replace(item, item=f"u{index}", production_variance=None) for index, item in enumerate(spread)]
    for more in ({"expected_items": 40}, {}):
        parts = (spread,) if more else (spread, unknown)
        rule = gate(*parts, **more).rule("variance_spike")
        assert rule.outcome == "pass" and rule.numbers["candidate"] == pytest.approx(0.2)
    only = [replace(item, candidate_variance=None) for item in spread]
    assert gate(only).rule("variance_spike").outcome == "inconclusive"


def test_the_confidence_in_a_spike_is_that_in_the_ratio_or_in_the_floor_whichever_is_smaller():
    # Of 200 equal excesses of 0.006 and a worst one of -1.5 / 4: Gaffke's bound.
    assert varied(0.006, 0.0).numbers["confidence"] == pytest.approx(1 - (0.375 / 0.381) ** 200, abs=2e-6)
    spread = items([(1.0, 0.5)] * 20, variances=(0.2, 0.01))
    missing = gate(spread, expected_items=25).rule("variance_spike").numbers["confidence"]
    in_ratio = confidence_of_harm([0.2 - 1.5 * 0.01] * 20 + [-1.5 / 4] * 5, 0.0, -1.5 / 4)
    in_floor = confidence_of_harm([0.2] * 20 + [0.0] * 5, 0.005, 0.0)
    assert in_ratio < in_floor and missing == pytest.approx(in_ratio)
    few = items([(1.0, 0.5)] * 3, "a", (0.04, 0.0)), items([(1.0, 0.5)] * 17, "b", (0.0, 0.0))
    in_floor = confidence_of_harm([0.04] * 3 + [0.0] * 17, 0.005, 0.0)
    assert gate(*few).rule("variance_spike").numbers["confidence"] == pytest.approx(in_floor)
    assert in_floor < confidence_of_harm([0.04] * 3 + [0.0] * 17, 0.0, -1.5 / 4)
    small = GATE.model_copy(update={"max_variance_ratio": 0.01})
    missing = gate(*few, expected_items=22, settings=small).rule("variance_spike").numbers["confidence"]
    assert missing == pytest.approx(confidence_of_harm([0.04] * 3 + [0.0] * 19, 0.005, 0.0))


# --- latency


def latencies(slow, n=100, factor=3.0):
    """The latencies of which so many are slow."""
    return tuple(1.0 + i / 1000 for i in range(n - slow)) + (factor,) * slow


@pytest.mark.parametrize(("slow", "outcome"), [(20, "fail"), (1, "pass")])
def test_a_slow_tail_fails_although_the_median_is_the_same(slow, outcome):
    candidate, production = latencies(slow), latencies(0)
    assert quantile(candidate, 0.5) == quantile(production, 0.5)
    rule = gate(BETTER, candidate_latency=candidate, production_latency=production).rule("latency_regression")
    assert rule.outcome == outcome
    p95 = 3.0 if slow == 20 else 1.094
    assert rule.numbers["candidate_ms"] == pytest.approx(p95) and rule.numbers["production_ms"] == 1.094
    assert rule.numbers["ratio"] == pytest.approx(p95 / 1.094, abs=1e-6) and rule.numbers["limit"] == 1.2


def test_twenty_responses_of_both_versions_are_needed_or_as_many_as_are_measured():
    few = gate(BETTER, candidate_latency=(9.0,) * 19)
    assert few.rule("latency_regression").outcome == "inconclusive"
    assert gate(BETTER, production_latency=(9.0,) * 19).status == "inconclusive"
    assert gate(BETTER, candidate_latency=(9.0,) * 20).rule("latency_regression").outcome == "fail"
    five = GATE.model_copy(update={"latency_items": 5})
    assert gate(BETTER, candidate_latency=(9.0,) * 5, settings=five).rule("latency_regression").outcome == (
        "fail"
    )
    assert gate(BETTER, candidate_latency=(9.0,) * 4, settings=five).status == "inconclusive"


@pytest.mark.parametrize(("factor", "outcome"), [(1.25, "pass"), (1.5, "fail")])
def test_latency_is_judged_above_its_ratio(factor, outcome):
    settings = LAX.model_copy(update={"max_latency_ratio": 1.25})
    rule = gate(
        BETTER, candidate_latency=(2.0 * factor,) * 20, production_latency=(2.0,) * 20, settings=settings
    )
    assert rule.rule("latency_regression").outcome == outcome


def test_exactly_the_allowed_ratio_is_no_regression_however_likely_it_is_exceeded():
    settings = LAX.model_copy(update={"max_latency_ratio": 1.25})
    candidate, production = (2.5,) * 19 + (9.0,), (2.0,) * 20
    rule = gate(BETTER, candidate_latency=candidate, production_latency=production, settings=settings).rule(
        "latency_regression"
    )
    # The p95 of a resample is 9 where at least two of its 20 draws are.
    likely = 1 - 0.95**20 - 20 * 0.05 * 0.95**19
    assert rule.numbers["ratio"] == 1.25 and rule.numbers["confidence"] == pytest.approx(likely, abs=2e-6)
    assert rule.outcome == "pass"


# --- the verdict


@pytest.mark.parametrize(
    ("parts", "changes", "status"),
    [
        ((BETTER,), {}, "pass"),
        ((BETTER,), {"missing_layers": ("seccomp",)}, "inconclusive"),
        ((items([(0.5, 1.0)] * 200),), {"missing_layers": ("seccomp",)}, "fail"),
    ],
)
def test_the_strongest_outcome_decides(parts, changes, status):
    verdict = gate(*parts, **changes)
    assert verdict.status == status
    assert verdict.reasons == tuple(
        f"{rule.name}: {rule.reason}" for rule in verdict.rules if rule.outcome == status
    )
    assert [rule.name for rule in verdict.rules] == [
        "complete_evidence", "blank_responses", "improvement", "test_pass_rate_degradation", "variance_spike",
        "latency_regression", "forgetting", "pooled_forgetting",
    ]  # fmt: skip


@pytest.mark.parametrize(("blank", "outcome"), [(100, "pass"), (101, "fail")])
def test_a_candidate_that_writes_blanks_fails_by_name(blank, outcome):
    responses = [replace(item, is_blank=number < blank) for number, item in enumerate(BETTER)]
    rule = gate(responses).rule("blank_responses")
    assert (rule.outcome, rule.numbers) == (outcome, {"blank": float(blank), "items": 200.0})
    assert rule.reason.startswith(f"{blank} of 200 responses of ") and rule.reason.endswith(" are blank")
    assert gate(responses).status == outcome
    assert gate([]).rule("blank_responses").outcome == "pass"  # nothing was measured, which another rule says


def test_doubted_items_are_neither_measured_nor_missing_a_score():
    doubted = [replace(item, unreliable_reason="left its process") for item in BETTER[:7]]
    verdict = gate([*doubted, *BETTER[7:]])
    assert verdict.rule("improvement").numbers["items"] == 193
    (reason,) = verdict.reasons
    assert "verdict on 7 items" in reason and "and 2 more" in reason and "no score" not in reason
    (reason,) = gate([*doubted[:5], *BETTER[5:]]).reasons
    assert "verdict on 5 items" in reason and "more" not in reason


@pytest.mark.parametrize(
    "changes",
    [{"candidate": -0.001}, {"candidate": 1.001}, {"production": 1.001}, {"candidate_variance": -0.1}],
)
def test_rates_outside_zero_and_one_are_rejected(changes):
    item = replace(BETTER[0], **changes)
    with pytest.raises(InputError, match="outside"):
        GateEvidence("v2", "v1", (item,), 1)
    GateEvidence("v2", "v1", (replace(BETTER[0], candidate=1.0, production=0.0),), 1)


@pytest.mark.parametrize("latency", [0.0, -1.0, math.inf])
@pytest.mark.parametrize("arm", ["candidate_latency", "production_latency"])
def test_latencies_are_positive_and_finite(arm, latency):
    with pytest.raises(InputError, match="latency"):
        GateEvidence("v2", "v1", (), 0, **{arm: (1.0, latency)})


def test_stored_values_are_read_strictly():
    verdict = Verdict("pass", 0.1, False, (RuleResult("improvement", "pass", "better", {"a": 1.0}),))
    stored = verdict.to_json()
    assert Verdict.from_json(stored) == verdict and ", " not in stored
    assert verdict.rule("improvement").reason == "better" and '"reasons":["improvement: better"]' in stored
    for broken, place in (
        (stored.replace('"emergency":false', '"emergency":"no"'), "emergency"),
        (stored.replace('"improvement":0.1', '"improvement":"much","extra":1'), "improvement: .* and 1 more"),
        (stored.replace('"status":"pass"', '"status":"good"'), "status"),
        ("{", "verdict"),
        ("[]", "verdict: value"),
    ):
        with pytest.raises(InputError, match=place):
            Verdict.from_json(broken)


def test_an_error_counts_the_others_and_no_stored_value_is_not_a_number():
    stored = Verdict("pass", 0.1, False, ()).to_json()
    with pytest.raises(InputError) as caught:
        Verdict.from_json(stored.replace('"status":"pass"', '"status":"good"'))
    assert "more" not in str(caught.value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        Verdict("pass", math.nan, False, ()).to_json()
    assert "é" in RuleResult("é", "pass", "").to_json()


def test_an_item_without_a_score_has_no_rate():
    item = ItemEvidence("a", "s", None, 0.5)
    assert not item.reliable and not replace(item, candidate=0.5, unreliable_reason="?").reliable
    assert replace(item, candidate=0.7).difference == pytest.approx(0.2)
    assert item.rate(of_candidate=False) == 0.5
    with pytest.raises(ValueError, match="no score"):
        item.rate(of_candidate=True)


# --- arithmetic


def test_a_rank_is_not_moved_by_an_error_of_a_float():
    assert 0.07 * 100 > 7
    assert quantile(range(1, 101), 0.07) == 7
    assert [quantile([1, 2, 3, 4], q) for q in (0.0, 0.25, 0.26, 0.5, 0.75, 1.0)] == [1, 1, 2, 2, 3, 4]


def test_exactly_the_allowed_ratio_of_latencies_is_no_evidence():
    assert quantile_ratio_confidence([2.5] * 3, [2.0] * 3, 0.95, 1.25) == 0.0
    assert quantile_ratio_confidence([2.6] * 3, [2.0] * 3, 0.95, 1.25) == 1.0


@pytest.mark.parametrize("samples", [([1.0], []), ([], [1.0]), ([], [])])
def test_a_quantile_of_no_latencies_is_not_even_computed(samples):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of numpy, for a division by zero values
        assert quantile_ratio_confidence(*samples, 0.95, 1.2) == 0.0


def test_students_t_needs_two_values_that_differ():
    for values in ([0.5], [0.5, 0.5]):
        assert confidence_of_harm(values, 0.1, -1.0) == confidence_above(values, 0.1, -1.0)
    # Two values, one degree of freedom: Student's t is Cauchy's distribution.
    error = math.sqrt(((0.3 - 0.5) ** 2 + (0.7 - 0.5) ** 2) / 1 / 2)
    expected = 0.5 + math.atan((0.5 - 0.1) / error) / math.pi
    assert confidence_of_harm([0.3, 0.7], 0.1, -1.0) == pytest.approx(expected, abs=2e-6)


def test_a_value_equal_to_the_bound_is_neither_for_nor_against():
    assert confidence_above([0.2, 0.2, 0.7], 0.2, 0.2) == 1.0
    with_ties = confidence_above([0.2, 0.2, 0.7], 0.2, -1.0)
    assert with_ties == pytest.approx(confidence_above([0.7], 0.2, -1.0), abs=1e-6)
    # One gain of 0.5 against a worst case of -1.2, both with Exp(1) weights: 0.5 / 1.7.
    assert with_ties == pytest.approx(0.5 / 1.7, abs=2e-6)
    assert confidence_above([0.5, -1.0], 0.0, -1.0) == pytest.approx(
        # P(0.5 X > Y + Z) = (0.5 / 1.5) ** 2 for exponential weights
        (0.5 / 1.5) ** 2,
        abs=2e-6,
    )


def test_only_values_on_both_sides_of_the_bound_leave_a_doubt_however_many_there_are():
    for values, bound, worst, confidence in (
        ([0.0], 0.1, -1.0, 0.0),
        ([0.1, 0.0], 0.1, -1.0, 0.0),
        ([0.5], -1.5, -1.0, 1.0),
        ([-0.5, -1.0], -1.0, -1.0, 1.0),
        ([0.1], 0.1, 0.1, 0.0),
    ):
        assert confidence_above(values * 100_000, bound, worst) == confidence


@pytest.mark.parametrize(
    ("won", "lost"),
    [(2970, 30), (30, 2970), (5100, 5000), (20, 20_000), (50_600, 50_000), (500_000, 499_000)],
)
def test_a_confidence_of_any_number_of_values_is_that_of_the_sign_test(won, lost):
    for size in (1.0, 0.001):
        confidence = confidence_above([size] * won + [-size] * lost, 0.0, -size)
        assert confidence == pytest.approx(betainc(lost + 1, won, 0.5), abs=2e-6)


def test_a_mean_is_rounded_to_nine_decimals():
    assert mean([0.1, 0.2, 0.30000000001]) == 0.2
    assert mean([1.0, 0.0, 0.0]) == 0.333333333 and math.copysign(1, mean([-1e-12])) == 1
