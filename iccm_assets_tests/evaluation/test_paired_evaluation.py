"""Measuring two versions on the same items: cached scores, fresh latencies, evidence for the gate (E1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    VersionScores,
)
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra, Reconstruction
from iccm_assets.scoring.scoring import ReconstructionScore, aggregate
from iccm_assets.settings import Settings
from iccm_assets.suites.test_suites import parse_suite

GOOD, BAD = "double it", "leave it"
SUITE = parse_suite(
    {"kind": "cases", "cases": [{"call": "f", "args": [n], "expect": 2 * n} for n in (1, 2, 3)]}
)


@dataclass(frozen=True)
class Said:
    text: str
    output_tokens: int = 4
    latency_ms: float = 8.0


class Model:
    """Answers the same to everything and remembers what it was asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[str] = []

    def __call__(self, sources: Sequence[str], batch_size: int) -> list[Said]:
        self.asked += sources
        return [Said(self.text) for _ in sources]


def reader(name: str, *, broken: bool = False) -> LocalReconstructor:
    def read(text: str) -> str:
        if text not in (GOOD, BAD):
            raise ValueError("nothing to read")
        return "def f(x):\n    return x * 2\n" if text == GOOD and not broken else "def f(x):\n    return x\n"

    return LocalReconstructor(name, read)


ORCHESTRA = Orchestra((reader("a"), reader("b"), reader("c", broken=True)), quorum=2)


def version(name: str, digest: str) -> ModelVersion:
    return ModelVersion(name, None, "candidate", digest, "/nowhere", {}, datetime.now(UTC), None)


def items(*names: str) -> EvaluationSet:
    made = tuple(
        EvaluationItem(name, "slice", f"def f(x):\n    return 2 * x  # {name}\n", SUITE) for name in names
    )
    return EvaluationSet("canary_set", "digest", made)


def test_a_score_is_the_orchestras_mean_and_variance_over_real_runs(
    engine: sa.Engine, settings: Settings
) -> None:
    measured = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v2", "d2"), Model(GOOD)), items("one"), ORCHESTRA, settings
    )
    score = measured.scores["one"]
    assert score.test_pass_rate == pytest.approx(2 / 3)
    assert score.implementation_variance == pytest.approx(2 / 9)
    assert score.api_compatibility == 1.0


def test_what_was_measured_once_is_not_asked_again(engine: sa.Engine, settings: Settings) -> None:
    first, second = Model(GOOD), Model(GOOD)
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v2", "d2"), first), items("one", "two"), ORCHESTRA, settings
    )
    again = paired_evaluation.evaluate_version(
        engine,
        EvaluatedVersion(version("v2", "d2"), second),
        items("one", "two", "three"),
        ORCHESTRA,
        settings,
    )
    assert (len(first.asked), again.cached) == (2, 2)
    assert [source.split("# ")[1].strip() for source in second.asked] == ["three"]
    assert [score.test_pass_rate for score in again.scores.values()] == pytest.approx([2 / 3] * 3)


@pytest.mark.parametrize("changed", ["model", "set", "item", "orchestra", "judge", "decoding"])
def test_the_cache_knows_model_items_orchestra_judge_and_decoding(
    engine: sa.Engine, settings: Settings, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = items("one")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v2", "d2"), Model(GOOD)), chosen, ORCHESTRA, settings
    )
    model = Model(BAD)
    digest = "d3" if changed == "model" else "d2"
    if changed == "set":
        chosen = EvaluationSet("canary_set", "another", chosen.items)
    if changed == "item":
        chosen = EvaluationSet("canary_set", "digest", (replace(chosen.items[0], digest="another"),))
    if changed == "judge":
        monkeypatch.setattr(paired_evaluation, "JUDGE_VERSION", "another")
    orchestra = Orchestra((reader("a"), reader("b")), 2) if changed == "orchestra" else ORCHESTRA
    if changed == "decoding":
        shorter = settings.evaluation.model_copy(update={"max_new_tokens": 8})
        settings = settings.model_copy(update={"evaluation": shorter})
    again = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v3", digest), model), chosen, orchestra, settings
    )
    assert (len(model.asked), again.cached) == (1, 0)
    assert again.scores["one"].test_pass_rate == 0.0


def test_a_text_another_version_wrote_is_answered_but_not_judged_again(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(text: str) -> str:
        read.append(text)
        return reader("a").function(text)

    orchestra, chosen = (
        Orchestra((LocalReconstructor("a", counting), LocalReconstructor("b", counting)), 2),
        items("one", "two"),
    )
    first = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v2", "d2"), Model(GOOD)), chosen, orchestra, settings
    )
    model = Model(GOOD)
    again = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v3", "d3"), model), chosen, orchestra, settings
    )
    assert (len(model.asked), len(read), again.cached) == (2, 4, 0)
    rates = [[one.test_pass_rate for one in measured.scores.values()] for measured in (first, again)]
    assert rates == [[1.0, 1.0], [1.0, 1.0]]
    monkeypatch.setattr(paired_evaluation, "JUDGE_VERSION", "another")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v4", "d4"), Model(GOOD)), chosen, orchestra, settings
    )
    assert len(read) == 8


def test_an_empty_answer_scores_nothing_and_is_not_missing(engine: sa.Engine, settings: Settings) -> None:
    measured = paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(version("v2", "d2"), Model("\x00")), items("one"), ORCHESTRA, settings
    )
    assert measured.scores["one"].test_pass_rate == 0.0
    with engine.connect() as conn:
        statuses = set(conn.execute(sa.select(t.canary_results.c.status)).scalars())
    assert statuses == {"unreadable"}


def test_a_changed_holdout_conversation_alone_is_measured_again(
    engine: sa.Engine, settings: Settings
) -> None:
    one, two = items("one", "two").items
    subject = EvaluatedVersion(version("v2", "d2"), Model(GOOD))
    for digests, asked in ((("a", "b"), 2), (("a", "b"), 2), (("c", "b"), 3)):
        chosen = EvaluationSet(
            "production_holdout",
            "production_holdout",
            (replace(one, digest=digests[0]), replace(two, digest=digests[1])),
        )
        measured = paired_evaluation.evaluate_version(engine, subject, chosen, ORCHESTRA, settings)
        assert len(subject.generate.asked) == asked
        assert set(measured.scores) == {"one", "two"}


def test_an_ancestor_is_remembered_and_never_asked(engine: sa.Engine, settings: Settings) -> None:
    ancestor = version("v1", "d1")
    paired_evaluation.evaluate_version(
        engine, EvaluatedVersion(ancestor, Model(GOOD)), items("one"), ORCHESTRA, settings
    )
    found = paired_evaluation.load_cached_scores(engine, ancestor, items("one", "two"), ORCHESTRA, settings)
    assert {item: score.test_pass_rate for item, score in found.scores.items()} == {
        "one": pytest.approx(2 / 3)
    }
    other = Orchestra((reader("a"), reader("b")), 2)
    assert paired_evaluation.load_cached_scores(engine, ancestor, items("one"), other, settings).scores == {}


class Away:
    """A member of the orchestra that does not answer."""

    name = identity = "away"

    def reconstruct(self, requirements: str) -> Reconstruction:
        return Reconstruction(self.name, "missing", detail="timed out")


def test_an_item_below_the_quorum_leaves_the_gate_open_and_is_asked_again(
    engine: sa.Engine, settings: Settings
) -> None:
    chosen, orchestra = items("one"), Orchestra((reader("a"), Away()), 2)
    subjects = [
        EvaluatedVersion(version("v2", "d2"), Model(GOOD)),
        EvaluatedVersion(version("v1", "d1"), Model(BAD)),
    ]
    mine, theirs = (
        paired_evaluation.evaluate_version(engine, one, chosen, orchestra, settings) for one in subjects
    )
    verdict = judged(settings, mine, theirs)
    assert (verdict.status, mine.scores["one"].test_pass_rate) == ("inconclusive", None)
    assert verdict.rule("complete_evidence").reason == "1 items have no score: one"
    assert paired_evaluation.evaluate_version(engine, subjects[0], chosen, orchestra, settings).cached == 0


def test_a_suspicious_implementation_is_no_evidence_for_either_version(settings: Settings) -> None:
    honest, odd = (ReconstructionScore(name, "scored", "", 1.0, (), 1.0, 1.0) for name in ("a", "b"))
    odd = replace(odd, status="suspect", test_pass_rate=None)
    doubted = aggregate([honest, replace(honest, reconstructor="c"), odd], quorum=2)
    assert doubted.test_pass_rate == 1.0
    poor = aggregate([replace(honest, test_pass_rate=0.0)] * 2, quorum=2)
    for mine, theirs in ((doubted, poor), (poor, doubted)):
        verdict = judged(
            settings, VersionScores("v2", {"one": mine}, 0), VersionScores("v1", {"one": theirs}, 0)
        )
        assert (verdict.status, verdict.improvement) == ("inconclusive", None)
        assert "one (suspect implementation by b)" in verdict.rule("complete_evidence").reason


def judged(settings: Settings, mine: VersionScores, theirs: VersionScores) -> Verdict:
    latency = paired_evaluation.Latency([8.0] * 40, [2.0] * 40)
    evidence = paired_evaluation.build_gate_evidence((mine, theirs), items("one"), (latency, latency))
    return quality_gate.evaluate_gate(evidence, settings.evaluation)


def test_latency_is_measured_in_turns_and_each_item_keeps_its_fastest_answer() -> None:
    order: list[str] = []
    seconds = {"a": iter([9.0, 8, 8, 90, 8, 12, 8]), "b": iter([9.0, 80, 8, 8, 8, 90, 16])}

    def answering(name: str) -> paired_evaluation.GenerateFn:
        def answer(sources: Sequence[str], batch_size: int) -> list[Said]:
            assert batch_size == 1 and len(sources) == 1
            order.append(name)
            return [Said("x", latency_ms=next(seconds[name]))]

        return answer

    subjects = [
        EvaluatedVersion(version("v2", "d2"), answering("a")),
        EvaluatedVersion(version("v1", "d1"), answering("b")),
    ]
    mine, theirs = paired_evaluation.measure_latency(subjects, items("1", "2", "3").items, rounds=2, warmup=1)
    assert "".join(order) == "ab" + "abbaab" + "baabba"
    assert mine.per_answer == [8.0, 8.0, 8.0]
    assert theirs.per_answer == [8.0, 8.0, 8.0]
    assert mine.per_token == [2.0] * 3
