"""Store the sessions of files (transcripts, rollouts, chats) as conversations.

Each file is merged into the stored sessions: files may arrive in any order, grow and be imported again, and
only new content changes a row. (C2)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.capture.claude_code.session_builder import SessionTurns
from iccm_assets.capture.claude_code.session_conversations import (
    check_same,
    explain,
    explain_copy,
    limit_state,
    make_conversation,
)
from iccm_assets.capture.claude_code.session_details import NO_DETAILS, SessionDetails, join_details
from iccm_assets.capture.claude_code.session_state import (
    SessionState,
    find_givers,
    find_root,
    give_turns,
    merge_session,
    parse_state,
)
from iccm_assets.capture.claude_code.transcripts import Transcript
from iccm_assets.capture.conversations import (
    Conversation,
    erased_session_key,
    preview_conversation,
    upsert_conversation,
)
from iccm_assets.capture.extraction import Exchange, extract_exchange
from iccm_assets.capture.messages import FilePart
from iccm_assets.errors import InputError, OperationNotAllowedError
from iccm_assets.settings import Settings


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
    suite_placeholders: Mapping[str, int] = field(default_factory=dict)


class TranscriptImporter:
    """Imports files into the database, each session in a transaction of its own.

    ``user_id``: the author of sessions that name none.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        user_id: str | None = None,
        repository: tuple[FilePart, ...] = (),
        origin: str = "claude-code",
    ) -> None:
        self._engine = engine
        self._origin = origin
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
        if row is not None and row.origin != self._origin:
            reason = f"captured by {row.origin}"
            return ImportResult(session_id, "other_origin", row.id, len(new.turns), reason=reason)
        if new.parent is not None and not new.inherited and _is_erased(conn, new.parent):
            # The file does not say which of its turns are copies of the erased ones.
            raise OperationNotAllowedError(f"it continues session {new.parent}, which was erased")
        new = _set_erased_apart(conn, new)
        stored = parse_state(row.content, row.metadata) if row is not None else None
        check_same(stored, new)
        owners = self._load_owners(conn, session_id, find_root(new, stored))
        givers = find_givers(stored, new, owners)
        with_context = new.parent is None or not _is_erased(conn, new.parent)
        state = _merge(stored, new, owners, givers, with_context=with_context)
        if not state.turns:
            return ImportResult(session_id, "copy", reason=explain_copy(state), continues=state.parent)
        conversation_id, conversation = self._upsert(conn, session_id, state, row, new.details)
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
        self,
        conn: Connection,
        session_id: str,
        state: SessionState,
        row: Any,
        details: SessionDetails | None,
    ) -> tuple[int, Conversation]:
        """Store a session; ``details`` is None if no file of its own is read."""
        metadata = dict(row.metadata) if row is not None else {}
        user_id = None if details is None else details.user_id or self._user_id
        conversation = make_conversation(
            session_id,
            limit_state(state, self._settings),
            user_id,
            metadata,
            details=details or NO_DETAILS,
            origin=self._origin,
        )
        conversation = replace(conversation, repository=self._repository)
        # Other suites follow from the transcript.
        if conversation.test_suite is None and row is not None and row.test_suite_origin == "attached":
            conversation = replace(conversation, test_suite=row.test_suite)
        return upsert_conversation(conn, conversation, settings=self._settings), conversation

    def _roots(self, conn: Connection) -> dict[str, set[str]]:
        """The imported sessions by the key of their first turn, read once."""
        if self._families is None:
            self._families = defaultdict(set)
            for session_id, root in conn.execute(_ROOTS, {"origin": self._origin}):
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
        self._details: dict[str, SessionDetails] = {}
        self._refused: dict[str, str] = {}
        self._families: dict[str, set[str]] = defaultdict(set)

    def add_transcript(self, transcript: Transcript) -> None:
        """Merge the sessions of a transcript."""
        for session_id, new in transcript.sessions.items():
            if not new.turns and not new.inherited:
                continue
            stored = self._states.get(session_id)
            try:
                check_same(stored, new)
            except InputError as error:
                self._refused[session_id] = error.detail
                continue
            self._details[session_id] = join_details(self._details.get(session_id), new.details)
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
            return SessionPreview(session_id, Exchange(None, None, explain_copy(state)))
        if session_id in self._refused:
            return SessionPreview(session_id, Exchange(None, None, self._refused[session_id]))
        details = self._details[session_id]
        user_id = details.user_id or self._user_id
        try:
            conversation = make_conversation(
                session_id, limit_state(state, self._settings), user_id, {}, details=details
            )
            conversation = replace(conversation, repository=self._repository)
            exchange, suite_origin, placeholders = preview_conversation(conversation, self._settings)
        except InputError as error:
            return SessionPreview(session_id, Exchange(None, None, error.detail or str(error)))
        exchange = replace(exchange, reason=explain(exchange, state))
        return SessionPreview(session_id, exchange, suite_origin, placeholders)


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


_ROOTS = text(
    """
    select session_id, metadata -> 'transcript' ->> 'root' from iccm.conversations
    where origin = :origin and erased_at is null and metadata -> 'transcript' ->> 'root' is not null
    """
)
_ERASED = text("select session_id from iccm.conversations where session_id = any(:keys)")
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


def _set_erased_apart(conn: Connection, new: SessionTurns) -> SessionTurns:
    """Return turns without the beginning that was a session of its own and was erased: it is inherited."""
    if new.key_prefix is None:
        return new
    names = [f"{new.key_prefix}{turn.key}" for turn in new.turns[:-1]]
    keys = [erased_session_key(name) for name in names]
    erased = set(conn.execute(_ERASED, {"keys": keys}).scalars()) if keys else set()
    last = max((place for place, key in enumerate(keys) if key in erased), default=None)
    if last is None:
        return new
    return replace(new, turns=new.turns[last + 1 :], inherited=new.turns[: last + 1], parent=names[last])


def _is_erased(conn: Connection, session_id: str) -> bool:
    """Whether a session was erased: nothing of it may return as the source of another one."""
    erased = text("select exists (select from iccm.conversations where session_id = :name)")
    return bool(conn.execute(erased, {"name": erased_session_key(session_id)}).scalar_one())
