"""Scoring queue: which stored requirements need a score, and which scorer has claimed them.

A scorer *claims* a row before it sends any request, by an advisory lock of its own connection. It never waits
for a claim, so scorers cannot deadlock. Rows are not locked, so they can change meanwhile. When a
scorer dies, its connection ends and so do its claims.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import start_of_day
from iccm_assets.db.locks import Lock, lock_key

# Rows read at a time; then the queue is read again, because more urgent rows may have arrived.
PAGE_SIZE = 2000

# Retry immediately, then after 10 minutes, doubling up to a day: 12 attempts take about five days.
_RETRY = sa.literal_column(
    """
    (requirements.evidence ->> 'missing')::int > 0 and (
        (requirements.evidence ->> 'attempts')::int < 2
        or (requirements.evidence ->> 'attempts')::int < 12
        and iccm.now() >= (requirements.evidence ->> 'tried_at')::timestamptz + least(
            interval '5 minutes' * power(2, (requirements.evidence ->> 'attempts')::int - 1), interval '1 day'
        )
    )
    """,
    sa.Boolean,
)


def row_version() -> sa.Label[str]:
    """Return a column that changes with every update of a row, to store a score only for an unchanged row."""
    return sa.literal_column("requirements.xmin::text", sa.Text).label("row_version")


def unscored_requirements(days: tuple[date, date] | None = None) -> sa.Select[Any]:
    """Select rows with a suite and no score yet, oldest first; ``days`` = (first, last), inclusive, UTC.

    With ``days`` (of the conversations), rows with missing members are always selected; without, at growing
    intervals.
    """
    r, c = t.requirements, t.conversations
    has_missing_members = sa.literal_column("(requirements.evidence ->> 'missing')::int > 0", sa.Boolean)
    query = _unscored(_RETRY if days is None else has_missing_members).order_by(r.c.id)
    if days is not None:
        start, end = start_of_day(days[0]), start_of_day(days[1] + timedelta(days=1))
        query = query.where(c.c.timestamp >= start, c.c.timestamp < end)
    return query


def unscored_live_responses() -> sa.Select[Any]:
    """Select answers of the gateway with tests and no score yet, most urgent first (R11).

    Only the first such answer of a session counts as evidence, so first answers precede later ones; among
    them, sessions of the live rollout come first, then the oldest.
    """
    r, q, o = t.requirements, t.requests, t.rollouts  # `_unscored` joins the requests
    earlier = r.alias("earlier")
    follows_another = sa.exists().where(
        earlier.c.session_id == r.c.session_id,
        earlier.c.kind == "model",
        earlier.c.test_suite.is_not(None),
        sa.tuple_(earlier.c.created_at, earlier.c.id) < sa.tuple_(r.c.created_at, r.c.id),
    )
    live = sa.select(o.c.id).where(o.c.state.in_(t.LIVE_STATES)).scalar_subquery()
    return (
        _unscored(_RETRY)
        .where(r.c.kind == "model", q.c.request_id.is_not(None))
        .order_by(follows_another, sa.func.coalesce(q.c.rollout_id == live, sa.false()).desc(), r.c.id)
    )


def count_rows(engine: sa.Engine, query: sa.Select[Any]) -> int:
    """Count the rows of a query."""
    subquery = query.order_by(None).subquery()
    with engine.connect() as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(subquery)).scalar_one()


def _unscored(retry: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Select unscored rows; by outer joins: an answer without a stored conversation counts, too."""
    r, c, q = t.requirements, t.conversations, t.requests
    return (
        sa.select(
            row_version(),
            r.c.id,
            r.c.kind,
            r.c.text,
            r.c.source_sha256,
            r.c.test_suite,
            r.c.test_suite_origin,
            r.c.orchestra,
            r.c.evidence,
            c.c.content,
            c.c.metadata,
            q.c.finish_reason,
        )
        .outerjoin(c, c.c.id == r.c.conversation_id)
        .outerjoin(q, q.c.request_id == r.c.request_id)
        .where(r.c.test_pass_rate.is_(None), r.c.test_suite.is_not(None), c.c.erased_at.is_(None))
        .where(sa.or_(r.c.scored_at.is_(None), retry))
    )


_CLAIM = sa.text("select key from unnest(cast(:keys as bigint[])) as key where pg_try_advisory_lock(key)")
_RELEASE = sa.text("select pg_advisory_unlock(key) from unnest(cast(:keys as bigint[])) as key")


class RowClaims:
    """The rows that one scorer has claimed; for use by one thread."""

    def __init__(self, conn: sa.Connection) -> None:
        self._conn = conn

    def acquire(self, rows: Sequence[Any]) -> list[Any]:
        """Claim the rows that no other scorer has claimed and that are unchanged since they were read."""
        keys = {lock_key(Lock.SCORING, row.id): row.id for row in rows}
        locked = {keys[key] for key in self._conn.execute(_CLAIM, {"keys": list(keys)}).scalars()}
        r = t.requirements.c
        current = self._conn.execute(sa.select(r.id, row_version()).where(r.id.in_(locked))).all()
        claimed = [row for row in rows if (row.id, row.row_version) in current]
        self.release(locked - {row.id for row in claimed})
        return claimed

    def release(self, ids: Collection[int]) -> None:
        """Release the claims on rows, by id."""
        self._conn.execute(_RELEASE, {"keys": [lock_key(Lock.SCORING, id) for id in sorted(ids)]})


@contextmanager
def claim_rows(engine: sa.Engine) -> Iterator[RowClaims]:
    """Open a connection for claims, which end with the block."""
    with engine.connect() as conn:
        conn = conn.execution_options(isolation_level="AUTOCOMMIT")
        try:
            yield RowClaims(conn)
        finally:
            # Back in the pool, the connection would still hold the locks.
            conn.invalidate()
