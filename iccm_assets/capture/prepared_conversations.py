"""Prepare a conversation for its tables: check, sanitize and redact it, and extract its example. (C3, C4)"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from iccm_assets.capture.collected_suites import collect_suite
from iccm_assets.capture.extraction import Exchange, extract_exchange, extract_exchanges
from iccm_assets.capture.messages import ChatMessage, FilePart, holds_only_words, parse_messages
from iccm_assets.capture.redaction.redact import count_placeholders, pseudonymize_user_id, redact_document
from iccm_assets.capture.sanitizing import Sanitizer, to_json
from iccm_assets.db.tables.capture import ARMS, ORIGINS
from iccm_assets.db.tables.suites import SUITE_ORIGINS
from iccm_assets.errors import InputError
from iccm_assets.sandbox.source_files import SourceFilesError, join_files
from iccm_assets.settings import Settings

MAX_ID_LENGTH = 512
# An erased session's row is found by the hash of its session id, which itself is deleted.
ERASED_PREFIX = "erased:"
# The counts of placeholders in a conversation's suite, as its metadata.
SUITE_PLACEHOLDERS = "redacted_in_suite"


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
    and sets the day; None means now, or the stored timestamp. ``token_name``: of the token it came with.
    ``repository``: test files of the project, which are not stored; one may become the session's suite. (C3)
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
    repository: tuple[FilePart, ...] = ()


def sha256_of_source(source: str | None) -> str | None:
    """Return the sha256 of a source, hex: the value of ``requirements.source_sha256``."""
    return None if source is None else hashlib.sha256(source.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class PreparedResponse:
    """A response as the table stores it, with its own source and the suite of this source."""

    response: ModelResponse
    source_sha256: str | None
    test_suite: str | None


@dataclass(frozen=True)
class PreparedConversation:
    """A conversation as the tables store it. ``values`` are the parameters that its statements share.

    ``exchange`` is its example.
    """

    values: dict[str, Any]
    exchange: Exchange
    responses: tuple[PreparedResponse, ...]
    comment: str | None


def check_conversation(conversation: Conversation) -> None:
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


def prepare_conversation(conversation: Conversation, settings: Settings) -> PreparedConversation:
    """Sanitize, redact and extract, in this order: the extracted texts are those that the row holds.

    Raises ``InputError`` for what is no conversation, or too large a one.
    """
    check_conversation(conversation)
    sanitizer = Sanitizer()
    parts = _sanitize(sanitizer, conversation)
    parts, redacted = redact_document(parts) if settings.capture.redact else (parts, {})
    content, metadata, suite = parts["content"], parts["metadata"], parts["test_suite"]
    for name, counts in (("cleaned", dict(sorted(sanitizer.counts.items()))), ("redacted", redacted)):
        if counts:
            metadata = {**metadata, name: counts}
    exchange = extract_exchange(content, metadata, suite)
    origin = conversation.test_suite_origin
    may_hold_tests = conversation.repository or not holds_only_words(content)
    if suite is None and exchange.source is not None and may_hold_tests:
        shown = ChatMessage("tool", "", conversation.repository)
        suite = collect_suite([shown, *parse_messages(content)], exchange.source)
        suite = sanitizer.clean_suite(suite)  # the files of the repository are as they were
        suite = redact_document(suite)[0] if settings.capture.redact else suite
        origin = "collected"
    metadata = _note_suite_placeholders(metadata, suite)
    source_sha256 = sha256_of_source(exchange.source)
    values: dict[str, Any] = {
        "session_id": conversation.session_id,
        "user_id": pseudonymize_user_id(conversation.user_id, settings),
        "token_name": conversation.token_name,
        "timestamp": conversation.timestamp,
        "content": to_json(content, "conversation"),
        "metadata": to_json(metadata, "metadata"),
        "origin": conversation.origin,
        "source_sha256": source_sha256,
        "test_suite": None if suite is None else to_json(suite, "test suite"),
        "test_suite_origin": None if suite is None else origin,
    }
    answered = {
        item.requirements: sha256_of_source(item.source)
        for item in (extract_exchanges(content, metadata, suite) if conversation.responses else ())
    }
    responses = []
    for response, (text, comment) in zip(conversation.responses, parts["responses"], strict=True):
        own_source = answered.get(text.strip(), source_sha256)
        own_suite = values["test_suite"] if own_source == source_sha256 else None
        created_at = response.created_at or conversation.timestamp
        stored = replace(response, text=text, comment=comment, created_at=created_at)
        responses.append(PreparedResponse(stored, own_source, own_suite))
    row = PreparedConversation(values, exchange, tuple(responses), parts["comment"])
    _check_size(row, settings.capture.max_conversation_mib)
    return row


def _note_suite_placeholders(metadata: dict[str, Any], suite: Any) -> dict[str, Any]:
    """Return the metadata with what redaction replaced in the suite: an expected value may have changed."""
    others = {name: value for name, value in metadata.items() if name != SUITE_PLACEHOLDERS}
    counts = count_placeholders(suite)
    return {**others, SUITE_PLACEHOLDERS: counts} if counts else others


def _sanitize(sanitizer: Sanitizer, conversation: Conversation) -> dict[str, Any]:
    """Return all texts of a conversation, sanitized, as one JSON value: they are redacted together."""
    texts = {"source_code": conversation.source_code, "requirements": conversation.requirements}
    metadata = {**conversation.metadata, **{key: text for key, text in texts.items() if text is not None}}
    metadata = join_source_files(metadata)
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


def join_source_files(metadata: dict[str, Any]) -> dict[str, Any]:
    """Make one source of ``source_files`` and ``source_code`` (J6); raises ``InputError``."""
    files, source = metadata.get("source_files"), metadata.get("source_code")
    if not isinstance(files, dict) or not files:
        return metadata
    others = {name: value for name, value in metadata.items() if name != "source_files"}
    try:
        return {**others, "source_code": join_files(files, source if isinstance(source, str) else None)}
    except SourceFilesError as error:
        raise InputError(f"metadata.source_files: {error}") from None


def _check_size(row: PreparedConversation, max_mib: float) -> None:
    texts = [row.values[name] for name in ("content", "metadata", "test_suite")]
    texts += [row.exchange.requirements, row.comment]
    texts += [text for item in row.responses for text in (item.response.text, item.response.comment)]
    if 4 * sum(len(text) for text in texts if text is not None) <= max_mib * 2**20:
        return  # no character takes more bytes
    size = sum(len(text.encode("utf-8")) for text in texts if text is not None)
    if size > max_mib * 2**20:
        raise InputError(
            f"the conversation of session {row.values['session_id']} has {size / 2**20:.1f} MiB, "
            f"more than the {max_mib:g} MiB allowed",
            hint="ICCM_CAPTURE__MAX_CONVERSATION_MIB sets the limit.",
        )
