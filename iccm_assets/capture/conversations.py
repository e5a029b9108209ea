"""Store conversations: one row per session, with its requirements texts and feedback.

Everything that arrives is stored; a later filter decides, with a reason, whether it is usable. (C1, C2, M3)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, text

from iccm_assets.capture.extraction import Exchange
from iccm_assets.capture.prepared_conversations import (
    ERASED_PREFIX,
    MAX_ID_LENGTH,
    Conversation,
    ModelResponse,
    PreparedConversation,
    PreparedResponse,
    prepare_conversation,
    sha256_of_source,
    validate_user_id,
)
from iccm_assets.capture.redaction.redact import count_placeholders
from iccm_assets.capture.session_ownership import SessionOwner, may_write, merge_owner
from iccm_assets.db.database import ColumnValues
from iccm_assets.errors import InputError, OperationNotAllowedError, SessionOwnershipError
from iccm_assets.settings import Settings, get_settings

__all__ = [
    "ERASED_PREFIX",
    "MAX_ID_LENGTH",
    "Conversation",
    "ModelResponse",
    "StoredConversation",
    "erased_session_key",
    "preview_conversation",
    "sha256_of_source",
    "store_conversation",
    "upsert_conversation",
    "upsert_conversations",
    "validate_user_id",
]


@dataclass(frozen=True)
class StoredConversation:
    """The id of a stored conversation, and the example that it holds."""

    conversation_id: int
    exchange: Exchange


def upsert_conversation(
    conn: Connection, conversation: Conversation, *, settings: Settings | None = None
) -> int:
    """Store a conversation as ``store_conversation`` does, and return its id."""
    return store_conversation(conn, conversation, settings or get_settings()).conversation_id


def upsert_conversations(
    conn: Connection, conversations: Sequence[Conversation], settings: Settings
) -> dict[str, int]:
    """Store conversations of different sessions together, and return their ids by session.

    It takes a few statements, however many there are. Raises what ``store_conversation`` raises for any of
    them; the caller then rolls back to where it was.
    """
    rows = [prepare_conversation(conversation, settings) for conversation in conversations]
    return _store_rows(conn, rows, conversations) if rows else {}


def store_conversation(
    conn: Connection, conversation: Conversation, settings: Settings
) -> StoredConversation:
    """Store a conversation; the caller commits.

    The same session again replaces the row; an identical one changes nothing, not even ``updated_at``. A
    changed text, source or test suite clears the scores that depend on it. Raises ``InputError`` (too
    large, not JSON, a request id of another session), ``SessionOwnershipError`` (the session of another user
    or token) and ``OperationNotAllowedError`` (erased session).
    """
    row = prepare_conversation(conversation, settings)
    ids = _store_rows(conn, [row], [conversation])
    return StoredConversation(ids[conversation.session_id], row.exchange)


def _store_rows(
    conn: Connection, rows: Sequence[PreparedConversation], conversations: Sequence[Conversation]
) -> dict[str, int]:
    ids, opened, changed = _upsert_rows(conn, rows)
    for row in rows:
        row.values["conversation_id"] = ids[row.values["session_id"]]
    _reject_erased(conn, ids)
    changed |= _upsert_accepted(conn, rows)
    for row, conversation in zip(rows, conversations, strict=True):
        session = conversation.session_id
        for response in row.responses:
            if _upsert_response(conn, row, response):
                changed.add(session)
        if _rate(conn, session, None, conversation.rating, row.comment):
            changed.add(session)
    if touched := [ids[session] for session in changed - opened]:
        conn.execute(
            text("update iccm.conversations set updated_at = iccm.now() where id = any(:ids)"),
            {"ids": touched},
        )
    return ids


def preview_conversation(
    conversation: Conversation, settings: Settings
) -> tuple[Exchange, str | None, dict[str, int]]:
    """Return what storing a conversation would extract: its example, its suite's origin and placeholders.

    All come from its sanitized and redacted texts.

    Raises ``InputError`` where ``store_conversation`` does for the conversation alone.
    """
    prepared = prepare_conversation(conversation, settings)
    suite, origin = (prepared.values[name] for name in ("test_suite", "test_suite_origin"))
    return prepared.exchange, origin, count_placeholders(suite)


def erased_session_key(session_id: str) -> str:
    """Return what replaces the session id in the row of an erased conversation. (V2)"""
    return ERASED_PREFIX + hashlib.sha256(session_id.encode("utf-8")).hexdigest()


def _unnest(types: Mapping[str, str]) -> str:
    """Write the relation ``v`` of parameters that are lists, one for each column, with the row's position."""
    columns = ", ".join(f"cast(:{name} as {kind}[])" for name, kind in types.items())
    names = ", ".join(f'"{name}"' for name in types)
    return f"unnest({columns}) with ordinality as v({names}, position)"


def _columns(types: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> dict[str, ColumnValues]:
    values = list(rows)
    return {name: ColumnValues(row[name] for row in values) for name in types}


def _reject_erased(conn: Connection, sessions: Iterable[str]) -> None:
    """Reject erased sessions after their rows were written: a concurrent erasure has committed by then."""
    keys = {erased_session_key(session): session for session in sessions}
    erased = text("select session_id from iccm.conversations where session_id = any(:keys) limit 1")
    if (key := conn.execute(erased, {"keys": list(keys)}).scalar_one_or_none()) is not None:
        raise _erased(keys[key])


def _erased(session: str) -> OperationNotAllowedError:
    return OperationNotAllowedError(f"session {session} was erased and is not recorded again")


_CONVERSATION = {
    "session_id": "text",
    "user_id": "text",
    "token_name": "text",
    "timestamp": "timestamptz",
    "content": "text",
    "metadata": "text",
    "origin": "text",
}
_INSERT_CONVERSATIONS = text(
    f"""
    insert into iccm.conversations (session_id, user_id, token_name, "timestamp", content, metadata, origin)
    select session_id, user_id, token_name, coalesce("timestamp", iccm.now()), content::jsonb,
        metadata::jsonb, origin
    from {_unnest(_CONVERSATION)}
    on conflict (session_id) do nothing returning session_id, id
    """
)
_LOCK_CONVERSATIONS = text(
    """
    select session_id, id, user_id, token_name, erased_at from iccm.conversations
    where session_id = any(:sessions) order by id for update
    """
)
_STORED_CONVERSATION = {**_CONVERSATION, "id": "bigint"}
_NEW_VALUES = """(v.user_id, v.token_name, coalesce(v."timestamp", c."timestamp"), v.content::jsonb,
    v.metadata::jsonb, v.origin)"""
_UPDATE_CONVERSATIONS = text(
    f"""
    update iccm.conversations c
    set (user_id, token_name, "timestamp", content, metadata, origin) = {_NEW_VALUES}
    from {_unnest(_STORED_CONVERSATION)}
    where c.id = v.id
        and (c.user_id, c.token_name, c."timestamp", c.content, c.metadata, c.origin)
            is distinct from {_NEW_VALUES}
    returning c.session_id
    """
)


def _upsert_rows(
    conn: Connection, rows: Sequence[PreparedConversation]
) -> tuple[dict[str, int], set[str], set[str]]:
    """Return the ids by session, the new sessions, and those that are new or changed.

    Of two writers of a session at once, the first opens it.
    """
    values = sorted((row.values for row in rows), key=lambda row: row["session_id"])
    inserted = conn.execute(_INSERT_CONVERSATIONS, _columns(_CONVERSATION, values))
    ids = {row.session_id: int(row.id) for row in inserted}
    opened, changed = set(ids), set(ids)
    if known := [row for row in values if row["session_id"] not in opened]:
        merged = _merge_owners(conn, known)
        ids |= {row["session_id"]: row["id"] for row in merged}
        updated = conn.execute(_UPDATE_CONVERSATIONS, _columns(_STORED_CONVERSATION, merged))
        changed |= set(updated.scalars())
    return ids, opened, changed


def _merge_owners(conn: Connection, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lock the stored rows of sessions, and return the new ones with their ids and owners."""
    sessions = [row["session_id"] for row in rows]
    stored = {row.session_id: row for row in conn.execute(_LOCK_CONVERSATIONS, {"sessions": sessions})}
    merged = []
    for row in rows:
        before = stored.get(row["session_id"])
        if before is None or before.erased_at is not None:  # an erasure renames the session
            raise _erased(row["session_id"])
        owner = SessionOwner(before.user_id, before.token_name)
        writer = SessionOwner(row["user_id"], row["token_name"])
        if not may_write(owner, writer):
            raise SessionOwnershipError
        merged.append({**row, **asdict(merge_owner(owner, writer)), "id": int(before.id)})
    return merged


_TEXT = {
    "session_id": "text",
    "conversation_id": "bigint",
    "kind": "text",
    "text": "text",
    "request_id": "text",
    "model_version": "text",
    "arm": "text",
    "source_sha256": "text",
    "test_suite": "text",
    "test_suite_origin": "text",
    "created_at": "timestamptz",
}
_INSERT_TEXTS = text(
    f"""
    insert into iccm.requirements (session_id, conversation_id, kind, text, request_id, model_version, arm,
        source_sha256, test_suite, test_suite_origin, created_at)
    select session_id, conversation_id, kind, text, request_id, model_version, arm, source_sha256,
        test_suite::jsonb, test_suite_origin, coalesce(created_at, iccm.now())
    from {_unnest(_TEXT)}
    """
)
# A suite that was collected for, or recorded from, the same source stays where no other came. Scores depend
# on text, source and suite. jsonb treats 1 and 1.0 as equal, the judge does not: suites are compared as text.
_STORED_TEXTS = f"""
    select v.position as number, r.id, r.session_id, keeps_suite,
        case when keeps_suite then r.text is distinct from v.text
            else (r.text, r.source_sha256, r.test_suite::text, r.test_suite_origin) is distinct from
                (v.text, v.source_sha256, v.test_suite::jsonb::text, v.test_suite_origin) end as changed,
        (r.conversation_id, r.model_version, r.arm) is distinct from (v.conversation_id,
            coalesce(v.model_version, r.model_version), coalesce(v.arm, r.arm)) as moved
    from {_unnest(_TEXT)}
    cross join lateral (  -- one look-up in the index for each row, whatever the size of the table
        select * from iccm.requirements r where {{condition}} limit 1 for update
    ) as r
    cross join lateral (
        select coalesce(v.test_suite is null and r.test_suite_origin in ('collected', 'recorded')
            and r.source_sha256 = v.source_sha256, false)
    ) as kept(keeps_suite)
"""
_STORED_TEXT = {**_TEXT, "id": "bigint", "keeps_suite": "boolean"}
_MOVE_TEXTS = text(
    f"""
    update iccm.requirements r set conversation_id = v.conversation_id,
        model_version = coalesce(v.model_version, r.model_version), arm = coalesce(v.arm, r.arm)
    from {_unnest(_STORED_TEXT)} where r.id = v.id
    """
)
_REPLACE_TEXTS = text(
    f"""
    update iccm.requirements r set text = v.text, source_sha256 = v.source_sha256,
        test_suite = case when v.keeps_suite then r.test_suite else v.test_suite::jsonb end,
        test_suite_origin = case when v.keeps_suite then r.test_suite_origin else v.test_suite_origin end,
        test_pass_rate = null, implementation_variance = null, api_compatibility = null, scored_at = null,
        judge_version = null, orchestra = null, evidence = null
    from {_unnest(_STORED_TEXT)} where r.id = v.id
    """
)


def _upsert_accepted(conn: Connection, rows: Sequence[PreparedConversation]) -> set[str]:
    """Store the accepted texts: at most one row per session. Return the sessions of which it changed."""
    unset = dict.fromkeys(("request_id", "model_version", "arm", "created_at"))
    texts = [
        {**row.values, **unset, "kind": "accepted", "text": row.exchange.requirements}
        for row in rows
        if row.exchange.requirements is not None
    ]
    changed = _upsert_texts(conn, texts, "r.session_id = v.session_id and r.kind = 'accepted'")
    without = {row.values["session_id"] for row in rows} - {row["session_id"] for row in texts}
    if without:
        delete = text(
            "delete from iccm.requirements where session_id = any(:sessions) and kind = 'accepted'"
            " returning session_id"
        )
        changed |= set(conn.execute(delete, {"sessions": list(without)}).scalars())
    return changed


def _upsert_response(conn: Connection, row: PreparedConversation, item: PreparedResponse) -> bool:
    """Store a response of the model: one row per request. Return whether it changed.

    Its source is that of its own exchange, and it has a suite only if this is the accepted one.
    """
    response, suite = item.response, item.test_suite
    origin = None if suite is None else row.values["test_suite_origin"]
    own = {"source_sha256": item.source_sha256, "test_suite": suite, "test_suite_origin": origin}
    values = {**row.values, **asdict(response), **own, "kind": "model"}
    changed = bool(_upsert_texts(conn, [values], "r.request_id = v.request_id"))
    session_id = row.values["session_id"]
    return changed | _rate(conn, session_id, response.request_id, response.rating, response.comment)


def _upsert_texts(conn: Connection, rows: Sequence[dict[str, Any]], condition: str) -> set[str]:
    """Insert the requirements rows that ``condition`` identifies, or update them; return changed sessions."""
    if not rows:
        return set()
    query = text(_STORED_TEXTS.format(condition=condition))
    stored = {row.number - 1: row for row in conn.execute(query, _columns(_TEXT, rows))}
    new = [row for index, row in enumerate(rows) if index not in stored]
    if new:
        conn.execute(_INSERT_TEXTS, _columns(_TEXT, new))
    moved, replaced = [], []
    for index, before in stored.items():
        row = {**rows[index], "id": before.id, "keeps_suite": before.keeps_suite}
        if before.session_id != row["session_id"]:
            raise InputError(f"request {row['request_id']} belongs to another session")
        if before.moved:
            moved.append(row)
        if before.changed:
            replaced.append(row)
    if moved:
        conn.execute(_MOVE_TEXTS, _columns(_STORED_TEXT, moved))
    if replaced:
        # The old scores and reconstructions do not apply to a changed text, source or suite.
        delete = text("delete from iccm.reconstructions where requirement_id = any(:ids)")
        conn.execute(delete, {"ids": [row["id"] for row in replaced]})
        conn.execute(_REPLACE_TEXTS, _columns(_STORED_TEXT, replaced))
    return {row["session_id"] for row in (*new, *moved, *replaced)}


def _rate(
    conn: Connection, session_id: str, request_id: str | None, rating: int | None, comment: str | None
) -> bool:
    """Replace the rating of a session, or of one of its responses, by the latest."""
    if rating is None:
        return False
    key = {"session_id": session_id, "request_id": request_id}
    condition = "session_id = :session_id and request_id is not distinct from cast(:request_id as text)"
    rows = conn.execute(text(f"select rating, comment from iccm.feedback where {condition}"), key).all()
    if [tuple(row) for row in rows] == [(rating, comment)]:
        return False
    conn.execute(text(f"delete from iccm.feedback where {condition}"), key)
    conn.execute(
        text(
            """
            insert into iccm.feedback (session_id, request_id, rating, comment)
            values (:session_id, :request_id, :rating, :comment)
            """
        ),
        {**key, "rating": rating, "comment": comment},
    )
    return True
