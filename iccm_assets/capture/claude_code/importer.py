"""Store the sessions of Claude Code transcripts as conversations.

Each file is merged into the stored sessions: files may arrive in any order, grow and be imported again, and
only new content changes a row. (C2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from sqlalchemy import Connection, Engine, text

from iccm_assets.capture.claude_code.transcripts import (
    Transcript,
    Turn,
    merge_transcripts,
    read_transcript,
)
from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.capture.extraction import extract_requirements, extract_source
from iccm_assets.errors import InputError, OperationNotAllowedError
from iccm_assets.settings import Settings

ORIGIN = "claude-code"


@dataclass(frozen=True)
class ImportResult:
    """The result of importing one session. ``source``, ``requirements``: whether it has any.

    ``state`` is `new`, `changed`, `unchanged`, `empty` (without a message), `other_origin` (captured
    elsewhere, not changed), `erased` or `refused` (see ``reason``). (C3)
    """

    session_id: str
    state: str
    conversation_id: int | None = None
    messages: int = 0
    source: bool = False
    requirements: bool = False
    reason: str = ""


def import_transcript(
    engine: Engine,
    settings: Settings,
    stream: BinaryIO,
    *,
    user_id: str | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> tuple[Transcript, list[ImportResult]]:
    """Store the sessions of one transcript, each in a transaction of its own.

    Raises ``InputError`` only for an invalid ``user_id``; what is wrong with a session is its state.
    """
    transcript = read_transcript(stream, progress)
    sessions = transcript.sessions.items()
    return transcript, [
        _import(engine, settings, session_id, turns, user_id) for session_id, turns in sessions
    ]


def _import(
    engine: Engine, settings: Settings, session_id: str, turns: list[Turn], user_id: str | None
) -> ImportResult:
    if not turns:
        return ImportResult(session_id, "empty", reason="it contains no messages")
    try:
        with engine.begin() as conn:
            return _store(conn, settings, session_id, turns, user_id)
    except (OperationNotAllowedError, InputError) as error:
        state = "erased" if isinstance(error, OperationNotAllowedError) else "refused"
        return ImportResult(session_id, state, messages=len(turns), reason=error.detail)


def _store(
    conn: Connection, settings: Settings, session_id: str, new: list[Turn], user_id: str | None
) -> ImportResult:
    row = _lock_row(conn, session_id)
    if row is not None and row.origin != ORIGIN:
        return ImportResult(session_id, "other_origin", row.id, len(new), reason=f"captured by {row.origin}")
    metadata = dict(row.metadata) if row is not None else {}
    turns = merge_transcripts(_parse_stored_turns(row.content, metadata) if row is not None else [], new)
    metadata = {key: value for key, value in metadata.items() if key not in {"cleaned", "redacted"}}
    content = [{"role": turn.role, "content": turn.content} for turn in turns]
    conversation = Conversation(
        session_id=session_id,
        messages=content,
        user_id=user_id,
        timestamp=_get_accepted_at(turns),
        metadata={
            **metadata,
            "turns": [[turn.key, turn.timestamp and turn.timestamp.isoformat()] for turn in turns],
        },
        origin=ORIGIN,
        test_suite=None if row is None else row.test_suite,
    )
    conversation_id = upsert_conversation(conn, conversation, settings=settings)
    return _report(conn, session_id, row, conversation_id, content, metadata)


def _report(
    conn: Connection, session_id: str, previous: Any, conversation_id: int, content: list[Any], metadata: Any
) -> ImportResult:
    unchanged = previous is not None and previous.updated_at == _lock_row(conn, session_id).updated_at
    state = "new" if previous is None else "unchanged" if unchanged else "changed"
    source, requirements = extract_source(content, metadata), extract_requirements(content, metadata)
    missing = [name for name, text in (("source", source), ("requirements", requirements)) if text is None]
    return ImportResult(
        session_id,
        state,
        conversation_id,
        len(content),
        source is not None,
        requirements is not None,
        f"no {' and no '.join(missing)} found in it" if missing else "",
    )


def _lock_row(conn: Connection, session_id: str) -> Any:
    """Lock and load the session's row, unless it was erased; ``updated_at`` changes with every change."""
    return conn.execute(
        text(
            """
            select c.id, c.origin, c.content, c.metadata, c.updated_at,
                (select r.test_suite from iccm.requirements r
                 where r.session_id = c.session_id and r.kind = 'accepted') as test_suite
            from iccm.conversations c
            where c.session_id = :session_id and c.erased_at is null for update of c
            """
        ),
        {"session_id": session_id},
    ).one_or_none()


def _parse_stored_turns(content: object, metadata: dict[str, Any]) -> list[Turn]:
    """Parse the turns of a stored conversation; empty where it was not imported."""
    keys = metadata.get("turns")
    if not isinstance(content, list) or not isinstance(keys, list):
        return []
    try:
        return [
            Turn(key, datetime.fromisoformat(time) if time else None, message["role"], message["content"])
            for (key, time), message in zip(keys, content, strict=True)
        ]
    except (TypeError, ValueError, KeyError):
        return []


def _get_accepted_at(turns: list[Turn]) -> datetime | None:
    """Return the time of the last requirements, or of the last message in a session without any."""
    for turn in reversed(turns):
        if extract_requirements([{"role": turn.role, "content": turn.content}], {}) is not None:
            return turn.timestamp
    return turns[-1].timestamp
