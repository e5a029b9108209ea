"""Store conversations: one row per session, with its requirements texts and feedback.

Everything that arrives is stored; a later filter decides, with a reason, whether it is usable. (C1, C2, M3)
"""

from __future__ import annotations

import hashlib
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
from iccm_assets.capture.session_ownership import SessionOwner, may_write, merge_owner
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
    conversation_id, changed = _upsert_conversation(conn, row)
    row.values["conversation_id"] = conversation_id
    _reject_erased(conn, conversation.session_id)
    changed |= _upsert_accepted(conn, row)
    for response in row.responses:
        changed |= _upsert_response(conn, row, response)
    changed |= _rate(conn, conversation.session_id, None, conversation.rating, row.comment)
    if changed:
        conn.execute(
            text("update iccm.conversations set updated_at = iccm.now() where id = :id"),
            {"id": conversation_id},
        )
    return StoredConversation(conversation_id, row.exchange)


def preview_conversation(conversation: Conversation, settings: Settings) -> tuple[Exchange, str | None]:
    """Return what storing a conversation would extract: its example, and the origin of its suite if any.

    Both come from its sanitized and redacted texts.

    Raises ``InputError`` where ``store_conversation`` does for the conversation alone.
    """
    prepared = prepare_conversation(conversation, settings)
    return prepared.exchange, prepared.values["test_suite_origin"]


def erased_session_key(session_id: str) -> str:
    """Return what replaces the session id in the row of an erased conversation. (V2)"""
    return ERASED_PREFIX + hashlib.sha256(session_id.encode("utf-8")).hexdigest()


def _reject_erased(conn: Connection, session_id: str) -> None:
    """Reject an erased session after its row was written: a concurrent erasure has committed by then."""
    erased = text("select exists (select from iccm.conversations where session_id = :name)")
    if conn.execute(erased, {"name": erased_session_key(session_id)}).scalar_one():
        raise OperationNotAllowedError(f"session {session_id} was erased and is not recorded again")


_INSERT_CONVERSATION = text(
    """
    insert into iccm.conversations (session_id, user_id, token_name, "timestamp", content, metadata, origin)
    values (:session_id, :user_id, :token_name, coalesce(cast(:timestamp as timestamptz), iccm.now()),
            cast(:content as jsonb), cast(:metadata as jsonb), :origin)
    on conflict (session_id) do nothing returning id
    """
)
_LOCK_CONVERSATION = text(
    """
    select id, user_id, token_name, erased_at from iccm.conversations
    where session_id = :session_id for update
    """
)
_NEW_VALUES = """(:user_id, :token_name, coalesce(cast(:timestamp as timestamptz), "timestamp"),
    cast(:content as jsonb), cast(:metadata as jsonb), :origin)"""
_UPDATE_CONVERSATION = text(
    f"""
    update iccm.conversations
    set (user_id, token_name, "timestamp", content, metadata, origin) = {_NEW_VALUES}
    where id = :id
        and (user_id, token_name, "timestamp", content, metadata, origin) is distinct from {_NEW_VALUES}
    """
)


def _upsert_conversation(conn: Connection, row: PreparedConversation) -> tuple[int, bool]:
    """Return the id, and whether the row is new or changed. Of two writers at once, the first opens it."""
    inserted = conn.execute(_INSERT_CONVERSATION, row.values).scalar_one_or_none()
    if inserted is not None:
        return int(inserted), True
    stored = conn.execute(_LOCK_CONVERSATION, row.values).one_or_none()
    if stored is None or stored.erased_at is not None:  # an erasure renames the session
        raise OperationNotAllowedError(
            f"session {row.values['session_id']} was erased and is not recorded again"
        )
    owner = SessionOwner(stored.user_id, stored.token_name)
    writer = SessionOwner(row.values["user_id"], row.values["token_name"])
    if not may_write(owner, writer):
        raise SessionOwnershipError
    values = {**row.values, **asdict(merge_owner(owner, writer)), "id": stored.id}
    return int(stored.id), conn.execute(_UPDATE_CONVERSATION, values).rowcount > 0


# Scores depend on the text, the source and the suite. jsonb treats 1 and 1.0 as equal, the judge does not:
# suites are compared as text.
_CHANGED = """
    (r.text, r.source_sha256, r.test_suite::text, r.test_suite_origin) is distinct from (:text,
        cast(:source_sha256 as text), cast(:test_suite as jsonb)::text, cast(:test_suite_origin as text))
"""
_INSERT_TEXT = text(
    """
    insert into iccm.requirements (session_id, conversation_id, kind, text, request_id, model_version, arm,
        source_sha256, test_suite, test_suite_origin, created_at)
    values (:session_id, :conversation_id, :kind, :text, :request_id, :model_version, :arm,
        :source_sha256, cast(:test_suite as jsonb), :test_suite_origin,
        coalesce(cast(:created_at as timestamptz), iccm.now()))
    """
)
_MOVE_TEXT = text(
    """
    update iccm.requirements set conversation_id = :conversation_id,
        model_version = coalesce(:model_version, model_version), arm = coalesce(:arm, arm)
    where id = :id
    """
)
_FOUND_BEFORE = """
    select r.test_suite::text, r.test_suite_origin from iccm.requirements r
    where r.test_suite_origin in ('collected', 'recorded') and r.source_sha256 = :source_sha256
"""
_UNSCORED = """
    test_pass_rate = null, implementation_variance = null, api_compatibility = null, scored_at = null,
    judge_version = null, orchestra = null, evidence = null
"""


def _upsert_accepted(conn: Connection, row: PreparedConversation) -> bool:
    """Store the accepted text: at most one row per session. Return whether it changed."""
    if row.exchange.requirements is None:
        deleted = conn.execute(
            text("delete from iccm.requirements where session_id = :session_id and kind = 'accepted'"),
            row.values,
        )
        return deleted.rowcount > 0
    unset = dict.fromkeys(("request_id", "model_version", "arm", "created_at"))
    values = {**row.values, **unset, "kind": "accepted", "text": row.exchange.requirements}
    return _upsert_text(conn, values, "r.session_id = :session_id and r.kind = 'accepted'")


def _upsert_response(conn: Connection, row: PreparedConversation, item: PreparedResponse) -> bool:
    """Store a response of the model: one row per request. Return whether it changed.

    Its source is that of its own exchange, and it has a suite only if this is the accepted one.
    """
    response, suite = item.response, item.test_suite
    origin = None if suite is None else row.values["test_suite_origin"]
    own = {"source_sha256": item.source_sha256, "test_suite": suite, "test_suite_origin": origin}
    values = {**row.values, **asdict(response), **own, "kind": "model"}
    changed = _upsert_text(conn, values, "r.request_id = :request_id")
    session_id = row.values["session_id"]
    return changed | _rate(conn, session_id, response.request_id, response.rating, response.comment)


def _upsert_text(conn: Connection, values: dict[str, Any], condition: str) -> bool:
    """Insert the requirements row that ``condition`` identifies, or update it. Return whether it changed.

    A suite that was collected for, or recorded from, the same source stays where no other came.
    """
    if values["test_suite"] is None:
        before = conn.execute(text(f"{_FOUND_BEFORE} and {condition}"), values).one_or_none()
        if before is not None:
            values = {**values, "test_suite": before[0], "test_suite_origin": before[1]}
    stored = conn.execute(
        text(
            f"""
            select r.id, r.session_id, {_CHANGED} as changed,
                (r.conversation_id, r.model_version, r.arm) is distinct from
                (:conversation_id, coalesce(:model_version, r.model_version), coalesce(:arm, r.arm)) as moved
            from iccm.requirements r where {condition} for update
            """
        ),
        values,
    ).one_or_none()
    if stored is None:
        conn.execute(_INSERT_TEXT, values)
        return True
    if stored.session_id != values["session_id"]:
        raise InputError(f"request {values['request_id']} belongs to another session")
    if stored.moved:
        conn.execute(_MOVE_TEXT, {**values, "id": stored.id})
    return bool(stored.moved) | (bool(stored.changed) and _replace_text(conn, stored.id, values))


def _replace_text(conn: Connection, requirement_id: int, values: dict[str, Any]) -> bool:
    """Store a changed text, source or suite; its old scores and reconstructions do not apply to it."""
    conn.execute(text("delete from iccm.reconstructions where requirement_id = :id"), {"id": requirement_id})
    conn.execute(
        text(
            f"""
            update iccm.requirements set text = :text, source_sha256 = :source_sha256,
                test_suite = cast(:test_suite as jsonb), test_suite_origin = :test_suite_origin, {_UNSCORED}
            where id = :id
            """
        ),
        {**values, "id": requirement_id},
    )
    return True


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
