"""Storing the sessions of Claude Code transcripts as conversations (C2).

Each file is merged into what is stored of its sessions already: files may come in any order, grow and come
again, and only what is new changes a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, record
from iccm_assets.capture.extraction import requirements_of, source_of
from iccm_assets.capture.transcripts import Transcript, Turn, merge, read
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.settings import Settings

ORIGIN = "claude-code"
# `new`, `changed`, `unchanged`; `empty`: nothing was said in it; `other_origin`: captured otherwise, left as
# it is; `erased`; `refused`: see the reason.
STATES = ("new", "changed", "unchanged", "empty", "other_origin", "erased", "refused")


@dataclass(frozen=True)
class Imported:
    """What became of one session. ``source``, ``requirements``: whether there was one to be found (C3)."""

    session_id: str
    state: str
    conversation_id: int | None = None
    messages: int = 0
    source: bool = False
    requirements: bool = False
    reason: str = ""


def import_file(
    engine: sa.Engine,
    settings: Settings,
    stream: BinaryIO,
    *,
    user_id: str | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> tuple[Transcript, list[Imported]]:
    """Store the sessions of one transcript, each in a transaction of its own.

    Raises ``InputError`` only for a ``user_id`` that is none; whatever is wrong with a session is its state.
    """
    transcript = read(stream, progress)
    return transcript, list(_sessions(engine, settings, transcript, user_id))


def _sessions(
    engine: sa.Engine, settings: Settings, transcript: Transcript, user_id: str | None
) -> Iterator[Imported]:
    for session_id, turns in transcript.sessions.items():
        if not turns:
            yield Imported(session_id, "empty", reason="nothing was said in it")
            continue
        try:
            with engine.begin() as conn:
                yield _store(conn, settings, session_id, turns, user_id)
        except NotAllowed as error:
            yield Imported(session_id, "erased", messages=len(turns), reason=error.detail)
        except InputError as error:
            yield Imported(session_id, "refused", messages=len(turns), reason=error.detail)


def _store(
    conn: sa.Connection, settings: Settings, session_id: str, new: list[Turn], user_id: str | None
) -> Imported:
    row = _row(conn, session_id)
    if row is not None and row.erased_at is None and row.origin != ORIGIN:
        return Imported(session_id, "other_origin", row.id, len(new), reason=f"captured by {row.origin}")
    kept: dict[str, Any] = {}
    stored: list[Turn] = []
    if row is not None and row.erased_at is None:
        kept = {key: value for key, value in row.metadata.items() if key not in {"cleaned", "redacted"}}
        stored = _stored_turns(row.content, kept)
    turns = merge(stored, new)
    content = [{"role": turn.role, "content": turn.content} for turn in turns]
    told = [[turn.key, turn.at.isoformat() if turn.at else None] for turn in turns]
    conversation_id = record(
        conn,
        Conversation(
            session_id=session_id,
            messages=content,
            user_id=user_id,
            timestamp=_accepted_at(turns),
            metadata={**kept, "turns": told},
            origin=ORIGIN,
            test_suite=None if row is None else row.test_suite,
        ),
        settings=settings,
    )
    after = _row(conn, session_id)
    state = (
        "new" if row is None else "unchanged" if after and after.updated_at == row.updated_at else "changed"
    )
    source, requirements = source_of(content, kept), requirements_of(content, kept)
    missing = [name for name, one in (("source", source), ("requirements", requirements)) if one is None]
    return Imported(
        session_id,
        state,
        conversation_id,
        len(turns),
        source is not None,
        requirements is not None,
        f"no {' and no '.join(missing)} found in it" if missing else "",
    )


def _row(conn: sa.Connection, session_id: str) -> Any:
    """The session's row, locked; ``updated_at`` changes with every change of it."""
    return conn.execute(
        sa.text(
            """
            select c.id, c.origin, c.content, c.metadata, c.erased_at, c.updated_at,
                (select r.test_suite from iccm.requirements r
                 where r.session_id = c.session_id and r.kind = 'accepted') as test_suite
            from iccm.conversations c where c.session_id = :session_id for update of c
            """
        ),
        {"session_id": session_id},
    ).one_or_none()


def _stored_turns(content: object, metadata: dict[str, Any]) -> list[Turn]:
    """The turns of a stored conversation; none where they are not those of an import."""
    told = metadata.get("turns")
    if not isinstance(content, list) or not isinstance(told, list) or len(told) != len(content):
        return []
    try:
        return [
            Turn(key, datetime.fromisoformat(at) if at else None, one["role"], one["content"])
            for (key, at), one in zip(told, content, strict=True)
        ]
    except (TypeError, ValueError, KeyError):
        return []


def _accepted_at(turns: list[Turn]) -> datetime | None:
    """When the last requirements were given; in a session without any, when the last word was."""
    for turn in reversed(turns):
        if requirements_of([{"role": turn.role, "content": turn.content}], {}) is not None:
            return turn.at
    return turns[-1].at
