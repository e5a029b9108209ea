"""Measuring two versions on the same items: cached scores, fresh latencies, evidence for the gate (E1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from iccm_assets.judging import evaluation
from iccm_assets.judging.evaluation import EvaluationSet, Item, Subject
from iccm_assets.judging.orchestra import Orchestra, Reader
from iccm_assets.judging.suites import load_suite
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t

GOOD, BAD = "double it", "leave it"
SUITE = load_suite(
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


def reader(name: str, *, broken: bool = False) -> Reader:
    def read(text: str) -> str:
        if text not in (GOOD, BAD):
            raise ValueError("nothing to read")
        return "def f(x):\n    return x * 2\n" if text == GOOD and not broken else "def f(x):\n    return x\n"

    return Reader(name, read)


ORCHESTRA = Orchestra((reader("a"), reader("b"), reader("c", broken=True)), quorum=2)


def version(name: str, digest: str) -> ModelVersion:
    return ModelVersion(name, None, "candidate", digest, "/nowhere", {}, datetime.now(UTC), None)


def items(*names: str) -> EvaluationSet:
    made = tuple(Item(name, "slice", f"def f(x):\n    return 2 * x  # {name}\n", SUITE) for name in names)
    return EvaluationSet("canary_set", "digest", made)


def test_a_score_is_the_orchestras_mean_and_variance_over_real_runs(
    engine: sa.Engine, settings: Settings
) -> None:
    measured = evaluation.measure(
        engine, Subject(version("v2", "d2"), Model(GOOD)), items("one"), ORCHESTRA, settings
    )
    score = measured.scores["one"]
    assert score.test_pass_rate == pytest.approx(2 / 3)
    assert score.implementation_variance == pytest.approx(2 / 9)
    assert score.api_compatibility == 1.0


def test_what_was_measured_once_is_not_asked_again(engine: sa.Engine, settings: Settings) -> None:
    first, second = Model(GOOD), Model(GOOD)
    evaluation.measure(engine, Subject(version("v2", "d2"), first), items("one", "two"), ORCHESTRA, settings)
    again = evaluation.measure(
        engine, Subject(version("v2", "d2"), second), items("one", "two", "three"), ORCHESTRA, settings
    )
    assert (len(first.asked), again.cached) == (2, 2)
    assert [source.split("# ")[1].strip() for source in second.asked] == ["three"]
    assert [score.test_pass_rate for score in again.scores.values()] == pytest.approx([2 / 3] * 3)


@pytest.mark.parametrize("changed", ["model", "set", "orchestra", "decoding"])
def test_the_cache_knows_model_set_orchestra_and_decoding(
    engine: sa.Engine, settings: Settings, changed: str
) -> None:
    chosen = items("one")
    evaluation.measure(engine, Subject(version("v2", "d2"), Model(GOOD)), chosen, ORCHESTRA, settings)
    model = Model(BAD)
    digest = "d3" if changed == "model" else "d2"
    if changed == "set":
        chosen = EvaluationSet("canary_set", "another", chosen.items)
    orchestra = Orchestra((reader("a"), reader("b")), 2) if changed == "orchestra" else ORCHESTRA
    if changed == "decoding":
        shorter = settings.evaluation.model_copy(update={"max_new_tokens": 8})
        settings = settings.model_copy(update={"evaluation": shorter})
    again = evaluation.measure(engine, Subject(version("v3", digest), model), chosen, orchestra, settings)
    assert (len(model.asked), again.cached) == (1, 0)
    assert again.scores["one"].test_pass_rate == 0.0


def test_an_empty_answer_scores_nothing_and_is_not_missing(engine: sa.Engine, settings: Settings) -> None:
    measured = evaluation.measure(
        engine, Subject(version("v2", "d2"), Model("\x00")), items("one"), ORCHESTRA, settings
    )
    assert measured.scores["one"].test_pass_rate == 0.0
    with engine.connect() as conn:
        statuses = set(conn.execute(sa.select(t.canary_results.c.status)).scalars())
    assert statuses == {"unreadable"}


def test_latency_is_measured_in_turns_and_each_item_keeps_its_fastest_answer() -> None:
    order: list[str] = []
    seconds = {"a": iter([9.0, 8, 8, 90, 8, 12, 8]), "b": iter([9.0, 80, 8, 8, 8, 90, 16])}

    def answering(name: str) -> evaluation.Answering:
        def answer(sources: Sequence[str], batch_size: int) -> list[Said]:
            assert batch_size == 1 and len(sources) == 1
            order.append(name)
            return [Said("x", latency_ms=next(seconds[name]))]

        return answer

    subjects = [Subject(version("v2", "d2"), answering("a")), Subject(version("v1", "d1"), answering("b"))]
    mine, theirs = evaluation.measure_latency(subjects, items("1", "2", "3").items, rounds=2, warmup=1)
    assert "".join(order) == "ab" + "abbaab" + "baabba"
    assert mine.per_answer == [8.0, 8.0, 8.0]
    assert theirs.per_answer == [8.0, 8.0, 8.0]
    assert mine.per_token == [2.0] * 3
