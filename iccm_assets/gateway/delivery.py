"""From the spool into PostgreSQL: requests, answers, conversations and feedback, each exactly once (G5, C1).

One transaction a batch. Delivering a batch again changes nothing: a request that is stored already is left
as it is, and only the ones that are new extend their conversation.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, erased_name, record
from iccm_assets.errors import IccmError
from iccm_assets.settings import Capture, Settings
from iccm_assets.store.locks import Lock, acquire_lock

log = logging.getLogger("iccm.gateway")

Record = Mapping[str, Any]

_COLUMNS = (
    "request_id", "session_id", "user_id", "rollout_id", "assigned_arm", "arm", "model_version", "status",
    "error", "latency_ms", "output_tokens", "created_at",
)  # fmt: skip
_SAID = ("text", "source_sha256", "test_suite")
_TEMPORARY = """
    create temporary table if not exists delivery (
        request_id text, session_id text, user_id text, rollout_id bigint, assigned_arm text, arm text,
        model_version text, status text, error text, latency_ms double precision, output_tokens integer,
        created_at timestamptz, text text, source_sha256 text, test_suite jsonb, conversation_id bigint
    ) on commit delete rows
"""
# A request that failed and was sent again under its id is answered now; an answer stays what it is.
_REQUESTS = f"""
    insert into iccm.requests as r ({", ".join(_COLUMNS)})
    select {", ".join(_COLUMNS)} from delivery
    on conflict (request_id) do update set
        {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])}
    where r.status in ('error', 'timeout', 'rejected') and excluded.status in ('ok', 'fallback')
    returning request_id
"""
_ANSWERS = """
    insert into iccm.requirements (session_id, conversation_id, kind, text, request_id, model_version, arm,
        source_sha256, test_suite, created_at)
    select session_id, (:conversations ->> session_id)::bigint, 'model', text, request_id, model_version, arm,
        source_sha256, test_suite, created_at
    from delivery where text is not null and request_id = any(:fresh)
    on conflict (request_id) do nothing
"""
# The latest rating of a session, or of one of its answers, counts; an older one that comes late does not.
_FEEDBACK = """
    with this as (
        select id, created_at >= :created_at as newer from iccm.feedback
        where session_id = :session_id and request_id is not distinct from cast(:request_id as text)
    ), gone as (
        delete from iccm.feedback where id in (select id from this where not newer)
    )
    insert into iccm.feedback (session_id, request_id, rating, comment, created_at)
    select :session_id, :request_id, :rating, :comment, :created_at
    where not exists (select from this where newer)
"""


def lock_sessions(conn: sa.Connection, sessions: Sequence[str]) -> None:
    """Alone with these sessions' conversations until the transaction ends; always in the same order."""
    acquire_lock(conn, Lock.SESSION, *set(sessions))


def deliver(conn: sa.Connection, records: Sequence[Record], settings: Settings) -> int:
    """Store the records in the caller's transaction; returns how many were of erased sessions and dropped."""
    sessions = sorted({one["row"]["session_id"] for one in records})
    lock_sessions(conn, sessions)
    erased = _erased(conn, sessions)
    kept = [one for one in records if one["row"]["session_id"] not in erased]
    requests = _one_each([one for one in kept if one["type"] == "request"])
    if requests:
        fresh = _store_requests(conn, requests)
        answered = [one for one in requests if "said" in one and one["row"]["request_id"] in fresh]
        if answered:
            _store_answers(conn, answered, sorted(fresh), settings)
    for one in kept:
        if one["type"] == "feedback":
            conn.execute(sa.text(_FEEDBACK), dict(one["row"]))
            _touch(conn, one["row"]["session_id"])
    return len(records) - len(kept)


def _one_each(records: Sequence[Record]) -> list[Record]:
    """One record a request: its answer, if there is one among them."""
    found: dict[str, Record] = {}
    for one in records:
        known = found.get(one["row"]["request_id"])
        if known is None or ("said" in one and "said" not in known):
            found[one["row"]["request_id"]] = one
    return list(found.values())


def _erased(conn: sa.Connection, sessions: Sequence[str]) -> set[str]:
    names = {erased_name(session): session for session in sessions}
    rows = conn.execute(
        sa.text("select session_id from iccm.conversations where session_id = any(:names)"),
        {"names": list(names)},
    )
    return {names[row.session_id] for row in rows}


def _store_requests(conn: sa.Connection, records: Sequence[Record]) -> set[str]:
    """The ids that are new, or answered for the first time."""
    conn.execute(sa.text(_TEMPORARY))
    driver: Any = conn.connection.driver_connection
    columns = (*_COLUMNS, *_SAID)
    with driver.cursor() as cursor, cursor.copy(f"copy delivery ({', '.join(columns)}) from stdin") as copy:
        for one in records:
            said = one.get("said", {})
            tests = said.get("tests")
            suite = None if tests is None else json.dumps(tests, ensure_ascii=False)
            row = [one["row"][name] for name in _COLUMNS]
            copy.write_row([*row, said.get("text"), said.get("source_sha256"), suite])
    return set(conn.execute(sa.text(_REQUESTS)).scalars())


def _store_answers(
    conn: sa.Connection, answered: Sequence[Record], fresh: Sequence[str], settings: Settings
) -> None:
    by_session: dict[str, list[Record]] = defaultdict(list)
    for one in answered:
        by_session[one["row"]["session_id"]].append(one)
    conversations: dict[str, int] = {}
    for session, records in by_session.items():
        try:
            with conn.begin_nested():
                conversations[session] = _extend(conn, session, records, settings)
        except IccmError as error:
            # Too long a conversation, mostly: its answers and requests are stored all the same.
            log.warning("a conversation is not extended: %s", error)
    conn.execute(
        sa.text(_ANSWERS).bindparams(sa.bindparam("conversations", type_=sa.dialects.postgresql.JSONB)),
        {"conversations": conversations, "fresh": fresh},
    )


def _extend(conn: sa.Connection, session: str, records: Sequence[Record], settings: Settings) -> int:
    """The session's conversation with these answers behind it; one that was completed stays as it was."""
    row = conn.execute(
        sa.text(
            """
            select c.id, c.content, c.metadata, c.user_id, c.origin, r.test_suite
            from iccm.conversations c
            left join iccm.requirements r on r.session_id = c.session_id and r.kind = 'accepted'
            where c.session_id = :session for update of c
            """
        ),
        {"session": session},
    ).one_or_none()
    if row is not None and (row.origin != "gateway" or row.metadata.get("completed")):
        return int(row.id)
    records = sorted(records, key=lambda one: one["row"]["created_at"])
    last, before = records[-1], {} if row is None else dict(row.metadata)
    source, tests = last["said"]["source"], last["said"]["tests"]
    if tests is None and row is not None and before.get("source_code") == source:
        tests = row.test_suite
    redacted = Counter(before.pop("redacted", {}))
    for one in records:
        redacted.update(one["said"]["redacted"])
    metadata = {**before, **last["said"]["metadata"], **({"redacted": dict(redacted)} if redacted else {})}
    conversation = Conversation(
        session_id=session,
        messages=[*([] if row is None else row.content), *_messages(records)],
        user_id=next((user for one in reversed(records) if (user := one["row"]["user_id"])), None),
        timestamp=datetime.fromisoformat(last["row"]["created_at"]),
        metadata=metadata,
        origin="gateway",
        source_code=source,
        test_suite=tests,
    )
    return record(conn, conversation, settings=_redacted_already(settings))


def _messages(records: Sequence[Record]) -> list[dict[str, str]]:
    return [
        message
        for one in records
        for message in (
            {"role": "user", "content": one["said"]["source"]},
            {"role": "assistant", "content": one["said"]["text"]},
        )
    ]


def _redacted_already(settings: Settings) -> Settings:
    """Records are redacted before they are spooled, and a conversation of them need not be again."""
    capture = Capture(redact=False, max_conversation_mib=settings.capture.max_conversation_mib)
    return settings.model_copy(update={"capture": capture})


def _touch(conn: sa.Connection, session: str) -> None:
    """Feedback decides over the day's examples (F1), so the conversation counts as changed (P6)."""
    conn.execute(
        sa.text("update iccm.conversations set updated_at = iccm.now() where session_id = :session"),
        {"session": session},
    )
