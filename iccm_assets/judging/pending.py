"""Which stored requirements are to be scored, and who scores them: no row by two scorers at once.

A scorer *claims* a row before it asks anybody, by an advisory lock of its own connection: it never waits
for one, so scorers cannot deadlock; the rows themselves stay free for developers who change them; and what a
killed scorer had claimed is free the moment its connection ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.store import tables as t
from iccm_assets.store.locks import Lock, lock_key

# Read at a time: what waits longer is read when these are done, with whatever became more urgent.
PAGE = 2000

# Growing intervals: at once, then 10 minutes, doubling to a day; 12 attempts take about five days.
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
_LACKS_MEMBERS = sa.literal_column("(requirements.evidence ->> 'missing')::int > 0", sa.Boolean)


def row_version() -> sa.Label[str]:
    """Changes with every update of a requirements row: what was read is what gets the score."""
    return sa.literal_column("requirements.xmin::text", sa.Text).label("row_version")


def pending(days: tuple[date, date] | None = None) -> sa.Select[Any]:
    """Rows with a suite and no score yet, oldest first; `days` = (first, last) of their conversations, UTC.

    With `days` those that lack missing members belong to it every time; without, at growing intervals.
    """
    r, c = t.requirements, t.conversations
    query = _unscored(_RETRY if days is None else _LACKS_MEMBERS).order_by(r.c.id)
    if days is not None:
        first = datetime.combine(days[0], time(), UTC)
        last = datetime.combine(days[1] + timedelta(days=1), time(), UTC)
        query = query.where(c.c.timestamp >= first, c.c.timestamp < last)
    return query


def pending_live() -> sa.Select[Any]:
    """Answers given through the gateway that came with tests and have no score yet, most urgent first (R11).

    A session's first such answer is what counts as evidence, so it comes before any later one; among these,
    the sessions of the live rollout come before the rest, and then the oldest.
    """
    r, q, o = t.requirements, t.requests, t.rollouts
    earlier = r.alias("earlier")
    later_one = sa.exists().where(
        earlier.c.session_id == r.c.session_id,
        earlier.c.kind == "model",
        earlier.c.test_suite.is_not(None),
        sa.tuple_(earlier.c.created_at, earlier.c.id) < sa.tuple_(r.c.created_at, r.c.id),
    )
    live = sa.select(o.c.id).where(o.c.state.in_(t.LIVE_STATES)).scalar_subquery()
    return (
        _unscored(_RETRY)
        .join(q, q.c.request_id == r.c.request_id)
        .where(r.c.kind == "model")
        .order_by(later_one, sa.func.coalesce(q.c.rollout_id == live, sa.false()).desc(), r.c.id)
    )


def count(engine: sa.Engine, query: sa.Select[Any]) -> int:
    """How many rows a pass over the query would score."""
    with engine.connect() as conn:
        counted = sa.select(sa.func.count()).select_from(query.order_by(None).subquery())
        return conn.execute(counted).scalar_one()


def _unscored(again: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The join is an outer one: an answer whose conversation could not be stored is scored all the same."""
    r, c = t.requirements, t.conversations
    return (
        sa.select(
            row_version(),
            r.c.id,
            r.c.kind,
            r.c.text,
            r.c.test_suite,
            r.c.orchestra,
            r.c.evidence,
            c.c.content,
            c.c.metadata,
        )
        .outerjoin(c, c.c.id == r.c.conversation_id)
        .where(r.c.test_pass_rate.is_(None), r.c.test_suite.is_not(None), c.c.erased_at.is_(None))
        .where(sa.or_(r.c.scored_at.is_(None), again))
    )


_CLAIM = sa.text("select key from unnest(cast(:keys as bigint[])) as key where pg_try_advisory_lock(key)")
_RELEASE = sa.text("select pg_advisory_unlock(key) from unnest(cast(:keys as bigint[])) as key")


class Claims:
    """The rows one scorer has to itself; used by one thread."""

    def __init__(self, conn: sa.Connection) -> None:
        self._conn = conn

    def take(self, rows: Sequence[Any]) -> list[Any]:
        """Those of the rows that nobody else is scoring, nor has scored or changed since they were read."""
        keys = {lock_key(Lock.SCORING, row.id): row.id for row in rows}
        free = {keys[key] for key in self._conn.execute(_CLAIM, {"keys": list(keys)}).scalars()}
        r = t.requirements.c
        versions = self._conn.execute(sa.select(r.id, row_version()).where(r.id.in_(free)))
        now: Mapping[int, str] = {row.id: row.row_version for row in versions}
        taken = [row for row in rows if now.get(row.id) == row.row_version]
        self._release(free - {row.id for row in taken})
        return taken

    def release(self, rows: Sequence[Any]) -> None:
        """Their scores are stored."""
        self._release({row.id for row in rows})

    def _release(self, ids: set[int]) -> None:
        if ids:
            self._conn.execute(_RELEASE, {"keys": [lock_key(Lock.SCORING, id) for id in sorted(ids)]})


@contextmanager
def claiming(engine: sa.Engine) -> Iterator[Claims]:
    """Claims on a connection of their own, which end with the block however it ends."""
    with engine.connect() as conn:
        conn = conn.execution_options(isolation_level="AUTOCOMMIT")
        try:
            yield Claims(conn)
        finally:
            # Back in the pool it would still hold them.
            conn.invalidate()
