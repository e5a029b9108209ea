"""Make the conversation to store of an imported session, and say what it lacks. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from iccm_assets.capture.claude_code.file_limits import limit_files
from iccm_assets.capture.claude_code.session_builder import SessionTurns, Turn
from iccm_assets.capture.claude_code.session_details import (
    ATTACHED_NAMES,
    NO_DETAILS,
    SessionDetails,
    join_details,
    parse_details,
)
from iccm_assets.capture.claude_code.session_state import SessionState, to_messages
from iccm_assets.capture.conversations import Conversation
from iccm_assets.capture.extraction import Exchange, extract_requirements
from iccm_assets.errors import InputError
from iccm_assets.settings import Settings
from iccm_assets.suites.test_suites import parse_suite

# The files of a session take at most this share of the size that a conversation may have.
_MAX_FILE_SHARE = 0.4


def make_conversation(
    session_id: str,
    state: SessionState,
    user_id: str | None,
    metadata: Mapping[str, Any],
    *,
    details: SessionDetails = NO_DETAILS,
    origin: str = "claude-code",
) -> Conversation:
    """Build the conversation to store; ``metadata`` is the stored one, of which other keys remain.

    Raises ``TestSuiteError`` for an invalid suite.
    """
    details = join_details(parse_details(metadata), details)
    if details.test_suite is not None:
        parse_suite(details.test_suite)
    values = {name: getattr(details, name) for name in ATTACHED_NAMES}
    attached = {name: value for name, value in values.items() if value is not None}
    replaced = {"cleaned", "redacted", "redacted_in_suite", "source_code", "requirements", "attached"}
    kept = {key: value for key, value in metadata.items() if key not in replaced}
    return Conversation(
        session_id=session_id,
        messages=state.messages,
        user_id=user_id,
        timestamp=_get_accepted_at(state.turns),
        metadata={
            **kept,
            **details.metadata,
            **state.to_metadata(),
            **attached,
            **({"attached": list(attached)} if attached else {}),
        },
        origin=origin,
        test_suite=details.test_suite,
    )


def check_same(stored: SessionState | None, new: SessionTurns) -> None:
    """Raise ``InputError`` if the id of a record stands for two conversations."""
    if stored is None or not new.details.has_weak_id:
        return
    known = {turn.key for turn in stored.turns}
    if known and known.isdisjoint(turn.key for turn in new.turns if turn.role != "system"):
        raise InputError("another conversation with this id was imported before")


def explain(exchange: Exchange, state: SessionState) -> str:
    """Say what a session lacks to be an example."""
    if state.foreign and exchange.requirements is None:
        return f"no new requirements since it continued {_name_parent(state)}"
    return exchange.reason


def explain_copy(state: SessionState) -> str:
    return f"all its turns belong to {_name_parent(state)}"


def _name_parent(state: SessionState) -> str:
    return "another session" if state.parent is None else f"session {state.parent}"


def limit_state(state: SessionState, settings: Settings) -> SessionState:
    max_chars = int(settings.capture.max_conversation_mib * 2**20 * _MAX_FILE_SHARE)
    return replace(state, turns=tuple(limit_files(state.turns, max_chars)))


def _get_accepted_at(turns: tuple[Turn, ...]) -> datetime | None:
    """Return the time of the last requirements, or of the last message in a session without any."""
    for turn in reversed(turns):
        if turn.role == "assistant" and extract_requirements(to_messages([turn]), {}) is not None:
            return turn.timestamp
    return turns[-1].timestamp
