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
from iccm_assets.judging.alarm import alert_without_sandbox
from iccm_assets.judging.holdout import HOLDOUT, HoldoutRow, production_holdout
from iccm_assets.judging.judge import JUDGE_VERSION
from iccm_assets.judging.orchestra import Orchestra
from iccm_assets.judging.scoring import MemberScore, Score, ScoringTask, aggregate, score_texts
from iccm_assets.judging.suites import Suite, load_suite
from iccm_assets.judging.verdict import GateEvidence, ItemEvidence, Verdict
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
    digest: str = ""


@dataclass(frozen=True)
class EvaluationSet:
    """What is measured on; `name` is `canary_set` or `production_holdout`.

    Scores are remembered under `digest`, or under the item's own where it has one: the canary set is frozen
    as a whole, the holdout moves on, and each of its conversations may be changed by its developer.
    """

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
    ancestors: tuple[Measured, ...] = ()


def canary_items(settings: Settings) -> EvaluationSet:
    """The canary set as items to measure."""
    loaded = load_canary_set(settings.canary_set)
    items = [Item(one.item, one.slice, one.source_code, load_suite(one.test_suite)) for one in loaded.items]
    return EvaluationSet(CANARY_SET, loaded.digest, tuple(items))


def holdout_items(engine: sa.Engine, settings: Settings) -> EvaluationSet:
    """The production holdout: recent held-out sessions unlike anything trained on (F3)."""
    rows = production_holdout(engine, settings)
    return EvaluationSet(HOLDOUT, HOLDOUT, tuple(holdout_item(row) for row in rows))


def holdout_item(row: HoldoutRow) -> Item:
    """A held-out conversation as an item to measure."""
    return Item(f"conversation:{row.id}", HOLDOUT, row.source_code, row.suite, f"{HOLDOUT}:{row.digest}")


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
    """Score the version on every item of a set; what is cached is not answered again.

    A score belongs to a text: where another version has written the same one for the item, it is not judged
    again, so two versions never differ in an item on which they agree.
    """
    key = _cache_key(subject.version, chosen, orchestra, settings)
    known = _cached(engine, key, chosen, orchestra)
    missing = [item for item in chosen.items if item.item not in known]
    cached = len(chosen.items) - len(missing)
    progress(cached)
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        answers = subject.answer([item.source_code for item in batch], settings.evaluation.batch_size)
        texts = {item.item: answer.text for item, answer in zip(batch, answers, strict=True)}
        judged = _judged_before(engine, key, chosen, texts, orchestra)
        tasks = [
            ScoringTask(texts[item.item], item.suite, item.source_code)
            for item in batch
            if item.item not in judged
        ]
        fresh = iter(list(score_texts(tasks, orchestra, settings)))
        scores = [judged.get(item.item) or next(fresh) for item in batch]
        with engine.begin() as conn:
            for item, answer, score in zip(batch, answers, scores, strict=True):
                _remember(conn, {**key, "canary_set_digest": _digest(chosen, item)}, item, answer, score)
            alert_without_sandbox(conn, (member for score in scores for member in score.members))
        known.update({item.item: score for item, score in zip(batch, scores, strict=True)})
        progress(len(batch))
    return Measured(subject.version.version, {item.item: known[item.item] for item in chosen.items}, cached)


def remembered(
    engine: sa.Engine, version: ModelVersion, chosen: EvaluationSet, orchestra: Orchestra, settings: Settings
) -> Measured:
    """The version's scores that are in the cache; items without one are left out. Asks no model."""
    known = _cached(engine, _cache_key(version, chosen, orchestra, settings), chosen, orchestra)
    return Measured(version.version, known, len(known))


def gate_evidence(
    canary: tuple[Measured, Measured], chosen: EvaluationSet, latency: tuple[Latency, Latency]
) -> GateEvidence:
    """What the gate is given: one pair per item, candidate first, and the latencies per output token."""
    mine, theirs = canary
    items = []
    for item in chosen.items:
        a, b = mine.scores[item.item], theirs.scores[item.item]
        suspects = [one.reconstructor for one in (*a.members, *b.members) if one.status == "suspect"]
        items.append(
            ItemEvidence(
                item=item.item,
                slice=item.slice,
                candidate=a.test_pass_rate,
                production=b.test_pass_rate,
                candidate_variance=a.implementation_variance,
                production_variance=b.implementation_variance,
                doubt=f"suspect implementation by {', '.join(suspects)}" if suspects else "",
            )
        )
    return GateEvidence(
        candidate_version=mine.version,
        production_version=theirs.version,
        items=tuple(items),
        expected_items=len(chosen.items),
        candidate_latency=tuple(latency[0].per_token),
        production_latency=tuple(latency[1].per_token),
    )


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
        "orchestra": orchestra.digest,
        "judge_version": JUDGE_VERSION,
        "decoding": decoding_of(settings),
    }


def _digest(chosen: EvaluationSet, item: Item) -> str:
    return item.digest or chosen.digest


def _cached(
    engine: sa.Engine, key: dict[str, Any], chosen: EvaluationSet, orchestra: Orchestra
) -> dict[str, Score]:
    """Items every member of the orchestra has been asked about; a missing member is asked again."""
    identity = {name: value for name, value in key.items() if name not in ("version", "set")}
    return _scores(_results(engine, identity, chosen), orchestra)


def _judged_before(
    engine: sa.Engine, key: dict[str, Any], chosen: EvaluationSet, texts: dict[str, str], orchestra: Orchestra
) -> dict[str, Score]:
    """The scores of items for which some version's answer was the very same text."""
    identity = {name: key[name] for name in ("orchestra", "judge_version")}
    rows = [
        row
        for row in _results(engine, identity, chosen, list(texts))
        if row.requirements == _storable(texts[row.item])
    ]
    return _scores(rows, orchestra)


def _results(
    engine: sa.Engine, identity: dict[str, Any], chosen: EvaluationSet, items: Sequence[str] | None = None
) -> list[Any]:
    """Stored results of the set's items as they are today; only of the given ones, if any are."""
    cr = t.canary_results
    digests = {item.item: _digest(chosen, item) for item in chosen.items}
    query = sa.select(cr).where(
        cr.c.canary_set_digest.in_(set(digests.values())),
        *(cr.c[name] == value for name, value in identity.items()),
    )
    if items is not None:
        query = query.where(cr.c.item.in_(items))
    with engine.connect() as conn:
        return [row for row in conn.execute(query) if digests.get(row.item) == row.canary_set_digest]


def _scores(rows: Sequence[Any], orchestra: Orchestra) -> dict[str, Score]:
    """Scores by item, of those items on which every member was heard."""
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


def _storable(text: str) -> str:
    return text.replace("\x00", "\ufffd")  # PostgreSQL stores no NUL


def _remember(conn: sa.Connection, key: dict[str, Any], item: Item, answer: AnswerLike, score: Score) -> None:
    for member in score.members:
        values = {
            "version": key["version"],
            "set": key["set"],
            "slice": item.slice,
            "requirements": _storable(answer.text),
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
