"""Choose which of the model's own answers become examples of a training set (L12).

What holds for the examples that developers accepted holds for these: nothing that overlaps the canary set
or a held-out session, no near-duplicates, and no user with more than a share. Nor may they overlap the audit
set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from iccm_assets.curation.decontamination import TextPair, find_contamination, load_canary_index
from iccm_assets.curation.embeddings import TextEmbedder, embed_texts
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.greedy_dedup import EmbeddedRows, greedy_dedup
from iccm_assets.curation.text_vectors import find_nearest
from iccm_assets.db.clock import now
from iccm_assets.models.embedding import Embedder
from iccm_assets.retraining.example_selection import max_fair_selection, name_owner
from iccm_assets.settings import PACKAGED_AUDIT_SET, PACKAGED_CANARY_SET, SelectionSettings, Settings
from iccm_assets.training.dataset import MAX_OWN_SHARE, TrainingExample
from iccm_assets.training.sampling import GREEDY, SampledAnswer
from iccm_assets.training.sampling_sources import AnsweredSource


@dataclass(frozen=True)
class SelfExample:
    """An answer that can be an example, and its source."""

    answer: SampledAnswer
    source: AnsweredSource

    @property
    def owner(self) -> str:
        """Who the conversation belongs to."""
        return name_owner(self.source.user_id, self.source.token_name)

    def to_training_example(self) -> TrainingExample:
        """Return it as an example of a training set."""
        source = self.source
        return TrainingExample(
            source.conversation_id, source.source_code, self.answer.text, "self", "sampled"
        )


@dataclass(frozen=True)
class SelfExampleChoice:
    """The chosen examples, and how many answers were left out, by reason."""

    chosen: tuple[SelfExample, ...]
    excluded: Mapping[str, int]

    @property
    def reason(self) -> str:
        """The choice in one line."""
        excluded = ", ".join(f"{count} {name}" for name, count in self.excluded.items() if count)
        summary = f"{len(self.chosen)} sampled answers are examples"
        return f"{summary} ({excluded})" if excluded else summary


def choose_best(
    sources: Sequence[AnsweredSource],
    answers: Mapping[int, Sequence[SampledAnswer]],
    max_variance: float,
) -> list[SelfExample]:
    """Return the best sampled answer of each source that has one which can teach, best first.

    Sources whose greedy answer is right, or has no score, give none.
    """
    examples = []
    for source in sources:
        own = answers.get(source.conversation_id, ())
        greedy = next((answer for answer in own if answer.sample == GREEDY), None)
        if greedy is None or greedy.test_pass_rate is None or greedy.is_right:
            continue
        able = [a for a in own if a.sample != GREEDY and a.can_teach(max_variance)]
        if able:
            examples.append(SelfExample(min(able, key=_rank), source))
    return sorted(examples, key=lambda example: (*_rank(example.answer), example.source.conversation_id))


def _rank(answer: SampledAnswer) -> tuple[float, float, int]:
    return -(answer.test_pass_rate or 0.0), answer.implementation_variance or 0.0, answer.sample


def apply_caps(examples: Sequence[SelfExample], new: int, settings: SelectionSettings) -> list[SelfExample]:
    """Return the first examples under the cap on their share and the one on a user's share.

    At most ``MAX_OWN_SHARE`` of these and the ``new`` ones together are the model's own, so of the whole set,
    too, whatever is rehearsed beside them.
    """
    per_owner = Counter(example.owner for example in examples)
    limit = int(new * MAX_OWN_SHARE / (1 - MAX_OWN_SHARE) + 1e-9)
    fair = max_fair_selection(per_owner.values(), limit, settings)
    chosen: list[SelfExample] = []
    chosen_by_owner: Counter[str] = Counter()
    for example in examples:
        if len(chosen) < fair.size and chosen_by_owner[example.owner] < fair.max_per_user:
            chosen_by_owner[example.owner] += 1
            chosen.append(example)
    return chosen


def choose_self_examples(
    engine: sa.Engine,
    examples: Sequence[SelfExample],
    new: Sequence[TrainingExample],
    settings: Settings,
    embedder: TextEmbedder | None = None,
) -> SelfExampleChoice:
    """Leave out what is contaminated or a duplicate, and apply the caps; ``examples`` are ranked.

    Raises ``InputError`` when the canary set cannot be read: without it no example may pass.
    """
    if not examples:
        return SelfExampleChoice((), {})
    embedder = embedder or Embedder.load(settings)
    clean = _without_contaminated(engine, examples, embedder, settings)
    distinct = _without_duplicates(engine, clean, new, embedder, settings.curation.duplicate_similarity)
    chosen = apply_caps(distinct, len(new), settings.selection)
    return SelfExampleChoice(
        tuple(chosen),
        {
            "contaminated": len(examples) - len(clean),
            "duplicates": len(clean) - len(distinct),
            "over a cap": len(distinct) - len(chosen),
        },
    )


def _without_contaminated(
    engine: sa.Engine, examples: Sequence[SelfExample], embedder: TextEmbedder, settings: Settings
) -> list[SelfExample]:
    threshold = settings.curation.duplicate_similarity
    pairs = [TextPair(example.source.source_code, example.answer.text) for example in examples]
    overlaps: list[Sequence[object]] = [
        find_contamination(engine, pairs, load_canary_index(path), embedder, threshold)
        for path in _evaluation_sets(settings)
    ]
    held_out = _load_held_out_texts(engine, settings)
    texts = embed_texts(engine, [pair.requirements for pair in pairs], embedder).vectors.normalized()
    if held_out:
        known = embed_texts(engine, held_out, embedder).vectors.normalized()
        overlaps.append(find_nearest(texts, known, threshold))
    return [
        example
        for example, *of_example in zip(examples, *overlaps, strict=True)
        if all(overlap is None for overlap in of_example)
    ]


def _evaluation_sets(settings: Settings) -> Iterator[str]:
    """Yield the canary set, and the audit set that belongs to the packaged one."""
    yield settings.canary_set
    if settings.canary_set == str(PACKAGED_CANARY_SET):
        yield str(PACKAGED_AUDIT_SET)


_HELD_OUT = sa.text(
    """
    select c.session_id, r.text from iccm.conversations c
    join iccm.requirements r on r.conversation_id = c.id and r.kind = 'accepted'
    where c."timestamp" >= :since and c.erased_at is null and r.test_pass_rate is not null
    order by c.id
    """
)


def _load_held_out_texts(engine: sa.Engine, settings: Settings) -> list[str]:
    """Load the accepted texts of the held-out sessions that production is measured on."""
    curation = settings.curation
    with engine.connect() as conn:
        since = now(conn) - timedelta(days=curation.holdout_days)
        rows = conn.execute(_HELD_OUT, {"since": since}).all()
    return [row.text for row in rows if is_in_holdout(row.session_id, curation.holdout_fraction)]


def _without_duplicates(
    engine: sa.Engine,
    examples: Sequence[SelfExample],
    new: Sequence[TrainingExample],
    embedder: TextEmbedder,
    threshold: float,
) -> list[SelfExample]:
    """Keep an example when no new one and no kept one has requirements as similar as a duplicate's (P2)."""
    if not examples:
        return []
    texts = [example.answer.text for example in examples]
    known = [row.requirements for row in new]
    vectors = embed_texts(engine, [*known, *texts], embedder).vectors
    count = len(known)
    earlier, own = vectors.part(0, count), vectors.part(count, count + len(texts))
    result = greedy_dedup(
        EmbeddedRows(range(count, count + len(texts)), own.matrix, own.counts),
        EmbeddedRows(range(count), earlier.matrix, earlier.counts),
        threshold,
    )
    return [examples[position - count] for position in result.kept]
