"""Store conversations: one row per session, with its requirements texts and feedback.

Everything that arrives is stored; a later filter decides, with a reason, whether it is usable. (C1, C2, M3)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from iccm_assets.capture.extraction import (
    Exchange,
    extract_exchange,
    extract_requirements,
    extract_source,
)
from iccm_assets.capture.redaction.redact import pseudonymize_user_id, redact_document
from iccm_assets.capture.sanitizing import Sanitizer, to_json
from iccm_assets.capture.session_ownership import SessionOwner, may_write, merge_owner
from iccm_assets.db.tables.capture import ARMS, ORIGINS
from iccm_assets.db.tables.suites import SUITE_ORIGINS
from iccm_assets.errors import InputError, OperationNotAllowedError, SessionOwnershipError
from iccm_assets.settings import Settings, get_settings

MAX_ID_LENGTH = 512
# An erased session's row is found by the hash of its session id, which itself is deleted.
ERASED_PREFIX = "erased:"


@dataclass(frozen=True)
class ModelResponse:
    """One requirements text of the model. ``rating``: the developer's, -1, 1 or None."""

    request_id: str
    text: str
    model_version: str | None = None
    arm: str | None = None
    rating: int | None = None
    comment: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True)
class Conversation:
    """A session as it arrives.

    ``messages`` are ordered, ``[{role, content}]``. ``requirements`` and ``source_code`` name the accepted
    text and the source; without them, they are extracted from the messages. ``responses`` are added to
    the session's stored ones, by request id. ``rating`` rates the session. ``timestamp`` is the acceptance
    and sets the day; None means now, or the stored timestamp. ``token_name``: of the token it came with. (C3)
    """

    session_id: str
    messages: object
    user_id: str | None = None
    timestamp: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "import"
    requirements: str | None = None
    source_code: str | None = None
    test_suite: object = None
    responses: tuple[ModelResponse, ...] = ()
    rating: int | None = None
    comment: str | None = None
    token_name: str | None = None
    test_suite_origin: str = "attached"


def upsert_conversation(
    conn: Connection,
    conversation: Conversation,
    *,
    settings: Settings | None = None,
) -> int:
    """Store a conversation and return its id; the caller commits.

    The same session again replaces the row; an identical one changes nothing, not even ``updated_at``. A
    changed text, source or test suite clears the scores that depend on it. Raises ``InputError`` (too
    large, not JSON, a request id of another session), ``SessionOwnershipError`` (the session of another user
    or token) and ``OperationNotAllowedError`` (erased session).
    """
    settings = settings or get_settings()
    _check(conversation)
    row = _prepare(conversation, settings)
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
    return conversation_id


def preview_conversation(conversation: Conversation, settings: Settings) -> Exchange:
    """Return the exchange that storing a conversation would extract, from its sanitized and redacted texts.

    Raises ``InputError`` where ``upsert_conversation`` does for the conversation alone.
    """
    _check(conversation)
    values = _prepare(conversation, settings).values
    content, metadata, suite = (values[name] for name in ("content", "metadata", "test_suite"))
    return extract_exchange(json.loads(content), json.loads(metadata), suite and json.loads(suite))


def erased_session_key(session_id: str) -> str:
    """Return what replaces the session id in the row of an erased conversation. (V2)"""
    return ERASED_PREFIX + hashlib.sha256(session_id.encode("utf-8")).hexdigest()


def _reject_erased(conn: Connection, session_id: str) -> None:
    """Reject an erased session after its row was written: a concurrent erasure has committed by then."""
    erased = text("select exists (select from iccm.conversations where session_id = :name)")
    if conn.execute(erased, {"name": erased_session_key(session_id)}).scalar_one():
        raise OperationNotAllowedError(f"session {session_id} was erased and is not recorded again")


def sha256_of_source(source: str | None) -> str | None:
    """Return the sha256 of a source, hex: the value of ``requirements.source_sha256``."""
    return None if source is None else hashlib.sha256(source.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class _Row:
    """A conversation as the tables store it. ``values`` are the parameters that its statements share."""

    values: dict[str, Any]
    accepted: str | None
    responses: tuple[ModelResponse, ...]
    comment: str | None


def _check(conversation: Conversation) -> None:
    _check_id("session_id", conversation.session_id)
    if conversation.session_id.startswith(ERASED_PREFIX):
        raise InputError(f"a session_id may not begin with {ERASED_PREFIX}")
    validate_user_id(conversation.user_id)
    if conversation.origin not in ORIGINS:
        raise InputError(f"an origin is one of {', '.join(ORIGINS)}, not {conversation.origin!r}")
    if conversation.test_suite_origin not in SUITE_ORIGINS:
        raise InputError(f"a suite's origin is one of {', '.join(SUITE_ORIGINS)}")
    if not isinstance(conversation.metadata, Mapping):
        raise InputError("metadata is not an object")
    _check_feedback(conversation.rating, conversation.timestamp)
    for response in conversation.responses:
        _check_id("request_id", response.request_id)
        if response.arm not in {None, *ARMS}:
            raise InputError(f"an arm is one of {', '.join(ARMS)}")
        _check_feedback(response.rating, response.created_at)


def _check_feedback(rating: object, timestamp: datetime | None) -> None:
    if timestamp is not None and timestamp.tzinfo is None:
        raise InputError("a timestamp has no time zone", hint="Write it like 2026-03-01T12:00:00+00:00.")
    if rating not in {None, -1, 1} or isinstance(rating, bool):
        raise InputError(f"a rating is -1 or 1, not {rating!r}")


def validate_user_id(user_id: str | None) -> None:
    """Raise ``InputError`` for an invalid user id."""
    if user_id is not None:
        _check_id("user_id", user_id)


def _check_id(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_ID_LENGTH:
        raise InputError(f"{name} must be a text of 1 to {MAX_ID_LENGTH} characters")
    if "\x00" in value or not value.isprintable():
        raise InputError(f"{name} holds characters that cannot be printed")


def _prepare(conversation: Conversation, settings: Settings) -> _Row:
    """Sanitize, redact and extract, in this order: the extracted texts are those that the row holds."""
    sanitizer = Sanitizer()
    parts = _sanitize(sanitizer, conversation)
    parts, redacted = redact_document(parts) if settings.capture.redact else (parts, {})
    content, metadata, suite = parts["content"], parts["metadata"], parts["test_suite"]
    for name, counts in (("cleaned", dict(sorted(sanitizer.counts.items()))), ("redacted", redacted)):
        if counts:
            metadata = {**metadata, name: counts}
    values = {
        "session_id": conversation.session_id,
        "user_id": pseudonymize_user_id(conversation.user_id, settings),
        "token_name": conversation.token_name,
        "timestamp": conversation.timestamp,
        "content": to_json(content, "conversation"),
        "metadata": to_json(metadata, "metadata"),
        "origin": conversation.origin,
        "source_sha256": sha256_of_source(extract_source(content, metadata)),
        "test_suite": None if suite is None else to_json(suite, "test suite"),
        "test_suite_origin": None if suite is None else conversation.test_suite_origin,
    }
    responses = tuple(
        replace(
            response, text=text, comment=comment, created_at=response.created_at or conversation.timestamp
        )
        for response, (text, comment) in zip(conversation.responses, parts["responses"], strict=True)
    )
    row = _Row(values, extract_requirements(content, metadata), responses, parts["comment"])
    _check_size(row, settings.capture.max_conversation_mib)
    return row


def _sanitize(sanitizer: Sanitizer, conversation: Conversation) -> dict[str, Any]:
    """Return all texts of a conversation, sanitized, as one JSON value: they are redacted together."""
    texts = {"source_code": conversation.source_code, "requirements": conversation.requirements}
    metadata = {**conversation.metadata, **{key: text for key, text in texts.items() if text is not None}}
    return {
        "content": sanitizer.clean_document(conversation.messages, "conversation"),
        "metadata": sanitizer.clean_document(metadata, "metadata"),
        "test_suite": sanitizer.clean_suite(conversation.test_suite),
        "responses": [
            [sanitizer.clean_text(response.text), sanitizer.clean_optional(response.comment)]
            for response in conversation.responses
        ],
        "comment": sanitizer.clean_optional(conversation.comment),
    }


def _check_size(row: _Row, max_mib: float) -> None:
    texts = [row.values[name] for name in ("content", "metadata", "test_suite")]
    texts += [row.accepted, row.comment]
    texts += [text for response in row.responses for text in (response.text, response.comment)]
    size = sum(len(text.encode("utf-8")) for text in texts if text is not None)
    if size > max_mib * 2**20:
        raise InputError(
            f"the conversation of session {row.values['session_id']} has {size / 2**20:.1f} MiB, "
            f"more than the {max_mib:g} MiB allowed",
            hint="ICCM_CAPTURE__MAX_CONVERSATION_MIB sets the limit.",
        )


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


def _upsert_conversation(conn: Connection, row: _Row) -> tuple[int, bool]:
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
_UNSCORED = """
    test_pass_rate = null, implementation_variance = null, api_compatibility = null, scored_at = null,
    judge_version = null, orchestra = null, evidence = null
"""


def _upsert_accepted(conn: Connection, row: _Row) -> bool:
    """Store the accepted text: at most one row per session. Return whether it changed."""
    if row.accepted is None:
        deleted = conn.execute(
            text("delete from iccm.requirements where session_id = :session_id and kind = 'accepted'"),
            row.values,
        )
        return deleted.rowcount > 0
    unset = dict.fromkeys(("request_id", "model_version", "arm", "created_at"))
    values = {**row.values, **unset, "kind": "accepted", "text": row.accepted}
    return _upsert_text(conn, values, "r.session_id = :session_id and r.kind = 'accepted'")


def _upsert_response(conn: Connection, row: _Row, response: ModelResponse) -> bool:
    """Store a response of the model: one row per request. Return whether it changed."""
    changed = _upsert_text(
        conn, {**row.values, **asdict(response), "kind": "model"}, "r.request_id = :request_id"
    )
    session_id = row.values["session_id"]
    return changed | _rate(conn, session_id, response.request_id, response.rating, response.comment)


def _upsert_text(conn: Connection, values: dict[str, Any], condition: str) -> bool:
    """Insert the requirements row that ``condition`` identifies, or update it. Return whether it changed."""
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
