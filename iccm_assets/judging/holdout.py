"""The production holdout: the evaluation slice that can see drift (F3).

Held-out sessions of the last weeks whose accepted requirements are unlike anything a model version has
learned from. They come from live traffic, so the set moves with it; its items are conversations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import sqlalchemy as sa

from iccm_assets.capture.extraction import source_of
from iccm_assets.curation.embeddings import content_sha256, embed_texts
from iccm_assets.curation.holdout import is_held_out
from iccm_assets.curation.similarity import nearest, unit_rows
from iccm_assets.errors import SuiteError
from iccm_assets.judging.suites import Suite, load_suite
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now

HOLDOUT = "production_holdout"
# Evaluation pays for each item by hundreds of milliseconds: the newest ones are enough to see drift.
MOST_ITEMS = 200


@dataclass(frozen=True)
class HoldoutRow:
    """One held-out conversation that can be measured on; `digest` changes with its source or its suite."""

    id: int
    source_code: str
    requirements: str
    suite: Suite
    digest: str


def production_holdout(engine: sa.Engine, settings: Settings) -> list[HoldoutRow]:
    """The newest held-out conversations with source and suite, unlike anything trained on; oldest first."""
    recent = _recent(engine, settings)
    learned = unit_rows(_learned(engine))
    embedder = Embedder.load(settings) if recent and len(learned) else None
    found: list[HoldoutRow] = []
    for start in range(0, len(recent), MOST_ITEMS):
        rows = _rows(engine, recent[start : start + MOST_ITEMS])
        if embedder is not None and rows:
            vectors = embed_texts(engine, [row.requirements for row in rows], embedder).vectors
            close = nearest(unit_rows(vectors), learned, settings.curation.duplicate_similarity)
            rows = [row for row, like in zip(rows, close, strict=True) if like is None]
        found += rows
        if len(found) >= MOST_ITEMS:
            break
    return found[:MOST_ITEMS][::-1]


def _recent(engine: sa.Engine, settings: Settings) -> list[int]:
    """Ids of the held-out conversations of the last weeks, newest first."""
    c = t.conversations.c
    with engine.connect() as conn:
        since = now(conn) - timedelta(days=settings.curation.holdout_days)
        sessions = conn.execute(
            sa.select(c.id, c.session_id)
            .where(c.timestamp >= since, c.erased_at.is_(None))
            .order_by(c.timestamp.desc(), c.id.desc())
        )
        share = settings.curation.held_out_share
        return [row.id for row in sessions if is_held_out(row.session_id, share)]


def rows_of(engine: sa.Engine, ids: list[int]) -> list[HoldoutRow]:
    """These conversations as they are now, as far as they can be measured on; newest first."""
    return _rows(engine, ids)


def _rows(engine: sa.Engine, ids: list[int]) -> list[HoldoutRow]:
    """Those of the conversations that can be measured on, newest first."""
    c, r = t.conversations.c, t.requirements.c
    with engine.connect() as conn:
        rows = conn.execute(
            sa.select(c.id, c.content, c.metadata, r.text, r.test_suite)
            .join(t.requirements, r.conversation_id == c.id)
            .where(c.id.in_(ids), r.kind == "accepted", r.test_suite.is_not(None), c.erased_at.is_(None))
            .order_by(c.timestamp.desc(), c.id.desc())
        ).all()
    found = []
    for row in rows:
        source, suite = source_of(row.content, row.metadata), _suite(row.test_suite)
        if source and suite is not None:
            digest = content_sha256(json.dumps([source, row.test_suite], sort_keys=True))[:16]
            found.append(HoldoutRow(row.id, source, row.text, suite, digest))
    return found


def _suite(value: object) -> Suite | None:
    """A suite nobody can run is no item; the reconstructions asset has counted it as bad."""
    try:
        return load_suite(value)
    except SuiteError:
        return None


def _learned(engine: sa.Engine) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Vectors of all conversations a training run has used, that of the candidate under test included."""
    pool, used = t.phase4_training_data.c, t.training_run_examples.c
    taught = sa.exists().where(used.conversation_id == pool.conversation_id)
    with engine.connect() as conn:
        vectors = conn.execute(sa.select(pool.embedding).where(sa.or_(pool.pinned, taught))).scalars().all()
    return np.array([np.asarray(vector, dtype=np.float32) for vector in vectors], dtype=np.float32)
