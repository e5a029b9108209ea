"""Store the sessions of Claude Code transcripts as conversations.

Each file is merged into the stored sessions: files may arrive in any order, grow and be imported again, and
only new content changes a row. (C2)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.capture.claude_code.file_limits import limit_files
from iccm_assets.capture.claude_code.session_builder import SessionTurns, Turn
from iccm_assets.capture.claude_code.session_state import (
    SessionState,
    find_givers,
    find_root,
    give_turns,
    merge_session,
    parse_state,
    to_messages,
)
from iccm_assets.capture.claude_code.transcripts import Transcript
from iccm_assets.capture.conversations import (
    Conversation,
    erased_session_key,
    preview_conversation,
    upsert_conversation,
)
from iccm_assets.capture.extraction import Exchange, extract_exchange, extract_requirements
from iccm_assets.capture.messages import FilePart
from iccm_assets.errors import InputError, OperationNotAllowedError
from iccm_assets.settings import Settings

ORIGIN = "claude-code"
# The files of a session take at most this share of the size that a conversation may have.
_MAX_FILE_SHARE = 0.4


@dataclass(frozen=True)
class ImportResult:
    """The result of importing one session. ``source``, ``requirements``: whether it has any.

    ``state`` is `new`, `changed`, `unchanged`, `copy` (all turns belong to another session), `empty` (without
    a message), `other_origin` (captured elsewhere, not changed), `erased` or `refused` (see ``reason``).
    ``continues``: the session that it was forked or resumed from. (C3)
    """

    session_id: str
    state: str
    conversation_id: int | None = None
    messages: int = 0
    source: bool = False
    requirements: bool = False
    reason: str = ""
    continues: str | None = None


@dataclass(frozen=True)
class SessionPreview:
    """What an import would store of a session, in the words in which it would store it."""

    session_id: str
    exchange: Exchange
    suite_origin: str | None = None


class TranscriptImporter:
    """Imports files into the database, each session in a transaction of its own."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        user_id: str | None = None,
        repository: tuple[FilePart, ...] = (),
    ) -> None:
        self._engine = engine
        self._repository = repository
        self._settings = settings
        self._user_id = user_id
        self._families: dict[str, set[str]] | None = None

    def import_transcript(self, transcript: Transcript) -> list[ImportResult]:
        """Store the sessions of a transcript.

        Raises ``InputError`` only for an invalid user id; what is wrong with a session is its state.
        """
        return [self._import(name, turns) for name, turns in transcript.sessions.items()]

    def _import(self, session_id: str, turns: SessionTurns) -> ImportResult:
        if not turns.turns and not turns.inherited:
            return ImportResult(session_id, "empty", reason="it contains no messages")
        try:
            with self._engine.begin() as conn:
                return self._store(conn, session_id, turns)
        except (OperationNotAllowedError, InputError) as error:
            state = "erased" if isinstance(error, OperationNotAllowedError) else "refused"
            return ImportResult(
                session_id, state, messages=len(turns.turns), reason=error.detail or str(error)
            )

    def _store(self, conn: Connection, session_id: str, new: SessionTurns) -> ImportResult:
        row = _lock_row(conn, session_id)
        if row is not None and row.origin != ORIGIN:
            reason = f"captured by {row.origin}"
            return ImportResult(session_id, "other_origin", row.id, len(new.turns), reason=reason)
        stored = parse_state(row.content, row.metadata) if row is not None else None
        owners = self._load_owners(conn, session_id, find_root(new, stored))
        givers = find_givers(stored, new, owners)
        with_context = new.parent is None or not _is_erased(conn, new.parent)
        state = _merge(stored, new, owners, givers, with_context=with_context)
        if not state.turns:
            return ImportResult(session_id, "copy", reason=_explain_copy(state), continues=state.parent)
        conversation_id, conversation = self._upsert(conn, session_id, state, row, self._user_id)
        for giver in sorted(givers):
            giver_row = _lock_row(conn, giver)
            giver_state = parse_state(giver_row.content, giver_row.metadata)
            if giver_state is not None:
                rest = give_turns(giver_state, session_id, state, new)
                self._upsert(conn, giver, rest, giver_row, None)
        if state.root:
            self._roots(conn)[state.root].add(session_id)
        unchanged = row is not None and row.updated_at == _lock_row(conn, session_id).updated_at
        exchange = extract_exchange(conversation.messages, conversation.metadata)
        return ImportResult(
            session_id,
            "new" if row is None else "unchanged" if unchanged else "changed",
            conversation_id,
            len(state.turns),
            exchange.source is not None,
            exchange.requirements is not None,
            explain(exchange, state),
            state.parent,
        )

    def _upsert(
        self, conn: Connection, session_id: str, state: SessionState, row: Any, user_id: str | None
    ) -> tuple[int, Conversation]:
        metadata = dict(row.metadata) if row is not None else {}
        conversation = make_conversation(session_id, _limit(state, self._settings), user_id, metadata)
        conversation = replace(conversation, repository=self._repository)
        if row is not None and row.test_suite_origin == "attached":  # others follow from the transcript
            conversation = replace(conversation, test_suite=row.test_suite)
        return upsert_conversation(conn, conversation, settings=self._settings), conversation

    def _roots(self, conn: Connection) -> dict[str, set[str]]:
        """The imported sessions by the key of their first turn, read once."""
        if self._families is None:
            self._families = defaultdict(set)
            for session_id, root in conn.execute(_ROOTS, {"origin": ORIGIN}):
                self._families[root].add(session_id)
        return self._families

    def _load_owners(self, conn: Connection, session_id: str, root: str) -> dict[str, str]:
        """Load the turns of the other sessions with the same root: key and session."""
        others = sorted(self._roots(conn)[root] - {session_id}) if root else []
        rows = conn.execute(_TURNS, {"others": others}) if others else ()
        return {turn[0]: name for name, turns in rows for turn in turns}


class TranscriptPreview:
    """Merges files as an import would, without a database."""

    def __init__(
        self, settings: Settings, *, user_id: str | None = None, repository: tuple[FilePart, ...] = ()
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._user_id = user_id
        self._states: dict[str, SessionState] = {}
        self._families: dict[str, set[str]] = defaultdict(set)

    def add_transcript(self, transcript: Transcript) -> None:
        """Merge the sessions of a transcript."""
        for session_id, new in transcript.sessions.items():
            if not new.turns and not new.inherited:
                continue
            stored = self._states.get(session_id)
            root = find_root(new, stored)
            family = self._families[root] if root else set()
            owners = {
                turn.key: name for name in sorted(family - {session_id}) for turn in self._states[name].turns
            }
            givers = find_givers(stored, new, owners)
            state = self._states[session_id] = _merge(stored, new, owners, givers)
            for giver in givers:
                self._states[giver] = give_turns(self._states[giver], session_id, state, new)
            family.add(session_id)

    def sessions(self) -> list[SessionPreview]:
        """Return the sessions of all files."""
        return [self._preview(session_id, state) for session_id, state in self._states.items()]

    def _preview(self, session_id: str, state: SessionState) -> SessionPreview:
        if not state.turns:
            return SessionPreview(session_id, Exchange(None, None, _explain_copy(state)))
        conversation = make_conversation(session_id, _limit(state, self._settings), self._user_id, {})
        conversation = replace(conversation, repository=self._repository)
        try:
            exchange, suite_origin = preview_conversation(conversation, self._settings)
        except InputError as error:
            return SessionPreview(session_id, Exchange(None, None, error.detail))
        exchange = replace(exchange, reason=explain(exchange, state))
        return SessionPreview(session_id, exchange, suite_origin)


def make_conversation(
    session_id: str, state: SessionState, user_id: str | None, metadata: dict[str, Any]
) -> Conversation:
    """Build the conversation to store; ``metadata`` is the stored one, of which other keys remain."""
    replaced = {"cleaned", "redacted", "source_code", "requirements"}
    kept = {key: value for key, value in metadata.items() if key not in replaced}
    return Conversation(
        session_id=session_id,
        messages=state.messages,
        user_id=user_id,
        timestamp=_get_accepted_at(state.turns),
        metadata={**kept, **state.to_metadata()},
        origin=ORIGIN,
    )


def explain(exchange: Exchange, state: SessionState) -> str:
    """Say what a session lacks to be an example."""
    if state.foreign and exchange.requirements is None:
        return f"no new requirements since it continued {_name_parent(state)}"
    return exchange.reason


def _explain_copy(state: SessionState) -> str:
    return f"all its turns belong to {_name_parent(state)}"


def _name_parent(state: SessionState) -> str:
    return "another session" if state.parent is None else f"session {state.parent}"


def _merge(
    stored: SessionState | None,
    new: SessionTurns,
    owners: dict[str, str],
    givers: frozenset[str],
    *,
    with_context: bool = True,
) -> SessionState:
    """Merge what a file holds of a session, with the turns that its copies give back."""
    reclaimed = {key for key, owner in owners.items() if owner in givers}
    others = {key: owner for key, owner in owners.items() if owner not in givers}
    return merge_session(stored, new, others, reclaimed=reclaimed, with_context=with_context)


def _limit(state: SessionState, settings: Settings) -> SessionState:
    max_chars = int(settings.capture.max_conversation_mib * 2**20 * _MAX_FILE_SHARE)
    return replace(state, turns=tuple(limit_files(state.turns, max_chars)))


def _get_accepted_at(turns: tuple[Turn, ...]) -> datetime | None:
    """Return the time of the last requirements, or of the last message in a session without any."""
    for turn in reversed(turns):
        if turn.role == "assistant" and extract_requirements(to_messages([turn]), {}) is not None:
            return turn.timestamp
    return turns[-1].timestamp


_ROOTS = text(
    """
    select session_id, metadata -> 'transcript' ->> 'root' from iccm.conversations
    where origin = :origin and erased_at is null and metadata -> 'transcript' ->> 'root' is not null
    """
)
_TURNS = text(
    """
    select session_id, metadata -> 'turns' from iccm.conversations
    where session_id = any(:others) and erased_at is null
    """
)


def _lock_row(conn: Connection, session_id: str) -> Any:
    """Lock and load the session's row, unless it was erased; ``updated_at`` changes with every change."""
    return conn.execute(
        text(
            """
            select c.id, c.origin, c.content, c.metadata, c.updated_at, r.test_suite, r.test_suite_origin
            from iccm.conversations c
            left join iccm.requirements r on r.session_id = c.session_id and r.kind = 'accepted'
            where c.session_id = :session_id and c.erased_at is null for update of c
            """
        ),
        {"session_id": session_id},
    ).one_or_none()


def _is_erased(conn: Connection, session_id: str) -> bool:
    """Whether a session was erased: nothing of it may return as the source of another one."""
    erased = text("select exists (select from iccm.conversations where session_id = :name)")
    return bool(conn.execute(erased, {"name": erased_session_key(session_id)}).scalar_one())
