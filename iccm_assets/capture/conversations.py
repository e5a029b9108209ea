"""Recording conversations: one row a session, with its requirements texts and feedback (C1, C2).

Whatever arrives is stored; whether it is good for anything is decided later and with a reason (M3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from iccm_assets.capture.cleaning import Cleaner, dump
from iccm_assets.capture.extraction import requirements_of, source_of
from iccm_assets.capture.redaction import redact_document, stored_user_id
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.settings import Settings, get_settings
from iccm_assets.store.tables.capture import ARMS, ORIGINS

MAX_NAME = 512
# An erased session's row is found again by the hash of its name, which is not kept.
ERASED = "erased:"


@dataclass(frozen=True)
class Answer:
    """One requirements text CET-D gave. ``rating``: -1, 1 or None, by the developer."""

    request_id: str
    text: str
    model_version: str | None = None
    arm: str | None = None
    rating: int | None = None
    comment: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True)
class Conversation:
    """A session as it is handed in.

    ``messages`` is what was said, ordered, ``[{role, content}]``. ``requirements`` and ``source_code``
    name the accepted text and the source; unnamed, they are extracted from the messages (C3). ``answers``
    are added to those already known of the session, by request id. ``rating`` rates the session.
    ``timestamp`` is the acceptance and sets the day; None means now, or the moment already stored.
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
    answers: tuple[Answer, ...] = ()
    rating: int | None = None
    comment: str | None = None


def record(
    conn: sa.Connection,
    conversation: Conversation,
    *,
    settings: Settings | None = None,
) -> int:
    """Store a conversation and return its id; the caller's transaction decides whether it stays.

    The same session again replaces the row; an identical one changes nothing, not even ``updated_at``. A
    changed text, source or test suite clears the scores that rested on it. Raises ``InputError`` (too
    large, not JSON, a request id of another session) and ``NotAllowed`` (the session was erased).
    """
    settings = settings or get_settings()
    _check(conversation)
    stored = _prepare(conversation, settings)
    conversation_id, changed = _upsert_conversation(conn, stored)
    _refuse_erased(conn, stored.session_id)
    changed |= _upsert_accepted(conn, stored, conversation_id)
    for answer in stored.answers:
        changed |= _upsert_answer(conn, stored, conversation_id, answer)
    changed |= _rate(conn, stored.session_id, None, conversation.rating, stored.comment)
    if changed:
        conn.execute(
            sa.text("update iccm.conversations set updated_at = iccm.now() where id = :id"),
            {"id": conversation_id},
        )
    return conversation_id


def erased_name(session_id: str) -> str:
    """What an erased conversation's row has in place of its session id (V2)."""
    return ERASED + hashlib.sha256(session_id.encode("utf-8")).hexdigest()


def _refuse_erased(conn: sa.Connection, session_id: str) -> None:
    """Looked for after the row was written: an erasure that had held its lock has committed by then."""
    erased = sa.text("select exists (select from iccm.conversations where session_id = :name)")
    if conn.execute(erased, {"name": erased_name(session_id)}).scalar_one():
        raise NotAllowed(f"session {session_id} was erased and is not recorded again")


def source_digest(source: str | None) -> str | None:
    """sha256 of a source, hex: what ``requirements.source_sha256`` holds."""
    return None if source is None else hashlib.sha256(source.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class _Stored:
    """A conversation in the form the tables take: clean texts, JSON as text."""

    session_id: str
    user_id: str | None
    timestamp: datetime | None
    content: str
    metadata: str
    origin: str
    accepted: str | None
    source_sha256: str | None
    test_suite: str | None
    answers: tuple[Answer, ...]
    comment: str | None


def _check(conversation: Conversation) -> None:
    _check_name("session_id", conversation.session_id)
    if conversation.session_id.startswith(ERASED):
        raise InputError(f"a session_id may not begin with {ERASED}")
    check_user(conversation.user_id)
    for answer in conversation.answers:
        _check_name("request_id", answer.request_id)
    if conversation.origin not in ORIGINS:
        raise InputError(f"an origin is one of {', '.join(ORIGINS)}, not {conversation.origin!r}")
    if not isinstance(conversation.metadata, Mapping):
        raise InputError("metadata is not an object")
    if any(answer.arm not in {None, *ARMS} for answer in conversation.answers):
        raise InputError(f"an arm is one of {', '.join(ARMS)}")
    moments = [conversation.timestamp, *(answer.created_at for answer in conversation.answers)]
    if any(moment is not None and moment.tzinfo is None for moment in moments):
        raise InputError("a timestamp has no time zone", hint="Write it like 2026-03-01T12:00:00+00:00.")
    for rating in (conversation.rating, *(answer.rating for answer in conversation.answers)):
        if rating not in {None, -1, 1} or isinstance(rating, bool):
            raise InputError(f"a rating is -1 or 1, not {rating!r}")


def check_user(user_id: str | None) -> None:
    """Raises ``InputError`` for what cannot be a user's id."""
    if user_id is not None:
        _check_name("user_id", user_id)


def _check_name(what: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME:
        raise InputError(f"{what} must be a text of 1 to {MAX_NAME} characters")
    if "\x00" in value or not value.isprintable():
        raise InputError(f"{what} holds characters that cannot be printed")


def _prepare(conversation: Conversation, settings: Settings) -> _Stored:
    """Clean, redact and extract, in this order: what is extracted is what will be found in the row."""
    cleaner = Cleaner()
    parts = _clean(cleaner, conversation)
    counts: dict[str, int] = {}
    if settings.capture.redact:
        parts, counts = redact_document(parts)
    content, metadata, suite = parts["content"], parts["metadata"], parts["test_suite"]
    for name, counted in (("cleaned", dict(sorted(cleaner.counts.items()))), ("redacted", counts)):
        if counted:
            metadata = {**metadata, name: counted}
    stored = _Stored(
        session_id=conversation.session_id,
        user_id=stored_user_id(conversation.user_id, settings),
        timestamp=conversation.timestamp,
        content=dump(content, "conversation"),
        metadata=dump(metadata, "metadata"),
        origin=conversation.origin,
        accepted=requirements_of(content, metadata),
        source_sha256=source_digest(source_of(content, metadata)),
        test_suite=None if suite is None else dump(suite, "test suite"),
        answers=tuple(
            replace(
                answer, text=text, comment=comment, created_at=answer.created_at or conversation.timestamp
            )
            for answer, (text, comment) in zip(conversation.answers, parts["answers"], strict=True)
        ),
        comment=parts["comment"],
    )
    _check_size(stored, settings.capture.max_conversation_mib)
    return stored


def _clean(cleaner: Cleaner, conversation: Conversation) -> dict[str, Any]:
    """All texts of a conversation as one JSON value, clean: they are redacted together."""
    named = {"source_code": conversation.source_code, "requirements": conversation.requirements}
    given = {**conversation.metadata, **{key: text for key, text in named.items() if text is not None}}
    return {
        "content": cleaner.document(conversation.messages, "conversation"),
        "metadata": cleaner.document(given, "metadata"),
        "test_suite": cleaner.suite(conversation.test_suite),
        "answers": [[cleaner.text(one.text), cleaner.optional(one.comment)] for one in conversation.answers],
        "comment": cleaner.optional(conversation.comment),
    }


def _check_size(stored: _Stored, limit_mib: float) -> None:
    texts = [stored.content, stored.metadata, stored.accepted, stored.test_suite, stored.comment]
    texts += [text for answer in stored.answers for text in (answer.text, answer.comment)]
    size = sum(len(text.encode("utf-8")) for text in texts if text is not None)
    if size > limit_mib * 2**20:
        raise InputError(
            f"the conversation of session {stored.session_id} has {size / 2**20:.1f} MiB, "
            f"more than the {limit_mib:g} MiB allowed",
            hint="ICCM_CAPTURE__MAX_CONVERSATION_MIB sets the limit.",
        )


_CONVERSATION = sa.text(
    """
    insert into iccm.conversations as c (session_id, user_id, "timestamp", content, metadata, origin)
    values (:session_id, :user_id, coalesce(cast(:timestamp as timestamptz), iccm.now()),
            cast(:content as jsonb), cast(:metadata as jsonb), :origin)
    on conflict (session_id) do update set
        user_id = coalesce(:user_id, c.user_id),
        "timestamp" = coalesce(cast(:timestamp as timestamptz), c."timestamp"),
        content = excluded.content,
        metadata = excluded.metadata,
        origin = excluded.origin
    where c.erased_at is null and (
        (c.content, c.metadata, c.origin)
            is distinct from (excluded.content, excluded.metadata, excluded.origin)
        or c.user_id is distinct from coalesce(:user_id, c.user_id)
        or c."timestamp" is distinct from coalesce(cast(:timestamp as timestamptz), c."timestamp")
    )
    returning id
    """
)


def _upsert_conversation(conn: sa.Connection, stored: _Stored) -> tuple[int, bool]:
    """The id, and whether the row is new or changed."""
    found = conn.execute(
        _CONVERSATION,
        {
            "session_id": stored.session_id,
            "user_id": stored.user_id,
            "timestamp": stored.timestamp,
            "content": stored.content,
            "metadata": stored.metadata,
            "origin": stored.origin,
        },
    ).scalar_one_or_none()
    if found is not None:
        return int(found), True
    row = conn.execute(
        sa.text("select id, erased_at from iccm.conversations where session_id = :session_id for update"),
        {"session_id": stored.session_id},
    ).one()
    if row.erased_at is not None:
        raise NotAllowed(f"session {stored.session_id} was erased and is not recorded again")
    return int(row.id), False


# Scores rest on the text, the source and the suite. jsonb calls 1 and 1.0 equal, the judge does not:
# suites are compared as text.
_CHANGED = """
    (r.text, r.source_sha256, r.test_suite::text)
        is distinct from (:text, cast(:source_sha256 as text), cast(:test_suite as jsonb)::text)
"""
_UNSCORED = """
    test_pass_rate = null, implementation_variance = null, api_compatibility = null, scored_at = null,
    judge_version = null, orchestra = null, evidence = null
"""


def _upsert_accepted(conn: sa.Connection, stored: _Stored, conversation_id: int) -> bool:
    """What the developer ended with: at most one row a session. Returns whether it changed."""
    if stored.accepted is None:
        gone = conn.execute(
            sa.text("delete from iccm.requirements where session_id = :session_id and kind = 'accepted'"),
            {"session_id": stored.session_id},
        )
        return gone.rowcount > 0
    values = {**_scored_part(stored, stored.accepted), "conversation_id": conversation_id}
    row = conn.execute(
        sa.text(
            f"""
            select r.id, {_CHANGED} as changed from iccm.requirements r
            where r.session_id = :session_id and r.kind = 'accepted' for update
            """
        ),
        values,
    ).one_or_none()
    if row is not None:
        return bool(row.changed) and _replace_text(conn, row.id, values)
    conn.execute(
        sa.text(
            """
            insert into iccm.requirements
                (session_id, conversation_id, kind, text, source_sha256, test_suite, created_at)
            values (:session_id, :conversation_id, 'accepted', :text, :source_sha256,
                    cast(:test_suite as jsonb), iccm.now())
            """
        ),
        values,
    )
    return True


def _upsert_answer(conn: sa.Connection, stored: _Stored, conversation_id: int, answer: Answer) -> bool:
    """What CET-D answered: one row a request. Returns whether it changed."""
    values = {
        **_scored_part(stored, answer.text),
        "conversation_id": conversation_id,
        "request_id": answer.request_id,
        "model_version": answer.model_version,
        "arm": answer.arm,
        "created_at": answer.created_at,
    }
    row = conn.execute(
        sa.text(
            f"""
            select r.id, r.session_id, {_CHANGED} as changed,
                (r.conversation_id, r.model_version, r.arm) is distinct from
                (:conversation_id, coalesce(:model_version, r.model_version), coalesce(:arm, r.arm)) as moved
            from iccm.requirements r where r.request_id = :request_id for update
            """
        ),
        values,
    ).one_or_none()
    if row is not None and row.session_id != stored.session_id:
        raise InputError(f"request {answer.request_id} belongs to another session")
    if row is None:
        conn.execute(
            sa.text(
                """
                insert into iccm.requirements (session_id, conversation_id, kind, text, request_id,
                    model_version, arm, source_sha256, test_suite, created_at)
                values (:session_id, :conversation_id, 'model', :text, :request_id,
                    :model_version, :arm, :source_sha256, cast(:test_suite as jsonb),
                    coalesce(cast(:created_at as timestamptz), iccm.now()))
                """
            ),
            values,
        )
        changed = True
    else:
        if row.moved:
            conn.execute(
                sa.text(
                    """
                    update iccm.requirements set conversation_id = :conversation_id,
                        model_version = coalesce(:model_version, model_version), arm = coalesce(:arm, arm)
                    where id = :id
                    """
                ),
                {**values, "id": row.id},
            )
        changed = bool(row.moved) | (bool(row.changed) and _replace_text(conn, row.id, values))
    return changed | _rate(conn, stored.session_id, answer.request_id, answer.rating, answer.comment)


def _scored_part(stored: _Stored, text: str) -> dict[str, Any]:
    return {
        "session_id": stored.session_id,
        "text": text,
        "source_sha256": stored.source_sha256,
        "test_suite": stored.test_suite,
    }


def _replace_text(conn: sa.Connection, requirement_id: int, values: dict[str, Any]) -> bool:
    """A changed text, source or suite: its scores and reconstructions are those of something else."""
    conn.execute(
        sa.text("delete from iccm.reconstructions where requirement_id = :id"), {"id": requirement_id}
    )
    conn.execute(
        sa.text(
            f"""
            update iccm.requirements set text = :text, source_sha256 = :source_sha256,
                test_suite = cast(:test_suite as jsonb), {_UNSCORED}
            where id = :id
            """
        ),
        {**values, "id": requirement_id},
    )
    return True


def _rate(
    conn: sa.Connection, session_id: str, request_id: str | None, rating: int | None, comment: str | None
) -> bool:
    """The latest rating of a session, or of one of its answers, replaces the one before."""
    if rating is None:
        return False
    key = {"session_id": session_id, "request_id": request_id}
    this = "session_id = :session_id and request_id is not distinct from cast(:request_id as text)"
    rows = conn.execute(sa.text(f"select rating, comment from iccm.feedback where {this}"), key).all()
    if [tuple(row) for row in rows] == [(rating, comment)]:
        return False
    conn.execute(sa.text(f"delete from iccm.feedback where {this}"), key)
    conn.execute(
        sa.text(
            """
            insert into iccm.feedback (session_id, request_id, rating, comment)
            values (:session_id, :request_id, :rating, :comment)
            """
        ),
        {**key, "rating": rating, "comment": comment},
    )
    return True
