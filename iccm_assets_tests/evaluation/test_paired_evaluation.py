"""Two versions measured on the same items: cached scores, new latencies, evidence for the gate (E1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.evaluation import paired_evaluation, quality_gate
from iccm_assets.evaluation.gate_evidence import Verdict
from iccm_assets.evaluation.paired_evaluation import (
    EvaluatedVersion,
    EvaluationItem,
    EvaluationSet,
    Latency,
    VersionScores,
)
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra, Reconstruction
from iccm_assets.scoring.scoring import ReconstructionScore, aggregate
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.evaluations import (
    BAD,
    GOOD,
    ORCHESTRA,
    SUITE,
    FakeModel,
    FakeResponse,
    make_reconstructor,
)


def make_version(name: str, digest: str) -> ModelVersion:
    return ModelVersion(name, None, "candidate", digest, "/nowhere", {}, datetime.now(UTC), None)


def items(*names: str) -> EvaluationSet:
    evaluation_items = tuple(
        EvaluationItem(name, "slice", f"def f(x):\n    return 2 * x  # {name}\n", SUITE) for name in names
    )
    return EvaluationSet("canary_set", "digest", evaluation_items)


def test_a_score_is_the_orchestras_mean_and_variance_over_real_runs(
    engine: sa.Engine, settings: Settings
) -> None:
    measured = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(make_version("v2", "d2"), FakeModel(GOOD)), items("one"), ORCHESTRA, settings
    )
    score = measured.scores["one"]
    assert score.test_pass_rate == pytest.approx(2 / 3)
    assert score.implementation_variance == pytest.approx(2 / 9)
    assert score.api_compatibility == 1.0


def test_an_item_with_a_cached_score_is_not_generated_again(engine: sa.Engine, settings: Settings) -> None:
    first, second = FakeModel(GOOD), FakeModel(GOOD)
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(make_version("v2", "d2"), first), items("one", "two"), ORCHESTRA, settings
    )
    again = paired_evaluation.evaluate_version(
        engine,
        EvaluatedVersion(make_version("v2", "d2"), second),
        items("one", "two", "three"),
        ORCHESTRA,
        settings,
    )
    assert (len(first.sources), again.cached) == (2, 2)
    assert [source.split("# ")[1].strip() for source in second.sources] == ["three"]
    assert [score.test_pass_rate for score in again.scores.values()] == pytest.approx([2 / 3] * 3)


def test_blank_responses_are_named_in_the_evidence_also_from_the_cache(engine, settings) -> None:
    measured_on, blank = items("one", "two"), FakeModel("\u200b \n")
    production = EvaluatedVersion(make_version("v1", "d1"), FakeModel(GOOD))
    for _ in range(2):
        measured = [
            paired_evaluation.evaluate_version(engine, version, measured_on, ORCHESTRA, settings)
            for version in (EvaluatedVersion(make_version("v2", "d2"), blank), production)
        ]
        evidence = paired_evaluation.build_gate_evidence(
            (measured[0], measured[1]), measured_on, [Latency()] * 2
        )
        assert [item.is_blank for item in evidence.items] == [True, True]
        rule = quality_gate.evaluate_gate(evidence, settings.evaluation).rule("blank_responses")
        assert (rule.outcome, rule.reason) == ("fail", "2 of 2 responses of v2 are blank")
    assert measured[0].cached == 2


@pytest.mark.parametrize(("change", "rate"), [("is_complete", 0.0), ("is_truncated", None)])
def test_an_answer_that_was_cut_scores_zero_and_one_to_a_part_of_a_source_nothing(
    engine: sa.Engine, settings: Settings, change: str, rate: float | None
) -> None:
    """Although another version's same text scores two thirds, before and afterwards (L10)."""

    def measure(digest: str, **changes: bool) -> float | None:
        version = EvaluatedVersion(make_version(digest, digest), FakeModel(GOOD, **changes))
        scores = paired_evaluation.evaluate_version(engine, version, items("one"), ORCHESTRA, settings)
        return scores.scores["one"].test_pass_rate

    assert measure("d1") == pytest.approx(2 / 3)
    assert measure("d2", **{change: change == "is_truncated"}) == rate
    assert measure("d3") == pytest.approx(2 / 3)


@pytest.mark.parametrize("changed", ["model", "set", "item", "orchestra", "judge", "decoding"])
def test_the_cache_key_covers_model_items_orchestra_judge_and_decoding(
    engine: sa.Engine, settings: Settings, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation_set = items("one")
    paired_evaluation.evaluate_version(
        engine,
        EvaluatedVersion(make_version("v2", "d2"), FakeModel(GOOD)),
        evaluation_set,
        ORCHESTRA,
        settings,
    )
    model = FakeModel(BAD)
    digest = "d3" if changed == "model" else "d2"
    if changed == "set":
        evaluation_set = EvaluationSet("canary_set", "another", evaluation_set.items)
    if changed == "item":
        evaluation_set = EvaluationSet(
            "canary_set", "digest", (replace(evaluation_set.items[0], digest="another"),)
        )
    if changed == "judge":
        monkeypatch.setattr(paired_evaluation, "get_judge_version", lambda settings: "another")
    orchestra = (
        Orchestra((make_reconstructor("a"), make_reconstructor("b")), 2)
        if changed == "orchestra"
        else ORCHESTRA
    )
    if changed == "decoding":
        shorter = settings.evaluation.model_copy(update={"max_new_tokens": 8})
        settings = settings.model_copy(update={"evaluation": shorter})
    again = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(make_version("v3", digest), model), evaluation_set, orchestra, settings
    )
    assert (len(model.sources), again.cached) == (1, 0)
    assert again.scores["one"].test_pass_rate == 0.0


def test_a_text_that_another_version_wrote_is_generated_but_not_judged_again(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def count_reads(text: str) -> str:
        read.append(text)
        return make_reconstructor("a").function(text)

    orchestra, evaluation_set = (
        Orchestra((LocalReconstructor("a", count_reads), LocalReconstructor("b", count_reads)), 2),
        items("one", "two"),
    )
    first = paired_evaluation.evaluate_version(
        engine,
        EvaluatedVersion(make_version("v2", "d2"), FakeModel(GOOD)),
        evaluation_set,
        orchestra,
        settings,
    )
    model = FakeModel(GOOD)
    again = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(make_version("v3", "d3"), model), evaluation_set, orchestra, settings
    )
    assert (len(model.sources), len(read), again.cached) == (2, 4, 0)
    rates = [[score.test_pass_rate for score in measured.scores.values()] for measured in (first, again)]
    assert rates == [[1.0, 1.0], [1.0, 1.0]]
    monkeypatch.setattr(paired_evaluation, "get_judge_version", lambda settings: "another")
    paired_evaluation.evaluate_version(
        engine,
        EvaluatedVersion(make_version("v4", "d4"), FakeModel(GOOD)),
        evaluation_set,
        orchestra,
        settings,
    )
    assert len(read) == 8


def test_an_empty_response_scores_zero_and_is_not_missing(engine: sa.Engine, settings: Settings) -> None:
    measured = paired_evaluation.evaluate_version(
        engine,
        EvaluatedVersion(make_version("v2", "d2"), FakeModel("\x00")),
        items("one"),
        ORCHESTRA,
        settings,
    )
    assert measured.scores["one"].test_pass_rate == 0.0
    with engine.connect() as conn:
        statuses = set(conn.execute(sa.select(t.canary_results.c.status)).scalars())
    assert statuses == {"unreadable"}


def test_a_changed_holdout_conversation_alone_is_measured_again(
    engine: sa.Engine, settings: Settings
) -> None:
    first, second = items("one", "two").items
    subject = EvaluatedVersion(make_version("v2", "d2"), FakeModel(GOOD))
    for digests, generated in ((("a", "b"), 2), (("a", "b"), 2), (("c", "b"), 3)):
        evaluation_set = EvaluationSet(
            "production_holdout",
            "production_holdout",
            (replace(first, digest=digests[0]), replace(second, digest=digests[1])),
        )
        measured = paired_evaluation.evaluate_version(engine, subject, evaluation_set, ORCHESTRA, settings)
        assert len(subject.generate.sources) == generated
        assert set(measured.scores) == {"one", "two"}


def test_an_ancestors_scores_are_cached_and_never_generated(engine: sa.Engine, settings: Settings) -> None:
    ancestor = make_version("v1", "d1")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(ancestor, FakeModel(GOOD)), items("one"), ORCHESTRA, settings
    )
    cached = paired_evaluation.load_cached_scores(engine, ancestor, items("one", "two"), ORCHESTRA, settings)
    assert {item: score.test_pass_rate for item, score in cached.scores.items()} == {
        "one": pytest.approx(2 / 3)
    }
    other = Orchestra((make_reconstructor("a"), make_reconstructor("b")), 2)
    assert paired_evaluation.load_cached_scores(engine, ancestor, items("one"), other, settings).scores == {}


class MissingReconstructor:
    """A member of the orchestra that does not respond."""

    name = identity = "away"

    def reconstruct(self, requirements: str) -> Reconstruction:
        return Reconstruction(self.name, "missing", detail="timed out")


def test_an_item_below_the_quorum_makes_the_gate_inconclusive_and_is_scored_again(
    engine: sa.Engine, settings: Settings
) -> None:
    evaluation_set, orchestra = items("one"), Orchestra((make_reconstructor("a"), MissingReconstructor()), 2)
    subjects = [
        EvaluatedVersion(make_version("v2", "d2"), FakeModel(GOOD)),
        EvaluatedVersion(make_version("v1", "d1"), FakeModel(BAD)),
    ]
    candidate, production = (
        paired_evaluation.evaluate_version(engine, subject, evaluation_set, orchestra, settings)
        for subject in subjects
    )
    verdict = decide(settings, candidate, production)
    assert (verdict.status, candidate.scores["one"].test_pass_rate) == ("inconclusive", None)
    assert verdict.rule("complete_evidence").reason == "1 items have no score: one"
    assert (
        paired_evaluation.evaluate_version(engine, subjects[0], evaluation_set, orchestra, settings).cached
        == 0
    )


def test_a_suspicious_implementation_is_no_evidence_for_either_version(settings: Settings) -> None:
    honest, suspect = (ReconstructionScore(name, "scored", "", 1.0, (), 1.0, 1.0) for name in ("a", "b"))
    suspect = replace(suspect, status="suspect", test_pass_rate=None)
    doubted = aggregate([honest, replace(honest, reconstructor="c"), suspect], quorum=2)
    assert doubted.test_pass_rate == 1.0
    poor = aggregate([replace(honest, test_pass_rate=0.0)] * 2, quorum=2)
    for candidate, production in ((doubted, poor), (poor, doubted)):
        verdict = decide(
            settings, VersionScores("v2", {"one": candidate}, 0), VersionScores("v1", {"one": production}, 0)
        )
        assert (verdict.status, verdict.improvement) == ("inconclusive", None)
        assert "one (suspect implementation by b)" in verdict.rule("complete_evidence").reason


def decide(settings: Settings, candidate: VersionScores, production: VersionScores) -> Verdict:
    latency = Latency([8.0] * 40, [2.0] * 40)
    evidence = paired_evaluation.build_gate_evidence(
        (candidate, production), items("one"), (latency, latency)
    )
    return quality_gate.evaluate_gate(evidence, settings.evaluation)


def test_latency_is_measured_alternately_and_each_item_keeps_its_fastest_response() -> None:
    order: list[str] = []
    seconds = {"a": iter([9.0, 8, 8, 90, 8, 12, 8]), "b": iter([9.0, 80, 8, 8, 8, 90, 16])}

    def make_generator(name: str) -> paired_evaluation.GenerateFn:
        def generate(sources: Sequence[str], batch_size: int) -> list[FakeResponse]:
            assert batch_size == 1 and len(sources) == 1
            order.append(name)
            return [FakeResponse("x", latency_ms=next(seconds[name]))]

        return generate

    subjects = [
        EvaluatedVersion(make_version("v2", "d2"), make_generator("a")),
        EvaluatedVersion(make_version("v1", "d1"), make_generator("b")),
    ]
    candidate, production = paired_evaluation.measure_latency(
        subjects, items("1", "2", "3").items, rounds=2, warmup=1
    )
    assert "".join(order) == "ab" + "abbaab" + "baabba"
    assert candidate.per_response == [8.0, 8.0, 8.0]
    assert production.per_response == [8.0, 8.0, 8.0]
    assert candidate.per_token == [2.0] * 3


def test_an_item_is_measured_again_until_the_fastest_responses_of_both_versions_agree() -> None:
    seconds = {"v2": iter([8.0, 8, 8, 8.2, 30, 8]), "v1": iter([9.0, 30, 9.1, 9, 31])}
    counts = {"v2": 0, "v1": 0}

    def make_subject(name: str) -> EvaluatedVersion:
        def generate(sources: Sequence[str], batch_size: int) -> list[FakeResponse]:
            counts[name] += 1
            return [FakeResponse("x", latency_ms=next(seconds[name]))]

        return EvaluatedVersion(make_version(name, name), generate)

    subjects = [make_subject("v2"), make_subject("v1")]
    candidate, production = paired_evaluation.measure_latency(
        subjects, items("1", "2").items, rounds=3, warmup=0
    )
    assert counts == {"v2": 5, "v1": 5}  # the second item's third response decides
    assert (candidate.per_response, production.per_response) == ([8.0, 8.0], [9.0, 9.0])
