"""Production holdout: the evaluation slice that can detect drift (F3).

Held-out sessions of the last weeks whose accepted requirements have a score, and so a suite that tests
something, and are unlike anything a model version was trained on. They come from live traffic, so the set
moves with it; its items are conversations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from iccm_assets.capture.extraction import find_source
from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.embeddings import embed_texts, parse_windows
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.text_vectors import TextVectors, find_nearest
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.tables import EMBEDDING_DIMENSIONS
from iccm_assets.errors import TestSuiteError
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import Settings
from iccm_assets.suites.test_suites import Suite, parse_suite

HOLDOUT = "production_holdout"
# Each item costs hundreds of milliseconds per evaluation: the newest ones are enough to detect drift.
MAX_ITEMS = 200


@dataclass(frozen=True)
class HoldoutItem:
    """A held-out conversation to measure on; ``digest`` changes with its source or its suite."""

    id: int
    source_code: str
    requirements: str
    suite: Suite
    digest: str


def load_production_holdout(engine: sa.Engine, settings: Settings) -> list[HoldoutItem]:
    """Load the newest held-out conversations that are unlike anything trained on; oldest first."""
    recent = _load_recent_ids(engine, settings)
    trained_on = _load_training_vectors(engine).normalized()
    embedder = Embedder.load(settings) if recent and len(trained_on) else None
    items: list[HoldoutItem] = []
    for start in range(0, len(recent), MAX_ITEMS):
        rows = load_holdout_rows(engine, recent[start : start + MAX_ITEMS])
        if embedder is not None and rows:
            own = embed_texts(engine, _load_own_answers(engine), embedder).vectors.normalized()
            vectors = embed_texts(engine, [row.requirements for row in rows], embedder).vectors.normalized()
            threshold = settings.curation.duplicate_similarity
            matches = [find_nearest(vectors, known, threshold) for known in (trained_on, own)]
            rows = [row for row, *known in zip(rows, *matches, strict=True) if known == [None, None]]
        items += rows
        if len(items) >= MAX_ITEMS:
            break
    return items[:MAX_ITEMS][::-1]


def _load_recent_ids(engine: sa.Engine, settings: Settings) -> list[int]:
    """Load the ids of the held-out conversations of the last weeks, newest first."""
    c = t.conversations.c
    with engine.connect() as conn:
        since = now(conn) - timedelta(days=settings.curation.holdout_days)
        sessions = conn.execute(
            sa.select(c.id, c.session_id)
            .where(c.timestamp >= since, c.erased_at.is_(None))
            .order_by(c.timestamp.desc(), c.id.desc())
        )
        return [
            row.id for row in sessions if is_in_holdout(row.session_id, settings.curation.holdout_fraction)
        ]


def load_holdout_rows(engine: sa.Engine, ids: list[int]) -> list[HoldoutItem]:
    """Load conversations in their current state, newest first; those without source or score are left out."""
    c, r = t.conversations.c, t.requirements.c
    query = (
        sa.select(c.id, c.content, c.metadata, r.text, r.source_sha256, r.test_suite)
        .join(t.requirements, r.conversation_id == c.id)
        .where(c.id.in_(ids), r.kind == "accepted", r.test_pass_rate.is_not(None), c.erased_at.is_(None))
        .order_by(c.timestamp.desc(), c.id.desc())
    )
    items = []
    with engine.connect() as conn:
        for row in conn.execute(query):
            try:
                suite = parse_suite(row.test_suite)
            except TestSuiteError:
                continue  # the reconstructions asset reports it
            if source := find_source(row.content, row.metadata, row.source_sha256):
                digest = content_sha256(json.dumps([source, row.test_suite], sort_keys=True))[:16]
                items.append(HoldoutItem(row.id, source, row.text, suite, digest))
    return items


def _load_own_answers(engine: sa.Engine) -> list[str]:
    """Load the answers that models gave themselves and that a training run has used (L12)."""
    used, answers = t.training_run_examples.c, t.sampled_answers
    in_training = sa.exists().where(used.sampled_answer_id == answers.c.id)
    query = sa.select(answers.c.text).where(in_training, answers.c.text.is_not(None)).order_by(answers.c.id)
    with engine.connect() as conn:
        return list(conn.execute(query).scalars())


def _load_training_vectors(engine: sa.Engine) -> TextVectors:
    """Load the vectors of all conversations any training run has used, the candidate's own included."""
    pool, used = t.phase4_training_data.c, t.training_run_examples.c
    in_training = sa.exists().where(used.conversation_id == pool.conversation_id)
    query = sa.select(sa.func.vector_send(pool.embedding, type_=sa.LargeBinary), pool.further_windows).where(
        sa.or_(pool.pinned, in_training)
    )
    with engine.connect() as conn:
        windows = [parse_windows(*row) for row in conn.execute(query)]
    return TextVectors.stack(windows, EMBEDDING_DIMENSIONS)
