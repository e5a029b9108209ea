"""The quality gate's verdicts (E3): every rule can pass, fail and be inconclusive, with numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.db import tables as t
from iccm_assets.errors import InputError
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence, Verdict
from iccm_assets.evaluation.quality_gate import evaluate_gate, max_variance
from iccm_assets.settings import EvaluationSettings

GATE = EvaluationSettings()


def items(
    pairs: list[tuple[float | None, float | None]], slice_: str = "numbers"
) -> tuple[ItemEvidence, ...]:
    return tuple(
        ItemEvidence(f"{slice_}-{i}", slice_, candidate, production, 0.01, 0.01)
        for i, (candidate, production) in enumerate(pairs)
    )


def evidence(*parts: tuple[ItemEvidence, ...], **changes: object) -> GateEvidence:
    all_items = tuple(item for part in parts for item in part)
    steady = tuple(2.0 + (i % 7) / 20 for i in range(40))
    evidence_ = GateEvidence("v2", "v1", all_items, len(all_items), steady, steady)
    return replace(evidence_, **changes)


def failed_rules(verdict: Verdict) -> tuple[str, ...]:
    return tuple(rule.name for rule in verdict.rules if rule.outcome == "fail")


BETTER = items([(1.0, 0.5)] * 30 + [(1.0, 1.0)] * 170)


def test_a_clear_improvement_passes_with_its_size() -> None:
    verdict = evaluate_gate(evidence(BETTER), GATE)
    assert verdict.status == "pass"
    assert verdict.improvement == 0.075
    assert "improvement +0.0750 on 200 items" in " ".join(verdict.reasons)
    assert [rule.outcome for rule in verdict.rules] == ["pass"] * 8


def test_no_improvement_fails() -> None:
    verdict = evaluate_gate(evidence(items([(0.8, 0.8)] * 240)), GATE)
    assert (verdict.status, failed_rules(verdict)) == ("fail", ("improvement",))
    assert verdict.improvement == 0.0


def test_an_improvement_by_chance_is_inconclusive() -> None:
    verdict = evaluate_gate(evidence(items([(1.0, 0.0)] * 6 + [(0.0, 1.0)] * 4 + [(1.0, 1.0)] * 230)), GATE)
    assert verdict.status == "inconclusive"
    assert verdict.improvement == pytest.approx(2 / 240, abs=1e-8)
    assert "0.9 required" in verdict.reasons[0]


def test_a_confidence_just_below_the_required_one_is_not_rounded_up_to_it() -> None:
    verdict = evaluate_gate(evidence(BETTER), GATE)
    confidence = next(rule for rule in verdict.rules if rule.name == "improvement").numbers["confidence"]
    barely = evaluate_gate(evidence(BETTER), GATE.model_copy(update={"confidence": confidence + 1e-9}))
    assert barely.status == "inconclusive"
    assert f"confidence {confidence:.6f} that" in barely.reasons[0]


@pytest.mark.parametrize(
    ("change", "emergency", "status"),
    [
        (-0.01, False, "fail"),
        (0.0, True, "pass"),
        (-0.005, True, "pass"),
        (-0.02, True, "fail"),
        (-0.03, True, "fail"),
    ],
)
def test_an_emergency_lowers_the_bound_by_two_points(change: float, emergency: bool, status: str) -> None:
    pairs = [(round(0.8 + change, 6), 0.8)] * 240
    assert evaluate_gate(evidence(items(pairs)), GATE, emergency=emergency).status == status


def test_a_drop_of_more_than_two_points_is_a_degradation() -> None:
    verdict = evaluate_gate(evidence(items([(0.0, 1.0)] * 24 + [(1.0, 1.0)] * 216)), GATE)
    assert failed_rules(verdict) == (
        "improvement",
        "test_pass_rate_degradation",
        "forgetting",
        "pooled_forgetting",
    )
    barely = evaluate_gate(evidence(items([(0.0, 1.0)] * 5 + [(1.0, 1.0)] * 235)), GATE)
    assert failed_rules(barely) == ("improvement",)


def with_variance(candidate: list[float], production: list[float]) -> GateEvidence:
    pairs = zip(BETTER, candidate, production, strict=True)
    return evidence(tuple(replace(item, candidate_variance=a, production_variance=b) for item, a, b in pairs))


def test_a_variance_spike_fails_with_evidence_only() -> None:
    spread = evaluate_gate(with_variance([0.08] * 100 + [0.0] * 100, [0.02] * 200), GATE)
    assert failed_rules(spread) == ("variance_spike",)
    assert "implementation variance 0.0400, production 0.0200, limit 0.0300" in spread.reasons[0]
    few = [0.25] * 5 + [0.0] * 195
    unproven = evaluate_gate(with_variance(few, [0.002] * 200), GATE).rule("variance_spike")
    assert unproven.numbers["candidate"] > unproven.numbers["limit"]
    assert unproven.outcome == "pass"
    # Surely above 1.5 x production's, but not surely above the floor.
    near_floor = evaluate_gate(with_variance([0.025] * 45 + [0.0] * 155, [0.0] * 200), GATE).rule(
        "variance_spike"
    )
    assert near_floor.numbers["candidate"] > near_floor.numbers["limit"] == 0.005
    assert near_floor.outcome == "pass"


def test_variance_below_the_floor_is_never_a_spike() -> None:
    assert evaluate_gate(with_variance([0.004] * 200, [0.0] * 200), GATE).status == "pass"
    assert max_variance(0.0, GATE) == 0.005
    assert max_variance(0.02, GATE) == pytest.approx(0.03)


def test_slow_responses_fail_and_unmeasured_ones_are_inconclusive() -> None:
    steady = evidence(BETTER).production_latency
    slow = evaluate_gate(evidence(BETTER, candidate_latency=tuple(latency * 1.5 for latency in steady)), GATE)
    assert failed_rules(slow) == ("latency_regression",)
    assert "1.50 x production's" in slow.reasons[0]
    fast_enough = evaluate_gate(
        evidence(BETTER, candidate_latency=tuple(latency * 1.15 for latency in steady)), GATE
    )
    assert fast_enough.status == "pass"
    unmeasured = evaluate_gate(evidence(BETTER, candidate_latency=()), GATE)
    assert unmeasured.status == "inconclusive"
    assert "measured on 0 and 40 responses" in unmeasured.reasons[0]


def test_a_lost_slice_fails_even_if_the_rest_improved() -> None:
    lost = items([(0.0, 1.0)] * 6 + [(1.0, 1.0)] * 24, "strings")
    verdict = evaluate_gate(evidence(BETTER, lost), GATE)
    assert failed_rules(verdict) == ("forgetting",)
    assert "slice strings changed by -0.2000 on 30 items" in verdict.reasons[0]
    assert verdict.improvement is not None and verdict.improvement > 0


@pytest.mark.parametrize(
    "slice_",
    [
        pytest.param(items([(0.0, 1.0)] * 5 + [(1.0, 1.0)] * 14, "small"), id="fewer than 20 items"),
        pytest.param(items([(0.0, 1.0)] * 2 + [(1.0, 1.0)] * 28, "unlucky"), id="no evidence"),
    ],
)
def test_a_slice_is_lost_only_with_items_and_evidence(slice_: tuple[ItemEvidence, ...]) -> None:
    verdict = evaluate_gate(evidence(BETTER, slice_), GATE)
    assert verdict.rule("forgetting").outcome == "pass"
    assert f"worst: {slice_[0].slice}" in verdict.rule("forgetting").reason


def test_equal_models_rarely_fail_a_harm_rule() -> None:
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(60):
        evidence_items = []
        for index in range(240):
            pair = rng.choice([0.0, 1 / 3, 2 / 3, 1.0], p=[0.1, 0.05, 0.1, 0.75], size=2)
            candidate, production = pair if rng.random() < 0.15 else (pair[0], pair[0])
            spread = rng.choice([0.0, 0.02, 0.05], size=2)
            evidence_items.append(
                ItemEvidence(f"{index}", f"s{index % 8}", *map(float, (candidate, production, *spread)))
            )
        latency = [tuple(rng.lognormal(0, 0.2, 40)) for _ in range(2)]
        verdict = evaluate_gate(GateEvidence("v2", "v1", tuple(evidence_items), 240, *latency), GATE)
        alarms += any(name != "improvement" for name in failed_rules(verdict))
    assert alarms <= 6


def test_a_missing_item_turns_a_pass_into_inconclusive() -> None:
    gap = items([(None, 1.0)], "gap")
    verdict = evaluate_gate(evidence(BETTER, gap), GATE)
    assert verdict.status == "inconclusive"
    assert verdict.reasons == ("complete_evidence: 1 items have no score: gap-0",)
    unmeasured = evaluate_gate(evidence(BETTER, expected_items=240), GATE)
    assert unmeasured.reasons == ("complete_evidence: 40 of 240 items were not measured",)


def test_an_unreliable_judge_turns_a_pass_into_inconclusive() -> None:
    doubted = (replace(BETTER[0], unreliable_reason="left its process"), *BETTER[1:])
    verdict = evaluate_gate(evidence(doubted), GATE)
    assert verdict.status == "inconclusive"
    assert "numbers-0 (left its process)" in verdict.reasons[0]
    layers = evaluate_gate(evidence(BETTER, missing_layers=("seccomp",)), GATE)
    assert layers.reasons == ("complete_evidence: sandbox layers were missing: seccomp",)


def test_a_failure_that_missing_items_cannot_change_stays_a_failure() -> None:
    gaps = items([(None, 1.0)] * 3, "gap")
    assert evaluate_gate(evidence(items([(0.0, 1.0)] * 40 + [(1.0, 1.0)] * 160), gaps), GATE).status == "fail"
    turnable = evaluate_gate(evidence(items([(0.0, 1.0)] * 2 + [(1.0, 1.0)] * 198), gaps), GATE)
    assert turnable.status == "inconclusive"
    assert "3 missing items could change that" in " ".join(turnable.reasons)


def test_a_slice_is_not_lost_while_missing_items_could_save_it() -> None:
    dropped = [(0.0, 1.0)] * 5 + [(1.0, 1.0)] * 19
    assert failed_rules(evaluate_gate(evidence(BETTER, items(dropped, "strings")), GATE)) == ("forgetting",)
    open_ = evaluate_gate(evidence(BETTER, items([*dropped, *[(None, 1.0)] * 4], "strings")), GATE)
    assert (open_.status, failed_rules(open_)) == ("inconclusive", ())


def test_no_measurement_is_inconclusive_not_a_failure() -> None:
    for empty in (GateEvidence("v2", "v1", (), 240), GateEvidence("v2", "v1", (), 0)):
        verdict = evaluate_gate(empty, GATE)
        assert (verdict.status, verdict.improvement) == ("inconclusive", None)


SCORES = st.sampled_from([None, 0.0, 0.25, 1 / 3, 0.7, 1.0])
ITEMS = st.lists(
    st.tuples(st.sampled_from("abc"), SCORES, SCORES, st.sampled_from([None, 0.0, 0.1])), max_size=40
)


@given(ITEMS, st.booleans(), st.integers(0, 3))
def test_stored_evidence_gives_the_same_bytes_again(
    rows: list[tuple[str, float | None, float | None, float | None]], emergency: bool, missing: int
) -> None:
    evidence_items = tuple(ItemEvidence(f"i{i}", s, a, b, v, v) for i, (s, a, b, v) in enumerate(rows))
    first = GateEvidence(
        "v2", "v1", evidence_items, len(evidence_items) + missing, (1.1, 2.2), (1.3, 2.5), ()
    )
    again = GateEvidence.from_json(json.loads(json.dumps(json.loads(first.to_json()))))
    assert again == first
    verdict = evaluate_gate(first, GATE, emergency)
    assert evaluate_gate(again, GATE, emergency).to_json() == verdict.to_json()
    assert Verdict.from_json(verdict.to_json()) == verdict
    backwards = replace(first, items=tuple(reversed(first.items)))
    assert evaluate_gate(backwards, GATE, emergency).to_json() == verdict.to_json()


@given(ITEMS)
def test_only_complete_and_better_evidence_passes(
    rows: list[tuple[str, float | None, float | None, float | None]],
) -> None:
    evidence_items = tuple(ItemEvidence(f"i{i}", s, a, b, v, v) for i, (s, a, b, v) in enumerate(rows))
    verdict = evaluate_gate(evidence(evidence_items), GATE)
    if verdict.status == "pass":
        assert all(item.reliable for item in evidence_items)
        assert verdict.improvement is not None and verdict.improvement > 0
    if verdict.improvement is not None and verdict.improvement <= 0:
        assert verdict.status != "pass"


def test_impossible_evidence_is_rejected_by_name() -> None:
    with pytest.raises(InputError, match=r"item a is outside 0\.\.1"):
        GateEvidence("v2", "v1", (ItemEvidence("a", "s", 1.2, 1.0),), 1)
    with pytest.raises(InputError, match="names an item twice"):
        GateEvidence("v2", "v1", (ItemEvidence("a", "s", 1.0, 1.0),) * 2, 2)
    with pytest.raises(InputError, match="latency of nan"):
        GateEvidence("v2", "v1", (), 0, (float("nan"),))
    with pytest.raises(InputError, match="stored gate evidence"):
        GateEvidence.from_json("{}")
    with pytest.raises(InputError, match="stored gate verdict"):
        Verdict.from_json("[]")


def test_evidence_from_the_database_gives_the_same_verdict(engine: sa.Engine) -> None:
    rng = np.random.default_rng(4)
    evidence_items = tuple(
        ItemEvidence(f"i{i}", f"s{i % 8}", *(float(rate) for rate in rng.random(2)), 0.1 + 0.2, 1e-7)
        for i in range(240)
    )
    first = GateEvidence(
        "v2", "v1", evidence_items, 240, tuple(rng.lognormal(size=40)), tuple(rng.lognormal(size=40))
    )
    verdict = evaluate_gate(first, GATE)
    with engine.begin() as conn:
        for version, parent in (("v1", None), ("v2", "v1")):
            values = {"version": version, "parent_version": parent, "digest": version, "path": version}
            conn.execute(t.model_versions.insert().values(**values, status="candidate"))
        conn.execute(
            t.gate_verdicts.insert().values(
                version="v2",
                production_version="v1",
                status=verdict.status,
                verdict=json.loads(verdict.to_json()),
                evidence=json.loads(first.to_json()),
                gate=GATE.model_dump(mode="json"),
                canary_set_digest="c",
                orchestra="o",
                judge_version="j",
            )
        )
    with engine.connect() as conn:
        stored = conn.execute(sa.select(t.gate_verdicts)).one()
    again = evaluate_gate(GateEvidence.from_json(stored.evidence), EvaluationSettings(**stored.gate))
    assert again.to_json() == verdict.to_json() == Verdict.from_json(stored.verdict).to_json()
    assert json.dumps(stored.verdict, sort_keys=True) == json.dumps(
        json.loads(again.to_json()), sort_keys=True
    )
