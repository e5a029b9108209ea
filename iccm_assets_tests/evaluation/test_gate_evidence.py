"""What the gate decides on: the candidate's numbers first, whatever the measurements are called (E3)."""

from __future__ import annotations

import pytest

from iccm_assets.evaluation.paired_evaluation import (
    EvaluatedVersion,
    EvaluationItem,
    EvaluationSet,
    Latency,
    VersionScores,
    build_gate_evidence,
    measure_latency,
)
from iccm_assets.evaluation.quality_gate import evaluate_gate
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.scoring import ReconstructionScore, Score
from iccm_assets.settings import EvaluationSettings
from iccm_assets_tests.factories.evaluations import SUITE, FakeResponse

NAMES = [f"i{n}" for n in range(60)]
ITEMS = EvaluationSet(
    "canary_set", "digest", tuple(EvaluationItem(name, f"s{name[-1]}", "", SUITE) for name in NAMES)
)


def score(rate, variance=0.01, status="scored", member="a"):
    members = (ReconstructionScore(member, status, "", rate, (), None, 0.0),)
    return Score(rate, variance, None, members)


def scores(version, rate, variance=0.01, **others):
    by_item = {name: score(rate, variance) for name in NAMES}
    return VersionScores(version, {**by_item, **others}, 0)


def latency(per_token):
    return Latency([per_token * 10] * 40, [per_token] * 40)


def test_the_candidate_comes_first_in_scores_variances_and_latencies():
    pair = (scores("new", 0.9, 0.02), scores("old", 0.7, 0.04))
    evidence = build_gate_evidence(pair, ITEMS, [latency(1.0), latency(2.0)])
    assert (evidence.candidate_version, evidence.production_version) == ("new", "old")
    assert (evidence.candidate_latency, evidence.production_latency) == ((1.0,) * 40, (2.0,) * 40)
    assert evidence.expected_items == 60 and [item.item for item in evidence.items] == NAMES
    item = evidence.items[13]
    assert (item.slice, item.candidate, item.production) == ("s3", 0.9, 0.7)
    assert (item.candidate_variance, item.production_variance) == (0.02, 0.04)
    assert item.unreliable_reason == "" and item.difference == pytest.approx(0.2)
    assert evaluate_gate(evidence, EvaluationSettings()).status == "pass"
    swapped = build_gate_evidence(pair[::-1], ITEMS, [latency(2.0), latency(1.0)])
    verdict = evaluate_gate(swapped, EvaluationSettings())
    failed = {rule.name for rule in verdict.rules if rule.outcome == "fail"}
    assert {"improvement", "test_pass_rate_degradation", "latency_regression"} <= failed


@pytest.mark.parametrize("suspected", ["candidate", "production"])
def test_an_item_with_a_suspect_implementation_of_either_version_is_not_trusted(suspected):
    suspect = {"i5": score(1.0, status="suspect", member="m")}
    candidate = scores("new", 0.9, **(suspect if suspected == "candidate" else {}))
    production = scores("old", 0.7, **(suspect if suspected == "production" else {}))
    evidence = build_gate_evidence((candidate, production), ITEMS, [latency(1.0), latency(1.0)])
    assert [item.item for item in evidence.items if not item.reliable] == ["i5"]
    assert evidence.items[5].unreliable_reason == "suspect implementation by m"


@pytest.mark.parametrize(("tokens", "per_token"), [(0, 12.0), (1, 12.0), (2, 6.0), (4, 3.0)])
def test_latency_is_per_output_token_and_an_empty_response_counts_as_one(tokens, per_token):
    def generate(sources, batch_size):
        return [FakeResponse("x", output_tokens=tokens, latency_ms=12.0)]

    version = ModelVersion.__new__(ModelVersion)
    (measured,) = measure_latency([EvaluatedVersion(version, generate)], ITEMS.items[:3], rounds=1)
    assert measured.per_response == [12.0] * 3 and measured.per_token == [per_token] * 3


def test_every_item_is_warmed_up_before_it_is_timed():
    calls = []

    def generate(sources, batch_size):
        calls.append(batch_size)
        return [FakeResponse("x", latency_ms=1000.0 if len(calls) <= 2 else 1.0)]

    version = ModelVersion.__new__(ModelVersion)
    (measured,) = measure_latency([EvaluatedVersion(version, generate)], ITEMS.items[:2], rounds=1)
    assert calls == [1] * 4 and measured.per_response == [1.0, 1.0]
