"""Erasing conversations (V2): gone from every row at once, in one transaction.

What stays of a conversation is a tombstone: its id, moment, day's worth of lineage and ``erased_at``; its
session's name becomes a hash (so that the session cannot be posted again), its user becomes nobody.
Requests keep their numbers (status, latency, arm), for they are evidence about models. What lies in files
is ``scrub``'s business.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.capture.conversations import MAX_NAME, erased_name
from iccm_assets.curation.embeddings import content_sha256
from iccm_assets.errors import DatabaseError, InputError
from iccm_assets.governance.learners import plan_for
from iccm_assets.governance.plan import Plan

Kind = Literal["conversation", "session", "user"]

_LOCK = 0x1CC4_0E01
_LOCK_TIMEOUT = "60s"
_ATTEMPTS = 5
_DEADLOCK, _LOCK_NOT_AVAILABLE = "40P01", "55P03"
_MOST = 2**63 - 1


@dataclass(frozen=True)
class Subject:
    """Whose text goes: one conversation by its id, one session, or everything of one user."""

    kind: Kind
    value: str

    def __post_init__(self) -> None:
        """Refuse what can name nobody."""
        if not self.value.strip() or len(self.value) > MAX_NAME or not self.value.isprintable():
            raise InputError(f"a {self.kind} is named by a text of 1 to {MAX_NAME} printable characters")
        number = self.value.isascii() and self.value.isdigit() and int(self.value) <= _MOST
        if self.kind == "conversation" and not number:
            raise InputError(f"a conversation is named by its number, not {self.value!r}")

    @property
    def sha256(self) -> str:
        """What the record of the erasure holds instead of the name."""
        return hashlib.sha256(f"{self.kind}:{self.value}".encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.kind} {self.value!r}"


@dataclass(frozen=True)
class Erased:
    """An erasure's outcome, or on a trial run what it would be.

    ``counts``: rows changed by table. ``conversations``: ids of all of the subject's erasures, of which
    ``newly`` went now. ``hashes``: of the texts, to take their vectors out again after a refold.
    """

    erasure: int | None
    subject: Subject
    conversations: tuple[int, ...]
    newly: int
    counts: dict[str, int]
    stopped_runs: tuple[int, ...]
    plan: Plan
    earlier: datetime | None = None
    hashes: tuple[str, ...] = field(default=(), repr=False)


def erase(engine: sa.Engine, subject: Subject, *, actor: str, trial: bool = False) -> Erased:
    """Erase everything of a subject from every row; ``trial`` rolls back and so tells exactly what would go.

    A subject erased before is found again: what it left since goes too, and the plan is made anew. A
    training run under way on such a conversation is stopped: its fence is old from here on. Raises
    ``InputError`` when there is no such subject, ``DatabaseError`` when a lock cannot be had.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with engine.connect() as conn, conn.begin() as transaction:
                conn.execute(sa.text(f"set local lock_timeout = '{_LOCK_TIMEOUT}'"))
                conn.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                done = _Erasure(conn, subject, actor).run()
                if trial:
                    transaction.rollback()
                return done
        except sa.exc.DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state == _LOCK_NOT_AVAILABLE:
                raise DatabaseError(
                    f"other work held rows of this {subject.kind} for {_LOCK_TIMEOUT}, nothing was erased",
                    hint="Try again when it has ended.",
                ) from None
            if state != _DEADLOCK or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


_WHERE = {
    "conversation": "c.id = cast(:value as bigint)",
    "session": "c.session_id in (:value, :erased)",
    "user": """c.user_id = :value or (c.user_id is null and exists (
        select from iccm.requests r where r.session_id = c.session_id and r.user_id = :value))""",
}


class _Erasure:
    """One erasure, inside its transaction."""

    def __init__(self, conn: sa.Connection, subject: Subject, actor: str) -> None:
        self._conn = conn
        self._subject = subject
        self._actor = actor
        self._counts: Counter[str] = Counter()

    def run(self) -> Erased:
        names = {"value": self._subject.value, "erased": erased_name(self._subject.value)}
        found = self._rows(
            f"select c.id, c.session_id, c.erased_at from iccm.conversations c"
            f" where {_WHERE[self._subject.kind]} order by c.id for update",
            **names,
        )
        live = [row for row in found if row.erased_at is None]
        ids = [row.id for row in live]
        sessions, requests = self._sessions(live)
        earlier = self._rows(
            "select id, conversations, erased_at, subject_sha256 = :sha as same from iccm.erasures"
            " where subject_sha256 = :sha or conversations && cast(:ids as bigint[]) order by id",
            sha=self._subject.sha256,
            ids=[row.id for row in found],
        )
        if not (found or requests or earlier):
            raise InputError(f"there is no {self._subject}", hint="Names are compared exactly.")
        before = {one for row in earlier if row.same for one in row.conversations}
        everything = sorted(before | {row.id for row in found})
        number: int | None = earlier[-1].id if earlier else None
        hashes: tuple[str, ...] = ()
        stopped: list[int] = []
        if ids or requests:
            number = self._open(ids)
            hashes = self._delete(ids, sessions, requests)
            self._keep_numbers(sessions, requests)
            stopped = self._stop_training(ids, number)
        plan = plan_for(self._conn, everything, number)
        if ids or requests:
            self._close(number, plan)
        self._alert(number, plan)
        return Erased(
            erasure=number,
            subject=self._subject,
            conversations=tuple(everything),
            newly=len(ids),
            counts=dict(self._counts),
            stopped_runs=tuple(stopped),
            plan=plan,
            earlier=earlier[-1].erased_at if earlier else None,
            hashes=hashes,
        )

    def _rows(self, sql: str, **values: Any) -> Sequence[sa.Row[Any]]:
        return self._conn.execute(sa.text(sql), values).all()

    def _change(self, table: str, sql: str, **values: Any) -> Sequence[sa.Row[Any]]:
        """Execute a change that returns a row for each row it touched, and count those."""
        rows = self._rows(sql, **values)
        self._counts[table] += len(rows)
        return rows

    def _sessions(self, live: Sequence[sa.Row[Any]]) -> tuple[list[str], list[str]]:
        """The subject's sessions and requests; a request of a session somebody else holds is taken alone."""
        sessions = {row.session_id for row in live}
        if self._subject.kind == "session":
            sessions.add(self._subject.value)
        user = self._subject.value if self._subject.kind == "user" else None
        rows = self._rows(
            """
            select r.request_id, r.session_id, exists (
                select from iccm.conversations c
                where c.session_id = r.session_id and c.user_id <> r.user_id
            ) as shared
            from iccm.requests r
            where r.session_id = any(:sessions) or r.user_id = cast(:user as text)
            for update
            """,
            sessions=sorted(sessions),
            user=user,
        )
        sessions.update(row.session_id for row in rows if row.session_id and not row.shared)
        return sorted(sessions), sorted(row.request_id for row in rows)

    def _open(self, ids: list[int]) -> int:
        [row] = self._rows(
            """
            insert into iccm.erasures (subject, subject_sha256, conversations, actor)
            values (:subject, :sha, :ids, :actor) returning id
            """,
            subject=self._subject.kind,
            sha=self._subject.sha256,
            ids=ids,
            actor=self._actor,
        )
        return int(row.id)

    def _delete(self, ids: list[int], sessions: list[str], requests: list[str]) -> tuple[str, ...]:
        """Take out every row that holds or is made from the texts; returns the texts' hashes."""
        whose = {"ids": ids, "sessions": sessions, "requests": requests}
        theirs = "(session_id = any(:sessions) or conversation_id = any(:ids) or request_id = any(:requests))"
        self._change(
            "reconstructions",
            f"""
            delete from iccm.reconstructions
            where requirement_id in (select id from iccm.requirements where {theirs}) returning 1
            """,
            **whose,
        )
        texts = self._change(
            "requirements", f"delete from iccm.requirements where {theirs} returning text", **whose
        )
        self._change(
            "feedback",
            """
            delete from iccm.feedback
            where session_id = any(:sessions) or request_id = any(:requests) returning 1
            """,
            **whose,
        )
        hashes = {content_sha256(row.text) for row in texts} | self._leave_the_pool(ids)
        self._change(
            "canary_results",
            """
            delete from iccm.canary_results
            where set = 'production_holdout' and item = any(:items) returning 1
            """,
            items=[f"conversation:{one}" for one in ids],
        )
        self._counts["embeddings"] += drop_vectors(self._conn, hashes)
        return tuple(sorted(hashes))

    def _leave_the_pool(self, ids: list[int]) -> set[str]:
        """Out of pool and filter, as the filter itself would leave it: rejected, reason `erased`."""
        pooled = self._change(
            "phase4_training_data",
            """
            delete from iccm.phase4_training_data where conversation_id = any(:ids)
            returning content_sha256
            """,
            ids=ids,
        )
        kept = self._change(
            "filtered_conversations",
            """
            delete from iccm.filtered_conversations where conversation_id = any(:ids)
            returning content_sha256, day
            """,
            ids=ids,
        )
        for day, count in Counter(row.day for row in kept).items():
            self._conn.execute(
                sa.text(
                    """
                    update iccm.filtered_days set kept = kept - :n, rejected = rejected + :n
                    where day = :day
                    """
                ),
                {"day": day, "n": count},
            )
        self._change(
            "phase4_rejections",
            "delete from iccm.phase4_rejections where conversation_id = any(:ids) returning 1",
            ids=ids,
        )
        self._conn.execute(
            sa.text(
                """
                insert into iccm.phase4_rejections (conversation_id, stage, day, reason)
                select c.id, 'policy', d.day, 'erased' from iccm.conversations c
                join iccm.filtered_days d on d.day = (c."timestamp" at time zone 'UTC')::date
                where c.id = any(:ids)
                """
            ),
            {"ids": ids},
        )
        return {row.content_sha256 for row in (*pooled, *kept)}

    def _keep_numbers(self, sessions: list[str], requests: list[str]) -> None:
        """Rows that count for something stay, without content and under names that tell nothing."""
        hashed = "'erased:' || encode(sha256(convert_to({}, 'UTF8')), 'hex')"
        self._change(
            "requests",
            f"""
            update iccm.requests set user_id = null, error = null,
                request_id = {hashed.format("request_id")}, session_id = {hashed.format("session_id")}
            where request_id = any(:requests) returning 1
            """,
            requests=requests,
        )
        self._change(
            "conversations",
            f"""
            update iccm.conversations set session_id = {hashed.format("session_id")}, user_id = null,
                content = '[]', metadata = '{{}}', erased_at = iccm.now(), updated_at = iccm.now()
            where session_id = any(:sessions) and erased_at is null returning 1
            """,
            sessions=sessions,
        )

    def _stop_training(self, ids: list[int], number: int) -> list[int]:
        rows = self._rows(
            """
            update iccm.phase4_training_runs r set status = 'failed', fence = fence + 1,
                updated_at = iccm.now(), error = :error
            where r.status = 'running' and exists (
                select from iccm.training_run_examples e
                where e.training_run_id = r.id and e.conversation_id = any(:ids)
            ) returning r.id
            """,
            ids=ids,
            error=f"stopped by erasure {number}: conversations it was learning from are gone",
        )
        return [row.id for row in rows]

    def _close(self, number: int | None, plan: Plan) -> None:
        values = {
            "id": number,
            "counts": dict(self._counts),
            "versions": [one.version for one in plan.versions],
        }
        self._conn.execute(
            sa.text(
                "update iccm.erasures set counts = :counts, versions = :versions where id = :id"
            ).bindparams(sa.bindparam("counts", type_=JSONB)),
            values,
        )

    def _alert(self, number: int | None, plan: Plan) -> None:
        """A2: one alert for each version in service, once for each erasure."""
        for one in plan.replacements:
            instead = f" Replace it: {one.retrain}" if one.retrain else ""
            raise_alert(
                self._conn,
                f"erased_data:{one.version}:{number}",
                "warning",
                "Erased data still in production",
                f"{one.version} learned from conversations of erasure {number}; {one.reason}.{instead}",
            )


def drop_vectors(conn: sa.Connection, hashes: Sequence[str] | set[str]) -> int:
    """Delete the vectors of these texts, but for a text that another conversation's example has as well."""
    gone: int = conn.execute(
        sa.text(
            """
            delete from iccm.embeddings e where e.content_sha256 = any(:hashes)
                and not exists (select from iccm.filtered_conversations f
                    where f.content_sha256 = e.content_sha256)
                and not exists (select from iccm.phase4_training_data p
                    where p.content_sha256 = e.content_sha256)
            """
        ),
        {"hashes": sorted(hashes)},
    ).rowcount
    return gone
