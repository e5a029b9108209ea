"""Parse the records of OpenAI and ShareGPT files: whose conversation it is, its messages, what came with it.

A record is ``{"messages": […]}`` or ``{"conversations": [{"from", "value"}]}``, a logged request with its
response, or a line of a batch file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from iccm_assets.capture.claude_code.session_details import SessionDetails
from iccm_assets.capture.claude_code.transcript_lines import parse_time

_SESSION_KEYS = ("session_id", "conversation_id", "thread_id")
_RECORD_KEYS = ("id", "custom_id", "uuid")
_TIME_KEYS = ("timestamp", "created_at", "created", "create_time")
# Ids of a response: the next request of the same conversation has another one.
_RESPONSE_ID = re.compile(r"(?:chatcmpl|cmpl|resp|gen|msg|req|batch_req)[-_]")
_MIN_MILLISECONDS = 100_000_000_000  # as seconds: in the year 5138
# Keys of the metadata that an import writes itself.
_RESERVED = frozenset(
    {"turns", "transcript", "attached", "cleaned", "redacted", "redacted_in_suite", "source_code"}
    | {"requirements", "completed"}
)


@dataclass(frozen=True)
class ChatRecord:
    """One record. ``session_id`` is None where it names none."""

    messages: list[Any]
    details: SessionDetails
    session_id: str | None = None
    timestamp: datetime | None = None


def parse_record(entry: Mapping[str, Any]) -> ChatRecord | None:
    """Parse a record; None if it holds no messages."""
    if "projectHash" in entry:  # a Gemini CLI session, whose messages have another form
        return None
    places = list(_list_places(entry))
    messages = next((chat for place in places if (chat := _find_messages(place)) is not None), None)
    if messages is None:
        return None
    answer = _find_answer(entry)
    metadata = _find_metadata(entry, places)
    session_id, is_weak = _find_session_id(entry, metadata)
    texts = {name: _first_text(name, *places, metadata) for name in ("source_code", "requirements")}
    suites = (place.get(key) for place in (*places, metadata) for key in ("tests", "test_suite"))
    user = next((name for place in (*places, metadata) if (name := _find_user(place)) is not None), None)
    model = _first_text("model", *places)
    details = SessionDetails(
        user_id=user,
        source_code=texts["source_code"],
        requirements=texts["requirements"],
        test_suite=next((suite for suite in suites if suite is not None), None),
        metadata={
            **{key: value for key, value in metadata.items() if key not in _RESERVED},
            **({"model": model} if model is not None else {}),
        },
        has_weak_id=is_weak,
    )
    times = (parse_timestamp(place.get(key)) for place in places for key in _TIME_KEYS)
    time = next((time for time in times if time is not None), None)
    return ChatRecord([*messages, *answer], details, session_id, time)


def _list_places(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a record in which its fields may be."""
    response = entry.get("response")
    body = response.get("body") if isinstance(response, Mapping) else None
    for place in (entry, entry.get("body"), entry.get("request"), response, body):
        if isinstance(place, Mapping):
            yield place


def _find_messages(place: Mapping[str, Any]) -> list[Any] | None:
    messages = place.get("messages")
    if isinstance(messages, list):
        return messages
    turns = place.get("conversations")
    if not isinstance(turns, list):
        return None
    return [_parse_sharegpt_turn(turn) for turn in turns]


def _parse_sharegpt_turn(turn: Any) -> Any:
    """Return a turn of ShareGPT as a message; some files already hold messages."""
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    return {"role": turn["from"], "content": turn.get("value")}


def _find_answer(entry: Mapping[str, Any]) -> list[Any]:
    """Return the answer to the request that the record logs, as a list of at most one message."""
    for place in _list_places(entry):
        choices = place.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, Mapping) else None
        if isinstance(message, Mapping):
            return [{"role": "assistant", **message}]
    return []


def _find_metadata(entry: Mapping[str, Any], places: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((data for place in places if isinstance(data := place.get("metadata"), Mapping)), {})


def _find_session_id(entry: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the id of the conversation, and whether it is only that of the record."""
    for place in (entry, metadata):
        for key in _SESSION_KEYS:
            if (name := _to_id(place.get(key))) is not None:
                return name, False
    for key in _RECORD_KEYS:
        name = _to_id(entry.get(key))
        if name is not None and not _RESPONSE_ID.match(name):
            return name, True
    return None, False


def _find_user(place: Mapping[str, Any]) -> str | None:
    return next((user for key in ("user_id", "user") if (user := _to_id(place.get(key))) is not None), None)


def _to_id(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**100 else None
    return value.strip() if isinstance(value, str) and value.strip() else None


def _first_text(key: str, *places: Mapping[str, Any]) -> str | None:
    texts = (place.get(key) for place in places)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def parse_timestamp(value: object) -> datetime | None:
    """Parse an ISO 8601 time, or seconds or milliseconds since 1970; None for anything else."""
    if isinstance(value, str) and not value.strip().lstrip("-").replace(".", "", 1).isdigit():
        return parse_time(value.strip())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        seconds = float(value)
        return datetime.fromtimestamp(seconds / 1000 if seconds >= _MIN_MILLISECONDS else seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
