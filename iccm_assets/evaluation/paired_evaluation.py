"""Paired evaluation: measure candidate and production on the same items, in one process (E1, E2).

Scores are cached in `canary_results` by model digest, item, orchestra, judge version and decoding, so
production is not scored twice. Latency is measured every time, interleaved, at batch 1. Models are
passed in as functions: this module loads no weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.db import tables as t
from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence, Verdict
from iccm_assets.evaluation.production_holdout import HOLDOUT, HoldoutItem, load_production_holdout
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.sandbox_alert import alert_sandbox_missing
from iccm_assets.scoring.scoring import (
    BLANK,
    LENGTH_STOPPED,
    SOURCE_TRUNCATED,
    ReconstructionScore,
    Score,
    ScoringTask,
    aggregate,
    score_texts,
)
from iccm_assets.settings import PACKAGED_AUDIT_SET, PACKAGED_CANARY_SET, Settings
from iccm_assets.suites.suite_runner import get_judge_version
from iccm_assets.suites.test_suites import Suite, parse_suite

if TYPE_CHECKING:
    from iccm_assets.models.generation import GeneratedResponse

BATCH_SIZE = 64
AGREEMENT = 1.05  # of two latencies; far from the ratio that the gate allows
CANARY_SET, AUDIT_SET = "canary_set", "audit_set"

Response = TypeVar("Response")
GenerateFn = Callable[[Sequence[str], int], "Sequence[GeneratedResponse]"]
"""(sources, batch size) -> one response per source, in order."""


@dataclass(frozen=True)
class EvaluationItem:
    """One item to measure on: of the canary or audit set, or a conversation of the production holdout."""

    name: str
    slice: str
    source_code: str
    suite: Suite
    digest: str = ""


@dataclass(frozen=True)
class EvaluationSet:
    """The items to measure on; ``name`` is `canary_set`, `audit_set` or `production_holdout`.

    Scores are cached under ``digest``, or under the item's own where it has one: the canary set is frozen as
    a whole; the holdout moves with time, and developers can change its conversations.
    """

    name: str
    digest: str
    items: tuple[EvaluationItem, ...]

    @property
    def evidence(self) -> dict[str, int]:
        """Number of items by the kind of their suites; ``pytest`` is the weaker evidence."""
        return dict(sorted(Counter(item.suite.kind for item in self.items).items()))


@dataclass(frozen=True)
class VersionScores:
    """One version's scores on one set, by item, and how many of them came from the cache."""

    version: str
    scores: dict[str, Score]
    cached: int


@dataclass(frozen=True)
class Latency:
    """Batch-1 latencies in milliseconds, per response and per output token, in the order of the items."""

    per_response: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluatedVersion:
    """A model version to measure, and the function that generates its responses."""

    version: ModelVersion
    generate: GenerateFn


@dataclass(frozen=True)
class EvaluationOutcome:
    """The result of an evaluation; pairs are candidate first.

    ``slices`` maps canary items to slices; ``holdout_evidence`` counts the holdout's items by kind of suite.
    """

    candidate: ModelVersion
    production: ModelVersion
    canary: tuple[VersionScores, VersionScores]
    holdout: tuple[VersionScores, VersionScores]
    latency: Sequence[Latency]
    slices: dict[str, str]
    verdict: Verdict
    ancestors: tuple[VersionScores, ...] = ()
    holdout_evidence: Mapping[str, int] = field(default_factory=dict)


def load_canary_items(settings: Settings) -> EvaluationSet:
    """Load the canary set as items to measure on."""
    return _load_items(CANARY_SET, settings.canary_set)


def load_audit_items(settings: Settings) -> EvaluationSet:
    """Load the audit set of the packaged canary set; any other canary set is its own (X3)."""
    if settings.canary_set != str(PACKAGED_CANARY_SET):
        return load_canary_items(settings)
    return _load_items(AUDIT_SET, str(PACKAGED_AUDIT_SET))


def _load_items(name: str, path: str) -> EvaluationSet:
    canary_set = load_canary_set(path)
    items = (
        EvaluationItem(row.item, row.slice, row.source_code, parse_suite(row.test_suite))
        for row in canary_set.items
    )
    return EvaluationSet(name, canary_set.digest, tuple(items))


def load_holdout_items(engine: sa.Engine, settings: Settings) -> EvaluationSet:
    """Load the production holdout: recent held-out sessions unlike anything trained on (F3)."""
    return EvaluationSet(
        HOLDOUT, HOLDOUT, tuple(map(to_evaluation_item, load_production_holdout(engine, settings)))
    )


def to_evaluation_item(row: HoldoutItem) -> EvaluationItem:
    """Convert a held-out conversation to an item to measure on."""
    return EvaluationItem(
        f"conversation:{row.id}", HOLDOUT, row.source_code, row.suite, f"{HOLDOUT}:{row.digest}"
    )


def decoding_key(settings: Settings) -> str:
    """Return the name of the decoding of responses; part of the cache key."""
    return f"argmax/{settings.evaluation.max_new_tokens}"


def evaluate_version(
    engine: sa.Engine,
    evaluated: EvaluatedVersion,
    evaluation_set: EvaluationSet,
    orchestra: Orchestra,
    settings: Settings,
    progress: Callable[[int], None] = lambda done: None,
) -> VersionScores:
    """Score the version on every item of a set; no response is generated for items with a cached score.

    While a batch of responses is scored, the next one is generated. Sources of a batch are of similar length,
    which keeps the padding short.
    """
    key = _cache_key(evaluated.version, orchestra, settings)
    scores = _cached_scores(engine, key, evaluation_set, orchestra)
    missing = [item for item in evaluation_set.items if item.name not in scores]
    cached = len(evaluation_set.items) - len(missing)
    progress(cached)
    key_of_version = {**key, "version": evaluated.version.version}

    def generate(sources: Sequence[str]) -> Sequence[GeneratedResponse]:
        return evaluated.generate(sources, settings.evaluation.batch_size)

    for batch, responses in generate_ahead(missing, generate):
        scores |= _score_batch(engine, evaluation_set, batch, responses, key_of_version, orchestra, settings)
        progress(len(batch))
    return VersionScores(
        evaluated.version.version, {item.name: scores[item.name] for item in evaluation_set.items}, cached
    )


def generate_ahead(
    items: Sequence[EvaluationItem], generate: Callable[[Sequence[str]], Sequence[Response]]
) -> Iterator[tuple[Sequence[EvaluationItem], Sequence[Response]]]:
    """Yield items and responses in batches of similar length; a thread generates the next one meanwhile."""
    ordered = sorted(items, key=lambda item: (len(item.source_code), item.name))
    batches = [ordered[start : start + BATCH_SIZE] for start in range(0, len(ordered), BATCH_SIZE)]
    with ThreadPoolExecutor(1, thread_name_prefix="generation") as executor:

        def submit(batch: Sequence[EvaluationItem]) -> Future[Sequence[Response]]:
            return executor.submit(generate, [item.source_code for item in batch])

        ahead = deque(map(submit, batches[:1]))
        for batch, following in zip_longest(batches, batches[1:]):
            responses = ahead.popleft().result()
            if following is not None:
                ahead.append(submit(following))
            yield batch, responses


def _score_batch(
    engine: sa.Engine,
    evaluation_set: EvaluationSet,
    batch: Sequence[EvaluationItem],
    responses: Sequence[GeneratedResponse],
    key: dict[str, Any],
    orchestra: Orchestra,
    settings: Settings,
) -> dict[str, Score]:
    """Score and store responses to some items of a set.

    A score belongs to a text: if any version wrote the same text for an item, it is not judged again. So two
    versions never differ in an item on which their texts agree. An answer that stopped at the token limit
    scores 0; one to a source that the model did not read to its end is inconclusive (L10).
    """
    texts = {item.name: response.text for item, response in zip(batch, responses, strict=True)}
    judge = {name: key[name] for name in ("orchestra", "judge_version")}
    complete = {
        item.name: texts[item.name]
        for item, response in zip(batch, responses, strict=True)
        if response.is_complete and not response.is_truncated
    }
    judged = _cached_scores(engine, judge, evaluation_set, orchestra, complete)
    judged |= {
        item.name: _unread_score(orchestra)
        for item, response in zip(batch, responses, strict=True)
        if response.is_truncated
    }
    tasks = [
        ScoringTask(
            texts[item.name],
            item.suite,
            item.source_code,
            rejection="" if item.name in complete else LENGTH_STOPPED,
        )
        for item in batch
        if item.name not in judged
    ]
    fresh = iter(list(score_texts(tasks, orchestra, settings)))
    scores = {item.name: judged.get(item.name) or next(fresh) for item in batch}
    key = {**key, "set": evaluation_set.name}
    rows: list[dict[str, Any]] = []
    for item, response in zip(batch, responses, strict=True):
        digest = item.digest or evaluation_set.digest
        rows += _rows({**key, "canary_set_digest": digest}, item, response, scores[item.name])
    with engine.begin() as conn:
        statement = insert(t.canary_results)
        update = {name: statement.excluded[name] for name in _MEASURED}
        conn.execute(
            statement.on_conflict_do_update(constraint="canary_results_cache_key", set_=update), rows
        )
        alert_sandbox_missing(conn, scores.values())
    return scores


def _unread_score(orchestra: Orchestra) -> Score:
    """Return the score of an answer to a source that the model did not read to its end."""
    members = [
        ReconstructionScore(
            member.name, "inconclusive", "", None, (), None, 0.0, detail=f"truncated: {SOURCE_TRUNCATED}"
        )
        for member in orchestra.members
    ]
    return aggregate(members, orchestra.quorum)


def load_cached_scores(
    engine: sa.Engine,
    version: ModelVersion,
    evaluation_set: EvaluationSet,
    orchestra: Orchestra,
    settings: Settings,
) -> VersionScores:
    """Load the version's cached scores, without items that have none; generates no responses."""
    scores = _cached_scores(engine, _cache_key(version, orchestra, settings), evaluation_set, orchestra)
    return VersionScores(version.version, scores, len(scores))


def build_gate_evidence(
    canary: tuple[VersionScores, VersionScores],
    evaluation_set: EvaluationSet,
    latency: Sequence[Latency],
) -> GateEvidence:
    """Build the gate's evidence: one pair of scores per item, candidate first, and latencies per token."""
    items = []
    for item in evaluation_set.items:
        candidate, production = (measured.scores[item.name] for measured in canary)
        suspects = [
            member.reconstructor
            for member in (*candidate.members, *production.members)
            if member.status == "suspect"
        ]
        items.append(
            ItemEvidence(
                item=item.name,
                slice=item.slice,
                candidate=candidate.test_pass_rate,
                production=production.test_pass_rate,
                candidate_variance=candidate.implementation_variance,
                production_variance=production.implementation_variance,
                unreliable_reason=f"suspect implementation by {', '.join(suspects)}" if suspects else "",
                is_blank=any(member.detail == BLANK for member in candidate.members),
            )
        )
    return GateEvidence(
        candidate_version=canary[0].version,
        production_version=canary[1].version,
        items=tuple(items),
        expected_items=len(evaluation_set.items),
        candidate_latency=tuple(latency[0].per_token),
        production_latency=tuple(latency[1].per_token),
    )


def measure_latency(
    versions: Sequence[EvaluatedVersion], items: Sequence[EvaluationItem], rounds: int, warmup: int = 2
) -> list[Latency]:
    """Measure batch-1 latencies of each version: the fastest of the rounds per item, interleaved A B, B A, …

    Other load on the machine can only slow a response down, and in bursts. The fastest response of several
    rounds over the whole set measures the model; a single round would measure the other processes. An item
    on which each version's two fastest responses agree is measured: further ones would repeat them.
    """
    for evaluated in versions:
        for item in items[:warmup]:
            evaluated.generate([item.source_code], 1)
    responses: list[list[list[GeneratedResponse]]] = [[[] for _ in items] for _ in versions]
    order = list(range(len(versions)))
    for _ in range(rounds):
        for number, item in enumerate(items):
            if all(_agree(by_item[number]) for by_item in responses):
                continue
            for index in order:
                responses[index][number] += versions[index].generate([item.source_code], 1)
            order.reverse()
    fastest = [[min(runs, key=lambda run: run.latency_ms) for runs in by_item] for by_item in responses]
    return [_latency(runs) for runs in fastest]


def _agree(runs: Sequence[GeneratedResponse]) -> bool:
    """Whether the two fastest responses took equally long."""
    fastest = sorted(run.latency_ms for run in runs)[:2]
    return len(fastest) == 2 and fastest[1] <= fastest[0] * AGREEMENT


def _latency(responses: Sequence[GeneratedResponse]) -> Latency:
    per_token = [response.latency_ms / max(1, response.output_tokens) for response in responses]
    return Latency([response.latency_ms for response in responses], per_token)


def _cache_key(version: ModelVersion, orchestra: Orchestra, settings: Settings) -> dict[str, Any]:
    return {
        "model_digest": version.digest,
        "orchestra": orchestra.digest,
        "judge_version": get_judge_version(settings),
        "decoding": decoding_key(settings),
    }


def _cached_scores(
    engine: sa.Engine,
    key: dict[str, Any],
    evaluation_set: EvaluationSet,
    orchestra: Orchestra,
    texts: Mapping[str, str] | None = None,
) -> dict[str, Score]:
    """Load the scores of the set's current items, by item; with ``texts``, only of these texts by item.

    An item is left out unless every member of the orchestra responded: a missing one has to be called again.
    """
    cr = t.canary_results
    digests = {item.name: item.digest or evaluation_set.digest for item in evaluation_set.items}
    query = sa.select(cr).where(
        cr.c.canary_set_digest.in_(set(digests.values())),
        cr.c.status.in_(["scored", "unreadable"]),
        *(cr.c[name] == value for name, value in key.items()),
    )
    if texts is not None:
        query = query.where(cr.c.item.in_(texts), cr.c.reason.is_distinct_from(LENGTH_STOPPED))
    members: dict[str, dict[str, ReconstructionScore]] = defaultdict(dict)
    with engine.connect() as conn:
        for row in conn.execute(query):
            text = row.requirements if texts is None else _storable(texts[row.item])
            if (row.canary_set_digest, row.requirements) == (digests.get(row.item), text):
                members[row.item][row.reconstructor] = ReconstructionScore(
                    row.reconstructor,
                    row.status,
                    "",
                    row.test_pass_rate,
                    (),
                    row.api_compatibility,
                    0.0,
                    detail=row.reason or "",
                )
    names = [member.name for member in orchestra.members]
    return {
        item: aggregate([scores[name] for name in names], orchestra.quorum)
        for item, scores in members.items()
        if set(scores) == set(names)
    }


def _storable(text: str) -> str:
    return text.replace("\x00", "\ufffd")  # PostgreSQL stores no NUL


_MEASURED = (
    *("version", "set", "slice", "requirements", "test_pass_rate", "api_compatibility", "output_tokens"),
    *("status", "reason"),
)


def _rows(
    key: dict[str, Any], item: EvaluationItem, response: GeneratedResponse, score: Score
) -> Iterator[dict[str, Any]]:
    """Yield the row of each member; what is not in ``_MEASURED`` says whose scores they are."""
    for member in score.members:
        yield key | {
            "item": item.name,
            "reconstructor": member.reconstructor,
            "slice": item.slice,
            "requirements": _storable(response.text),
            "test_pass_rate": member.test_pass_rate,
            "api_compatibility": member.api_compatibility,
            "output_tokens": response.output_tokens,
            "status": member.status,
            "reason": member.detail or None,
        }
