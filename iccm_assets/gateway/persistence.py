"""Store spooled requests, responses, conversations and feedback in PostgreSQL, each exactly once (G5, C1).

Each batch is one transaction. Storing a batch again changes nothing: a stored request is left unchanged, and
only new requests extend their conversation. This is also where the owner of a session is decided last: what
another user or token wrote, because its gateway could not know better, is refused.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from iccm_assets.capture.conversations import Conversation, erased_session_key, upsert_conversations
from iccm_assets.capture.extraction import find_sources
from iccm_assets.capture.session_ownership import SessionOwner, may_write, merge_owner
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.errors import IccmError, SessionOwnershipError, first_line
from iccm_assets.settings import CaptureSettings, Settings

log = logging.getLogger(__name__)

Record = Mapping[str, Any]

_COLUMNS = (
    "request_id", "session_id", "user_id", "rollout_id", "assigned_arm", "arm", "model_version", "status",
    "error", "latency_ms", "output_tokens", "created_at", "finish_reason",
)  # fmt: skip
_RESPONSE_COLUMNS = ("text", "source_sha256", "test_suite")
_CREATE_DELIVERY = """
    create temporary table if not exists delivery (
        request_id text, session_id text, user_id text, rollout_id bigint, assigned_arm text, arm text,
        model_version text, status text, error text, latency_ms double precision, output_tokens integer,
        created_at timestamptz, finish_reason text, text text, source_sha256 text, test_suite jsonb,
        conversation_id bigint
    ) on commit delete rows
"""
# A request that failed can be retried under its id; a successful response is never overwritten.
_REQUESTS = f"""
    insert into iccm.requests as r ({", ".join(_COLUMNS)})
    select {", ".join(_COLUMNS)} from delivery
    on conflict (request_id) do update set
        {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])}
    where r.status in ('error', 'timeout', 'rejected') and excluded.status in ('ok', 'fallback')
        and r.session_id is not distinct from excluded.session_id
    returning request_id
"""
_RESPONSES = """
    insert into iccm.requirements (session_id, conversation_id, kind, text, request_id, model_version, arm,
        source_sha256, test_suite, test_suite_origin, created_at)
    select session_id, (:conversations ->> session_id)::bigint, 'model', text, request_id, model_version, arm,
        source_sha256, test_suite, case when test_suite is not null then 'attached' end, created_at
    from delivery where text is not null and request_id = any(:new_ids)
    on conflict (request_id) do nothing
"""
# The latest rating of a session, or of one of its responses, counts; an older one that is late is ignored.
_FEEDBACK = """
    with present as (
        select id, created_at >= :created_at as newer from iccm.feedback
        where session_id = :session_id and request_id is not distinct from cast(:request_id as text)
    ), deleted as (
        delete from iccm.feedback where id in (select id from present where not newer)
    )
    insert into iccm.feedback (session_id, request_id, rating, comment, created_at)
    select :session_id, :request_id, :rating, :comment, :created_at
    where not exists (select from present where newer)
"""
# Ratings affect the filtering of the day, so the conversation counts as changed (P6).
_TOUCH = "update iccm.conversations set updated_at = iccm.now() where session_id = :session_id"
_CONVERSATIONS = """
    select c.session_id, c.id, c.content, c.metadata, c.origin, r.test_suite
    from iccm.conversations c
    left join iccm.requirements r on r.session_id = c.session_id and r.kind = 'accepted'
    where c.session_id = any(:sessions) order by c.id for update of c
"""

_KEEP_SOURCES = """
    update iccm.conversations set metadata = jsonb_set(metadata, '{request_sources}',
        coalesce(metadata -> 'request_sources', '[]') || cast(:sources as jsonb))
    where id = :id
"""


@dataclass(frozen=True)
class DeliveryResult:
    """What became of a batch: the number of records stored, and those of another owner's session."""

    stored: int
    refused: Sequence[Record]


def store_records(conn: Connection, records: Sequence[Record], settings: Settings) -> DeliveryResult:
    """Store the records in the caller's transaction; those of erased sessions are dropped."""
    sessions = {record["row"]["session_id"] for record in records}
    acquire_lock(conn, Lock.SESSION, *sessions)
    erased = _find_erased(conn, sessions)
    by_type: dict[str, list[Record]] = {"request": [], "feedback": []}
    for record in records:
        if record["row"]["session_id"] not in erased:
            by_type[record["type"]].append(record)
    owners = load_owners(conn, sessions)
    requests, refused = _split_by_owner(_select_one_per_request(by_type["request"]), owners)
    if requests or refused:
        new_ids = _store_requests(conn, [*requests, *map(_without_session, refused)])
        _store_responses(conn, requests, new_ids, owners, settings)
        refused = [record for record in refused if "response" in record]
    ratings, refused_ratings = _split_by_owner(by_type["feedback"], owners)
    for record in ratings:
        conn.execute(text(_FEEDBACK), dict(record["row"]))
        conn.execute(text(_TOUCH), {"session_id": record["row"]["session_id"]})
    refused += refused_ratings
    return DeliveryResult(sum(map(len, by_type.values())) - len(refused), refused)


def load_owners(conn: Connection, sessions: Collection[str]) -> dict[str, SessionOwner]:
    """Load the owners of those sessions that are stored."""
    query = "select session_id, user_id, token_name from iccm.conversations where session_id = any(:sessions)"
    rows = conn.execute(text(query), {"sessions": list(sessions)})
    return {row.session_id: SessionOwner(row.user_id, row.token_name) for row in rows}


def _split_by_owner(
    records: Sequence[Record], owners: dict[str, SessionOwner]
) -> tuple[list[Record], list[Record]]:
    """Split records into those of their session's owner and the others, and add the sessions they open."""
    accepted: list[Record] = []
    refused: list[Record] = []
    for record in sorted(records, key=lambda record: record["row"]["created_at"]):
        session, writer = record["row"]["session_id"], get_writer(record)
        owner = owners.get(session)
        if owner is not None and not may_write(owner, writer):
            refused.append(record)
            continue
        accepted.append(record)
        if "response" in record:  # only a response opens a session: nothing else is stored of it
            owners[session] = writer if owner is None else merge_owner(owner, writer)
    return accepted, refused


def get_writer(record: Record) -> SessionOwner:
    """Return who wrote a record; a rating has its user beside the row."""
    return SessionOwner(record["row"].get("user_id") or record.get("user_id"), record.get("token_name"))


def _without_session(record: Record) -> Record:
    """Return the record of a refused request, as it is counted: of no session and without its content."""
    error = record["row"]["error"] or first_line(SessionOwnershipError())
    return {"type": "request", "row": {**record["row"], "session_id": None, "error": error}}


def _select_one_per_request(records: Sequence[Record]) -> list[Record]:
    """Select one record per request: the first, or the first with a response if there is one."""
    by_id: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: "response" not in record):
        by_id.setdefault(record["row"]["request_id"], record)
    return list(by_id.values())


def _find_erased(conn: Connection, sessions: set[str]) -> set[str]:
    names = {erased_session_key(session): session for session in sessions}
    query = text("select session_id from iccm.conversations where session_id = any(:names)")
    return {names[name] for name in conn.execute(query, {"names": list(names)}).scalars()}


def _store_requests(conn: Connection, records: Sequence[Record]) -> set[str]:
    """Store the requests and return the ids that are new, or that got their first response."""
    conn.execute(text(_CREATE_DELIVERY))
    driver: Any = conn.connection.driver_connection
    columns = ", ".join((*_COLUMNS, *_RESPONSE_COLUMNS))
    with driver.cursor() as cursor, cursor.copy(f"copy delivery ({columns}) from stdin") as copy:
        for record in records:
            response = record.get("response", {})
            tests = response.get("tests")
            suite = None if tests is None else json.dumps(tests, ensure_ascii=False)
            # A record of an older gateway has no finish reason.
            row = [{"finish_reason": None, **record["row"]}[name] for name in _COLUMNS]
            copy.write_row([*row, response.get("text"), response.get("source_sha256"), suite])
    return set(conn.execute(text(_REQUESTS)).scalars())


def _store_responses(
    conn: Connection,
    records: Sequence[Record],
    new_ids: set[str],
    owners: Mapping[str, SessionOwner],
    settings: Settings,
) -> None:
    """Store the responses of the new requests, and extend their conversations."""
    by_session: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "response" in record and record["row"]["request_id"] in new_ids:
            by_session[record["row"]["session_id"]].append(record)
    if not by_session:
        return
    try:
        with conn.begin_nested():
            conversations = _extend_conversations(conn, by_session, owners, settings)
    except IccmError:
        conversations = _extend_one_by_one(conn, by_session, owners, settings)
    conn.execute(
        text(_RESPONSES).bindparams(bindparam("conversations", type_=JSONB)),
        {"conversations": conversations, "new_ids": sorted(new_ids)},
    )


def _keep_sources(conn: Connection, row: Any, records: Sequence[Record]) -> None:
    """Keep the sources of responses that a completed conversation does not show: scores need them."""
    responses = [record["response"] for record in records]
    shown = find_sources(row.content, row.metadata, {response["source_sha256"] for response in responses})
    sources = {
        response["source_sha256"]: response["source"]
        for response in responses
        if response["source_sha256"] not in shown
    }
    if sources:
        conn.execute(
            text(_KEEP_SOURCES).bindparams(bindparam("sources", type_=JSONB)),
            {"id": row.id, "sources": list(sources.values())},
        )


def _read_counts(stored: Any) -> Counter[str]:
    """Read the counts of what was redacted; a client's own metadata may hold anything under that name."""
    counts = stored.items() if isinstance(stored, dict) else ()
    return Counter({name: count for name, count in counts if type(count) is int})


def _extend_one_by_one(
    conn: Connection,
    by_session: Mapping[str, Sequence[Record]],
    owners: Mapping[str, SessionOwner],
    settings: Settings,
) -> dict[str, int]:
    """Extend the conversations that can be: usually one is too large, and stays as it is."""
    ids: dict[str, int] = {}
    for session, records in by_session.items():
        try:
            with conn.begin_nested():
                ids |= _extend_conversations(conn, {session: records}, owners, settings)
        except IccmError as error:
            # The responses and requests of this session are stored without it.
            log.warning("a conversation was not extended: %s", error)
    return ids


def _extend_conversations(
    conn: Connection,
    by_session: Mapping[str, Sequence[Record]],
    owners: Mapping[str, SessionOwner],
    settings: Settings,
) -> dict[str, int]:
    """Append the responses to their sessions' conversations, unless completed; return their ids."""
    stored = conn.execute(text(_CONVERSATIONS), {"sessions": list(by_session)})
    rows = {row.session_id: row for row in stored}
    ids: dict[str, int] = {}
    extended: list[Conversation] = []
    for session, records in by_session.items():
        row = rows.get(session)
        if row is not None and (row.origin != "gateway" or row.metadata.get("completed")):
            _keep_sources(conn, row, records)
            ids[session] = int(row.id)
        else:
            extended.append(_extend(row, session, records, owners[session]))
    # Records were redacted before they were spooled; redacting their conversation again would be wasted.
    capture = CaptureSettings(redact=False, max_conversation_mib=settings.capture.max_conversation_mib)
    return ids | upsert_conversations(conn, extended, settings.model_copy(update={"capture": capture}))


def _extend(row: Any, session: str, records: Sequence[Record], owner: SessionOwner) -> Conversation:
    """Return a session's conversation (``row``, None if there is none yet) with the responses at its end."""
    records = sorted(records, key=lambda record: record["row"]["created_at"])
    latest, stored_metadata = records[-1], {} if row is None else dict(row.metadata)
    source, tests = latest["response"]["source"], latest["response"]["tests"]
    if tests is None and row is not None and stored_metadata.get("source_code") == source:
        tests = row.test_suite
    messages = [] if row is None else list(row.content)
    redacted = _read_counts(stored_metadata.pop("redacted", None))
    for record in records:
        messages.append({"role": "user", "content": record["response"]["source"]})
        messages.append({"role": "assistant", "content": record["response"]["text"]})
        redacted.update(record["response"]["redacted"])
    metadata = {**stored_metadata, **latest["response"]["metadata"]}
    return Conversation(
        session_id=session,
        messages=messages,
        user_id=owner.user_id,
        token_name=owner.token_name,
        timestamp=datetime.fromisoformat(latest["row"]["created_at"]),
        metadata=metadata | ({"redacted": dict(redacted)} if redacted else {}),
        origin="gateway",
        source_code=source,
        test_suite=tests,
    )
