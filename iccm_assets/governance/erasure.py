"""Erase conversations from every row, in one transaction.

A tombstone remains of a conversation: its id, time, lineage and ``erased_at``; its session id becomes a hash
(so that the session cannot be posted again), its user id and token name null. Requests keep their numbers
(status, latency, arm), which are evidence about models. `physical_erasure` erases from files (V2).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.capture.conversations import MAX_ID_LENGTH, erased_session_key
from iccm_assets.capture.redaction.redact import stored_user_ids
from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.db import tables as t
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.errors import DatabaseError, InputError, RecordNotFoundError
from iccm_assets.governance.replacement_plan import ReplacementPlan
from iccm_assets.governance.replacement_queries import load_replacement_plan

Kind = Literal["conversation", "session", "user"]

_LOCK_TIMEOUT = "60s"
_MAX_ATTEMPTS = 5
_DEADLOCK, _LOCK_NOT_AVAILABLE = "40P01", "55P03"
_MAX_BIGINT = 2**63 - 1


@dataclass(frozen=True)
class DataSubject:
    """The subject of an erasure: one conversation by its id, one session, or everything of one user."""

    kind: Kind
    value: str

    def __post_init__(self) -> None:
        """Reject an invalid name."""
        if not self.value.strip() or len(self.value) > MAX_ID_LENGTH or not self.value.isprintable():
            raise InputError(f"a {self.kind} is named by a text of 1 to {MAX_ID_LENGTH} printable characters")
        number = self.value.isascii() and self.value.isdigit() and int(self.value) <= _MAX_BIGINT
        if self.kind == "conversation" and not number:
            raise InputError(f"a conversation is named by its number, not {self.value!r}")

    @property
    def sha256(self) -> str:
        """The hash that the record of the erasure holds instead of the name."""
        return hashlib.sha256(f"{self.kind}:{self.value}".encode()).hexdigest()

    @property
    def user_ids(self) -> list[str]:
        """All ids under which the user may be stored; empty for another kind."""
        return list(stored_user_ids(self.value)) if self.kind == "user" else []

    @property
    def session_ids(self) -> list[str]:
        """The sessions that are erased even where no conversation has them."""
        return [self.value] if self.kind == "session" else []

    @property
    def condition(self) -> str:
        """The SQL condition of the subject's conversations."""
        return _WHERE[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.value!r}"


@dataclass(frozen=True)
class RecordedErasure:
    """An erasure as it is recorded: hashes only.

    ``sessions`` are the session ids of the tombstones; ``users`` the sha256 of ``user:`` and each id under
    which the user may be stored. The hash and the time together identify an erasure in every copy of a
    database.
    """

    subject: Kind
    subject_sha256: str
    erased_at: datetime
    sessions: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True)
class RecordedSubject(DataSubject):
    """The subject of a recorded erasure, with the names it has in a database that still holds it."""

    recorded: RecordedErasure
    user_names: tuple[str, ...]
    session_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Accept the hash in place of a name."""

    @property
    def sha256(self) -> str:
        """The hash that the record of the erasure has."""
        return self.recorded.subject_sha256

    @property
    def user_ids(self) -> list[str]:
        """The ids under which the user is stored."""
        return list(self.user_names)

    @property
    def session_ids(self) -> list[str]:
        """The sessions that were erased."""
        return list(self.session_names)

    @property
    def condition(self) -> str:
        """The SQL condition of the erased conversations."""
        return f"c.session_id = any(:sessions) or {_WHERE['user']}"


@dataclass(frozen=True)
class ErasureResult:
    """The result of an erasure, real or in a dry run.

    ``counts``: rows changed by table. ``conversations``: ids of all of the subject's erasures, of which
    ``newly_erased`` were erased now. ``hashes``: of the texts, to delete their embeddings again after a
    rebuild.
    """

    erasure: int | None
    subject: DataSubject
    conversations: tuple[int, ...]
    newly_erased: int
    counts: dict[str, int]
    stopped_runs: tuple[int, ...]
    plan: ReplacementPlan
    erased_before: datetime | None = None
    hashes: tuple[str, ...] = field(default=(), repr=False)


def erase(engine: sa.Engine, subject: DataSubject, *, actor: str, dry_run: bool = False) -> ErasureResult:
    """Erase everything of a subject from every row; a ``dry_run`` rolls back, so that its result is exact.

    A subject erased before is erased again: its rows since then are deleted, too, and the plan is recomputed.
    A running training run on such a conversation is stopped: its fencing token is stale from now on. Raises
    ``InputError`` when there is no such subject, ``DatabaseError`` if a lock cannot be acquired.
    """
    attempt = 1
    while True:
        try:
            with engine.connect() as conn, conn.begin() as transaction:
                conn.execute(sa.text(f"set local lock_timeout = '{_LOCK_TIMEOUT}'"))
                acquire_lock(conn, Lock.ERASURE)
                result = _Erasure(conn, subject, actor).run()
                if dry_run:
                    transaction.rollback()
                return result
        except sa.exc.DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state == _LOCK_NOT_AVAILABLE:
                raise DatabaseError(
                    f"other work locked rows of this {subject.kind} for {_LOCK_TIMEOUT}, nothing was erased",
                    hint="Try again when it has ended.",
                ) from None
            if state != _DEADLOCK or attempt == _MAX_ATTEMPTS:
                raise
            attempt += 1


_RECORDED = sa.text(
    "select subject, subject_sha256, erased_at, hashed_names from iccm.erasures order by erased_at, id"
)
_SESSIONS = sa.text(
    """
    select distinct r.session_id from (
        select session_id from iccm.conversations union select session_id from iccm.requests
    ) r where 'erased:' || encode(sha256(convert_to(r.session_id, 'UTF8')), 'hex') = any(:hashes)
    """
)
_USERS = sa.text(
    """
    select distinct r.user_id from (
        select user_id from iccm.conversations union select user_id from iccm.requests
    ) r where encode(sha256(convert_to('user:' || r.user_id, 'UTF8')), 'hex') = any(:hashes)
    """
)


def load_recorded_erasures(conn: sa.Connection) -> list[RecordedErasure]:
    """Return every erasure of this database, oldest first."""
    return [
        RecordedErasure(
            row.subject,
            row.subject_sha256,
            row.erased_at.astimezone(UTC),
            tuple(row.hashed_names.get("sessions", ())),
            tuple(row.hashed_names.get("users", ())),
        )
        for row in conn.execute(_RECORDED)
    ]


def erase_again(conn: sa.Connection, recorded: RecordedErasure, actor: str) -> int:
    """Erase what a recorded erasure named from a database that may still hold it, and record it.

    Returns the number of conversations.
    """
    sessions = conn.execute(_SESSIONS, {"hashes": list(recorded.sessions)}).scalars().all()
    users = conn.execute(_USERS, {"hashes": list(recorded.users)}).scalars().all()
    subject = RecordedSubject(
        recorded.subject, recorded.subject_sha256, recorded, tuple(users), tuple(sessions)
    )
    erasure = _Erasure(conn, subject, actor)
    if sessions or users:
        return erasure.run().newly_erased
    erasure.insert_record([], recorded.sessions)
    return 0


_WHERE = {
    "conversation": "c.id = cast(:value as bigint)",
    "session": "c.session_id in (:value, :erased)",
    # Also where the session has another owner: before sessions had owners, the last user took it over.
    "user": """c.user_id = any(:users) or exists (
        select from iccm.requests r where r.session_id = c.session_id and r.user_id = any(:users)
            and r.status in ('ok', 'fallback'))""",
}


class _Erasure:
    """One erasure, inside its transaction."""

    def __init__(self, conn: sa.Connection, subject: DataSubject, actor: str) -> None:
        self._conn, self._subject, self._actor = conn, subject, actor
        self._counts: Counter[str] = Counter()
        self._number: int | None = None
        self._hashes: set[str] = set()
        self._stopped: tuple[int, ...] = ()

    def run(self) -> ErasureResult:
        """Erase, record and plan; ``InputError`` when the subject is unknown."""
        rows = self._lock_conversations()
        live = [row for row in rows if row.erased_at is None]
        sessions, requests = self._lock_requests(live)
        earlier = self._load_earlier_erasures(rows)
        if not (rows or requests or earlier):
            raise RecordNotFoundError(f"there is no {self._subject}", hint="Names are compared exactly.")
        if earlier:
            self._number = earlier[-1].id
        anything_new = bool(live or requests)
        if anything_new:
            self._erase(live, sessions, requests)
        # Rows erased earlier no longer name the subject: the record of their erasure does.
        ids = sorted({row.id for row in rows}.union(*map(attrgetter("conversations"), earlier)))
        plan = load_replacement_plan(self._conn, ids, self._number)
        if anything_new:
            self._record(plan)
        self._alert(plan)
        return ErasureResult(
            erasure=self._number,
            subject=self._subject,
            conversations=tuple(ids),
            newly_erased=len(live),
            counts=dict(self._counts),
            stopped_runs=self._stopped,
            plan=plan,
            erased_before=earlier[-1].erased_at if earlier else None,
            hashes=tuple(sorted(self._hashes)),
        )

    def _erase(self, live: Sequence[sa.Row[Any]], sessions: list[str], requests: list[str]) -> None:
        """Erase from every table, under the number of a new erasure."""
        ids = [row.id for row in live]
        self.insert_record(ids, list(map(erased_session_key, sessions)))
        self._hashes = self._delete(ids, sessions, requests)
        self._keep_numbers(sessions, requests)
        self._stopped = self._stop_training(ids)

    def insert_record(self, ids: Sequence[int], sessions: Sequence[str]) -> None:
        """Insert the erasure's row, with the hashes of what it erases."""
        users = [hashlib.sha256(f"user:{name}".encode()).hexdigest() for name in self._subject.user_ids]
        names: dict[str, Any] = {"sessions": list(sessions), "users": users}
        values: dict[str, Any] = {}
        if isinstance(self._subject, RecordedSubject):
            recorded = self._subject.recorded
            names = {"sessions": list(recorded.sessions), "users": list(recorded.users)}
            values = {"erased_at": recorded.erased_at}
        insert = t.erasures.insert().values(
            subject=self._subject.kind,
            subject_sha256=self._subject.sha256,
            conversations=list(ids),
            actor=self._actor,
            hashed_names=names,
            **values,
        )
        self._number = self._conn.execute(insert.returning(t.erasures.c.id)).scalar_one()

    def _lock_conversations(self) -> Sequence[sa.Row[Any]]:
        """Return the subject's conversations, erased ones included."""
        return self._rows(
            f"select c.id, c.session_id, c.erased_at from iccm.conversations c"
            f" where {self._subject.condition} order by c.id for update",
            value=self._subject.value,
            users=self._subject.user_ids,
            sessions=self._subject.session_ids,
            erased=erased_session_key(self._subject.value),
        )

    def _load_earlier_erasures(self, rows: Sequence[sa.Row[Any]]) -> Sequence[sa.Row[Any]]:
        """Return the subject's earlier erasures; others of the same conversations come without theirs."""
        return self._rows(
            "select id, erased_at,"
            " case when subject_sha256 = :sha then conversations else '{}' end as conversations"
            " from iccm.erasures"
            " where subject_sha256 = :sha or conversations && cast(:ids as bigint[]) order by id",
            sha=self._subject.sha256,
            ids=[row.id for row in rows],
        )

    def _rows(self, sql: str, **values: Any) -> Sequence[sa.Row[Any]]:
        return self._conn.execute(sa.text(sql), values).all()

    def _change(self, table: str, sql: str, **values: Any) -> Sequence[sa.Row[Any]]:
        """Execute a change that returns a row for each changed row, and count these."""
        rows = self._rows(sql, **values)
        self._counts[table] += len(rows)
        return rows

    def _lock_requests(self, live: Sequence[sa.Row[Any]]) -> tuple[list[str], list[str]]:
        """Return the subject's sessions and requests, without sessions that another user shares."""
        sessions = {row.session_id for row in live}.union(self._subject.session_ids)
        rows = self._rows(
            """
            select r.request_id, r.session_id, exists (
                select from iccm.conversations c
                where c.session_id = r.session_id and c.user_id <> r.user_id
            ) as shared
            from iccm.requests r
            where r.session_id = any(:sessions) or r.user_id = any(:users)
            for update
            """,
            sessions=sorted(sessions),
            users=self._subject.user_ids,
        )
        sessions.update(row.session_id for row in rows if row.session_id and not row.shared)
        return sorted(sessions), sorted(row.request_id for row in rows)

    def _delete(self, ids: list[int], sessions: list[str], requests: list[str]) -> set[str]:
        """Delete every row that holds or is made from the texts; return the texts' hashes."""
        subject = {"ids": ids, "sessions": sessions, "requests": requests}
        match = "(session_id = any(:sessions) or conversation_id = any(:ids) or request_id = any(:requests))"
        self._change(
            "reconstructions",
            f"""
            delete from iccm.reconstructions
            where requirement_id in (select id from iccm.requirements where {match}) returning 1
            """,
            **subject,
        )
        texts = self._change(
            "requirements",
            f"delete from iccm.requirements where {match} returning text, source_sha256",
            **subject,
        )
        self._delete_suites({row.source_sha256 for row in texts if row.source_sha256 is not None})
        self._change(
            "feedback",
            """
            delete from iccm.feedback
            where session_id = any(:sessions) or request_id = any(:requests) returning 1
            """,
            **subject,
        )
        sampled = self._change(
            "sampled_answers",
            """
            update iccm.sampled_answers set text = null, rejection = null
            where conversation_id = any(:ids) and text is not null returning content_sha256
            """,
            ids=ids,
        )
        hashes = {content_sha256(row.text) for row in texts} | self._delete_from_pool(ids)
        hashes |= {row.content_sha256 for row in sampled}
        self._change(
            "canary_results",
            """
            delete from iccm.canary_results
            where set = 'production_holdout' and item = any(:items) returning 1
            """,
            items=[f"conversation:{id}" for id in ids],
        )
        self._counts["embeddings"] += delete_embeddings(self._conn, hashes)
        return hashes

    def _delete_suites(self, sources: Collection[str]) -> None:
        """Delete the measured suites of these sources, except those that remaining requirements have."""
        self._change(
            "test_suites",
            """
            delete from iccm.test_suites s
            where s.source_sha256 = any(:sources) and not exists (
                select from iccm.requirements r where r.source_sha256 = s.source_sha256
                    and (s.origin = 'recorded' or r.test_suite = s.suite)
            ) returning 1
            """,
            sources=sorted(sources),
        )

    def _delete_from_pool(self, ids: list[int]) -> set[str]:
        """Delete from pool and filter as the filter itself does: rejected, reason `erased`."""
        pooled = self._change(
            "phase4_training_data",
            """
            delete from iccm.phase4_training_data where conversation_id = any(:ids)
            returning content_sha256
            """,
            ids=ids,
        )
        filtered = self._change(
            "filtered_conversations",
            """
            delete from iccm.filtered_conversations where conversation_id = any(:ids)
            returning content_sha256, day
            """,
            ids=ids,
        )
        for day, count in Counter(row.day for row in filtered).items():
            self._rows(
                """
                update iccm.filtered_days set kept = kept - :n, rejected = rejected + :n
                where day = :day returning 1
                """,
                day=day,
                n=count,
            )
        self._change(
            "phase4_rejections",
            "delete from iccm.phase4_rejections where conversation_id = any(:ids) returning 1",
            ids=ids,
        )
        self._rows(
            """
            insert into iccm.phase4_rejections (conversation_id, stage, day, reason)
            select c.id, 'policy', d.day, 'erased' from iccm.conversations c
            join iccm.filtered_days d on d.day = (c."timestamp" at time zone 'UTC')::date
            where c.id = any(:ids) returning 1
            """,
            ids=ids,
        )
        return {row.content_sha256 for row in (*pooled, *filtered)}

    def _keep_numbers(self, sessions: list[str], requests: list[str]) -> None:
        """Keep the rows with numbers, without content and under hashed names."""
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
                token_name = null, content = '[]', metadata = '{{}}', erased_at = iccm.now(),
                updated_at = iccm.now()
            where session_id = any(:sessions) and erased_at is null returning 1
            """,
            sessions=sessions,
        )

    def _stop_training(self, ids: list[int]) -> tuple[int, ...]:
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
            error=f"stopped by erasure {self._number}: conversations it was training on are erased",
        )
        return tuple(row.id for row in rows)

    def _record(self, plan: ReplacementPlan) -> None:
        """Record what was erased, and the versions trained on it."""
        versions = [affected.version for affected in plan.versions]
        update = t.erasures.update().where(t.erasures.c.id == self._number)
        self._conn.execute(update.values(counts=dict(self._counts), versions=versions))

    def _alert(self, plan: ReplacementPlan) -> None:
        """Alert once per erasure about each version in service."""
        for step in plan.replacements:
            replace = f" Replace it: {step.retrain}" if step.retrain else ""
            raise_alert(
                self._conn,
                f"erased_data:{step.version}:{self._number}",
                "warning",
                "Production model trained on erased data",
                f"{step.version} was trained on conversations of erasure {self._number}; "
                f"{step.reason}.{replace}",
            )


def delete_embeddings(conn: sa.Connection, hashes: Collection[str]) -> int:
    """Delete the embeddings of these texts, except those that another conversation's example has, too."""
    result = conn.execute(
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
    )
    return result.rowcount
