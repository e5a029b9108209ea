"""Measuring a candidate beside production on the same items, in one process (E1, E2).

Scores are cached in `canary_results` by model digest, item, orchestra, judge version and decoding, so
production is not paid for twice; latency is measured afresh each time, interleaved, at batch 1. The
models come in as `Answering` functions: this module loads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.judging.holdout import HOLDOUT, production_holdout
from iccm_assets.judging.judge import JUDGE_VERSION
from iccm_assets.judging.orchestra import Orchestra
from iccm_assets.judging.scoring import MemberScore, Score, ScoringTask, aggregate, score_texts
from iccm_assets.judging.suites import Suite, load_suite
from iccm_assets.judging.verdict import Verdict
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t

BATCH = 48
CANARY_SET = "canary_set"


class AnswerLike(Protocol):
    """What a model wrote: its text, tokens and time in milliseconds."""

    @property
    def text(self) -> str: ...

    @property
    def output_tokens(self) -> int: ...

    @property
    def latency_ms(self) -> float: ...


Answering = Callable[[Sequence[str], int], Sequence[AnswerLike]]
"""(sources, batch size) -> one answer per source, in order."""


@dataclass(frozen=True)
class Item:
    """One thing to measure on: a canary-set item or a production-holdout conversation."""

    item: str
    slice: str
    source_code: str
    suite: Suite


@dataclass(frozen=True)
class EvaluationSet:
    """Items measured under one digest; `name` is `canary_set` or `production_holdout`."""

    name: str
    digest: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Measured:
    """One version's scores on one set, by item, and how many came from the cache."""

    version: str
    scores: dict[str, Score]
    cached: int


@dataclass(frozen=True)
class Latency:
    """Batch-1 latencies in milliseconds, per answer and per output token, in measuring order."""

    per_answer: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A model version under measurement and how to ask it."""

    version: ModelVersion
    answer: Answering


@dataclass(frozen=True)
class EvaluationOutcome:
    """Everything measured, and what the gate made of it."""

    candidate: ModelVersion
    production: ModelVersion
    canary: tuple[Measured, Measured]
    holdout: tuple[Measured, Measured]
    latency: tuple[Latency, Latency]
    slices: dict[str, str]
    verdict: Verdict


def canary_items(settings: Settings) -> EvaluationSet:
    """The canary set as items to measure."""
    loaded = load_canary_set(settings.canary_set)
    items = [Item(one.item, one.slice, one.source_code, load_suite(one.test_suite)) for one in loaded.items]
    return EvaluationSet(CANARY_SET, loaded.digest, tuple(items))


def holdout_items(engine: sa.Engine, settings: Settings) -> EvaluationSet:
    """The production holdout: recent held-out sessions unlike anything trained on (F3)."""
    rows = production_holdout(engine, settings)
    items = [Item(f"conversation:{row.id}", HOLDOUT, row.source_code, row.suite) for row in rows]
    return EvaluationSet(HOLDOUT, HOLDOUT, tuple(items))


def decoding_of(settings: Settings) -> str:
    """Names how answers are decoded; part of the cache key."""
    return f"greedy/{settings.evaluation.max_new_tokens}"


def measure(
    engine: sa.Engine,
    subject: Subject,
    chosen: EvaluationSet,
    orchestra: Orchestra,
    settings: Settings,
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Score the version on every item of a set; what is cached is not answered again."""
    key = _cache_key(subject.version, chosen, orchestra, settings)
    known = _cached(engine, key, orchestra)
    missing = [item for item in chosen.items if item.item not in known]
    cached = len(chosen.items) - len(missing)
    progress(cached)
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        answers = subject.answer([item.source_code for item in batch], settings.evaluation.batch_size)
        tasks = [
            ScoringTask(answer.text, item.suite, item.source_code)
            for item, answer in zip(batch, answers, strict=True)
        ]
        scores = list(score_texts(tasks, orchestra, settings))
        with engine.begin() as conn:
            for item, answer, score in zip(batch, answers, scores, strict=True):
                _remember(conn, key, item, answer, score)
        known.update({item.item: score for item, score in zip(batch, scores, strict=True)})
        progress(len(batch))
    return Measured(subject.version.version, {item.item: known[item.item] for item in chosen.items}, cached)


def measure_latency(
    subjects: Sequence[Subject], items: Sequence[Item], rounds: int, warmup: int = 2
) -> list[Latency]:
    """Batch-1 latencies of each subject on the items: the fastest of some rounds, interleaved A B, B A, …

    What else the machine does can only slow an answer down, and in bursts: going round the whole set and
    keeping each item's fastest answer measures the model, where one round would measure its neighbours.
    """
    for subject in subjects:
        for item in items[:warmup]:
            subject.answer([item.source_code], 1)
    fastest: list[list[AnswerLike]] = [[] for _ in subjects]
    order = list(range(len(subjects)))
    for turn in range(rounds):
        for number, item in enumerate(items):
            for index in order:
                answer = subjects[index].answer([item.source_code], 1)[0]
                if turn == 0:
                    fastest[index].append(answer)
                elif answer.latency_ms < fastest[index][number].latency_ms:
                    fastest[index][number] = answer
            order.reverse()
    return [_latency(answers) for answers in fastest]


def _latency(answers: Sequence[AnswerLike]) -> Latency:
    return Latency(
        [answer.latency_ms for answer in answers],
        [answer.latency_ms / max(1, answer.output_tokens) for answer in answers],
    )


def _cache_key(
    version: ModelVersion, chosen: EvaluationSet, orchestra: Orchestra, settings: Settings
) -> dict[str, Any]:
    return {
        "version": version.version,
        "model_digest": version.digest,
        "set": chosen.name,
        "canary_set_digest": chosen.digest,
        "orchestra": orchestra.digest,
        "judge_version": JUDGE_VERSION,
        "decoding": decoding_of(settings),
    }


def _cached(engine: sa.Engine, key: dict[str, Any], orchestra: Orchestra) -> dict[str, Score]:
    """Items every member of the orchestra has been asked about; a missing member is asked again."""
    cr = t.canary_results
    identity = {name: value for name, value in key.items() if name not in ("version", "set")}
    with engine.connect() as conn:
        rows = conn.execute(
            sa.select(cr).where(*(cr.c[name] == value for name, value in identity.items()))
        ).all()
    members: dict[str, dict[str, MemberScore]] = {}
    for row in rows:
        if row.status in ("scored", "unreadable"):
            members.setdefault(row.item, {})[row.reconstructor] = MemberScore(
                row.reconstructor, row.status, "", row.test_pass_rate, (), row.api_compatibility, 0.0
            )
    names = [member.name for member in orchestra.members]
    return {
        item: aggregate([found[name] for name in names], orchestra.quorum)
        for item, found in members.items()
        if set(found) == set(names)
    }


def _remember(conn: sa.Connection, key: dict[str, Any], item: Item, answer: AnswerLike, score: Score) -> None:
    for member in score.members:
        values = {
            "version": key["version"],
            "set": key["set"],
            "slice": item.slice,
            "requirements": answer.text.replace("\x00", "\ufffd"),  # PostgreSQL stores no NUL
            "test_pass_rate": member.test_pass_rate,
            "api_compatibility": member.api_compatibility,
            "output_tokens": answer.output_tokens,
            "status": member.status,
            "reason": member.detail or None,
        }
        statement = insert(t.canary_results).values(
            **key | values, item=item.item, reconstructor=member.reconstructor
        )
        conn.execute(statement.on_conflict_do_update(constraint="canary_results_once", set_=values))
