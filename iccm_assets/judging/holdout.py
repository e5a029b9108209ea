"""The production holdout: the evaluation slice that can see drift (F3).

Held-out sessions of the last weeks whose accepted requirements are unlike anything a model version has
learned from. They come from live traffic, so the set moves with it; its items are conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import sqlalchemy as sa

from iccm_assets.capture.extraction import source_of
from iccm_assets.curation.embeddings import embed_texts
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
    """One held-out conversation that can be measured on."""

    id: int
    source_code: str
    requirements: str
    suite: Suite


def production_holdout(engine: sa.Engine, settings: Settings) -> list[HoldoutRow]:
    """The newest held-out conversations with source and suite, unlike anything trained on; oldest first."""
    recent = _recent(engine, settings)
    learned = _learned(engine)
    if not recent or not len(learned):
        return recent
    embedder = Embedder.load(settings)
    vectors = embed_texts(engine, [row.requirements for row in recent], embedder).vectors
    close = nearest(unit_rows(vectors), unit_rows(learned), settings.curation.duplicate_similarity)
    return [row for row, found in zip(recent, close, strict=True) if found is None]


def _recent(engine: sa.Engine, settings: Settings) -> list[HoldoutRow]:
    c, r = t.conversations.c, t.requirements.c
    with engine.connect() as conn:
        since = now(conn) - timedelta(days=settings.curation.holdout_days)
        sessions = conn.execute(
            sa.select(c.id, c.session_id)
            .where(c.timestamp >= since, c.erased_at.is_(None))
            .order_by(c.id.desc())
        ).all()
        share = settings.curation.held_out_share
        held_out = [row.id for row in sessions if is_held_out(row.session_id, share)]
        rows = conn.execute(
            sa.select(c.id, c.content, c.metadata, r.text, r.test_suite)
            .join(t.requirements, r.conversation_id == c.id)
            .where(c.id.in_(held_out), r.kind == "accepted", r.test_suite.is_not(None))
            .order_by(c.id.desc())
            .limit(MOST_ITEMS)
        ).all()
    found = []
    for row in reversed(rows):
        source = source_of(row.content, row.metadata)
        suite = _suite(row.test_suite)
        if source and suite is not None:
            found.append(HoldoutRow(row.id, source, row.text, suite))
    return found


def _suite(value: object) -> Suite | None:
    """A suite nobody can run is no item; the reconstructions asset has counted it as bad."""
    try:
        return load_suite(value)
    except SuiteError:
        return None


def _learned(engine: sa.Engine) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    pool = t.phase4_training_data.c
    with engine.connect() as conn:
        vectors = conn.execute(sa.select(pool.embedding).where(pool.pinned)).scalars().all()
    return np.array([np.asarray(vector, dtype=np.float32) for vector in vectors], dtype=np.float32)
