"""Parse the lines of a Claude Code transcript, one JSON object each.

A line is a message, an attachment, an operation on the queue of prompts, or a link: a line that says nothing
but stands between messages. (C2)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO

from iccm_assets.capture.claude_code.message_content import (
    MalformedLineError,
    get_own_text,
    parse_content,
)
from iccm_assets.capture.claude_code.tool_files import (
    FilePart,
    ToolCall,
    ToolResult,
    parse_attachment,
    parse_call,
    parse_result,
)
from iccm_assets.capture.injected_text import remove_injected_text

MAX_LINE_BYTES = 64 * 2**20
_PADDING = b"\0 \t\r\n"
_SKIPPED_FLAGS = {
    "isSidechain": "sidechain",
    "isMeta": "meta",
    "isCompactSummary": "compact_summary",
    "isApiErrorMessage": "api_error",
}
# Who else writes messages of the role `user`.
_OTHER_ORIGINS = frozenset({"task-notification", "peer", "hook", "channel", "teammate", "agent"})


@dataclass(slots=True)
class TranscriptLine:
    """One line, or message of another format.

    ``kind``: `prompt`, `queued`, `answer`, `system`, `result` (of tools), `file`, `queue` or `link`. ``key``
    identifies the line in every file. ``is_root``: it says that nothing is above it. ``message``: the ids of
    the answer that it is a part of. ``forked_from``: the session that it was copied from. ``skipped``: why it
    is only a link. ``is_compaction``: the conversation above it was summarized here.
    """

    kind: str
    session: str
    key: str = ""
    uuid: str | None = None
    parent: str | None = None
    is_root: bool = False
    timestamp: datetime | None = None
    content: str | list[Any] = ""
    text: str = ""
    message: tuple[str, str | None] | None = None
    forked_from: str | None = None
    skipped: str | None = None
    is_compaction: bool = False
    operation: str = ""
    reason: str = ""
    file: FilePart | None = None
    calls: dict[str, ToolCall] = field(default_factory=dict)
    results: dict[str, ToolResult] = field(default_factory=dict)


def read_lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield each line and whether it is complete; only ``MAX_LINE_BYTES`` of a line are held in memory."""
    while line := stream.readline(MAX_LINE_BYTES):
        complete = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
        yield line, complete
        while not complete and (rest := stream.readline(2**20)):
            complete = rest.endswith(b"\n")


def is_blank(raw: bytes) -> bool:
    """Whether a line holds nothing but padding."""
    return not raw.strip(_PADDING)


def parse_entry(raw: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object; raises ``MalformedLineError``."""
    try:
        entry = json.loads(raw.strip(_PADDING).removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reasons = {UnicodeDecodeError: "not_utf8", RecursionError: "too_deep"}
        raise MalformedLineError(reasons.get(type(error), "not_json")) from None
    if not isinstance(entry, dict):
        raise MalformedLineError("no_object")
    return entry


def parse_line(entry: dict[str, Any], session: str | None) -> TranscriptLine:
    """Parse an entry of a transcript; ``session`` is its session where it names none.

    Raises ``MalformedLineError`` for a message without a session, a role or content.
    """
    kind = entry.get("type")
    if not isinstance(kind, str):
        raise MalformedLineError("no_type")
    line = TranscriptLine("link", _session_id(entry, session) or "", skipped=_skip_reason(entry, kind))
    _place(line, entry)
    if kind == "attachment" and line.skipped == kind:
        _add_attachment(line, entry.get("attachment"))
    elif kind == "queue-operation":
        _add_operation(line, entry)
    elif line.skipped is None:
        _add_message(line, entry, kind)
    if line.kind != "link" and not line.session:
        raise MalformedLineError("no_session")
    return line


def _session_id(entry: Mapping[str, Any], default: str | None) -> str | None:
    value = entry.get("sessionId", default)
    return value if isinstance(value, str) and value.strip() else None


def _skip_reason(entry: Mapping[str, Any], kind: str) -> str | None:
    """Return why a line is not part of the conversation; None if it is."""
    flags = (name for flag, name in _SKIPPED_FLAGS.items() if entry.get(flag) is True)
    if kind not in {"user", "assistant"}:
        flag = next(flags, None) if kind == "attachment" else None
        return flag or (kind[:40] if kind.isprintable() and kind else "unknown")
    message = entry.get("message")
    synthetic = isinstance(message, Mapping) and message.get("model") == "<synthetic>"
    return next(flags, "synthetic" if synthetic else _other_origin(entry))


def _other_origin(entry: Mapping[str, Any]) -> str | None:
    origin = entry.get("origin")
    kind = origin.get("kind") if isinstance(origin, Mapping) else None
    return kind if isinstance(kind, str) and kind in _OTHER_ORIGINS else None


def _place(line: TranscriptLine, entry: Mapping[str, Any]) -> None:
    """Set where the line stands: its id, its parent, its time, and the session that it was copied from."""
    fork = entry.get("forkedFrom")
    fork = fork if isinstance(fork, Mapping) else {}
    line.uuid = _id(entry.get("uuid"))
    line.parent = _id(entry.get("parentUuid")) or _id(entry.get("logicalParentUuid"))
    line.is_compaction = line.skipped == "compact_summary" or entry.get("subtype") == "compact_boundary"
    line.timestamp = parse_time(entry.get("timestamp"))
    source = _id(fork.get("sessionId"))
    line.forked_from = source if source != line.session else None
    line.key = line.uuid or ""


def _add_attachment(line: TranscriptLine, attachment: object) -> None:
    """Read an attachment: a queued prompt or a file."""
    if not isinstance(attachment, Mapping):
        return
    if attachment.get("type") == "queued_command":
        content = parse_content(attachment.get("prompt"))
        by_user = attachment.get("commandMode", "prompt") == "prompt" and attachment.get("isMeta") is not True
        if content and by_user and _other_origin(attachment) is None and not _is_injected(content):
            line.kind, line.skipped = "queued", None
            line.content, line.text = content, get_own_text(content)
            _set_key(line, "user", attachment.get("prompt"))
    elif (part := parse_attachment(attachment)) is not None:
        line.kind, line.skipped, line.file = "file", None, part
        _set_key(line, "user", [part["path"], part["text"]])


def _add_operation(line: TranscriptLine, entry: Mapping[str, Any]) -> None:
    """Read an operation on the queue of prompts."""
    operation, reason = entry.get("operation"), entry.get("reason")
    content = parse_content(entry.get("content"))
    if isinstance(operation, str) and line.session:
        line.kind, line.operation = "queue", operation
        line.reason = reason if isinstance(reason, str) else ""
        if content and not _is_injected(content):
            line.content, line.text = content, get_own_text(content)
        _set_key(line, "user", [operation, entry.get("content")])


def _add_message(line: TranscriptLine, entry: Mapping[str, Any], kind: str) -> None:
    """Read a message of the developer or the assistant."""
    if not line.session:
        raise MalformedLineError("no_session")
    message = entry.get("message")
    if not isinstance(message, Mapping):
        raise MalformedLineError("no_message")
    role, raw = message.get("role", kind), message.get("content")
    content = parse_content(raw)
    if not isinstance(role, str) or role not in {"user", "assistant"} or content is None:
        raise MalformedLineError("no_message")
    line.content, line.text = content, get_own_text(content)
    if role == "assistant":
        line.kind = "answer"
        if (name := _id(message.get("id"))) is not None:
            line.message = (name, _id(entry.get("requestId")))
    _set_key(line, role, raw)
    if role == "user" and content:
        _add_user_message(line, entry)
    if not content:
        line.skipped = "empty"
    _add_tools(line, raw if isinstance(raw, list) else [], entry.get("toolUseResult"))


def _add_user_message(line: TranscriptLine, entry: Mapping[str, Any]) -> None:
    blocks = line.content if isinstance(line.content, list) else []
    if blocks and all(block.get("type") == "tool_result" for block in blocks):
        line.kind = "result"
    elif _is_injected(line.content):
        begins = line.text.lstrip()
        line.skipped = "command" if begins.startswith(("<", "Caveat")) else "inserted"
        line.is_compaction = line.skipped == "inserted"
    else:
        line.kind = "prompt"
        first = line.text.lstrip().partition("\n")[0]
        continues = not first.startswith("<") and first and not remove_injected_text(first).strip()
        line.is_root = "parentUuid" in entry and line.parent is None and not continues


def _add_tools(line: TranscriptLine, content: list[Any], details: object) -> None:
    """Add the tool calls of an answer, or the tool results of a message."""
    blocks = [block for block in content if isinstance(block, Mapping)]
    for block in blocks:
        if line.kind == "answer" and block.get("type") == "tool_use" and isinstance(block.get("id"), str):
            if (call := parse_call(block)) is not None:
                line.calls[block["id"]] = call
        elif block.get("type") == "tool_result" and isinstance(block.get("tool_use_id"), str):
            line.results[block["tool_use_id"]] = parse_result(block, details if len(blocks) == 1 else None)


def _is_injected(content: str | list[Any]) -> bool:
    """Whether a program wrote all of the words, and there is nothing else."""
    if isinstance(content, list) and any(block.get("type") != "text" for block in content):
        return False
    return not remove_injected_text(get_own_text(content)).strip()


def _set_key(line: TranscriptLine, role: str, content: object) -> None:
    """Identify the line by its own id and content, without an id by time, answer and content.

    Without a time, too, it is only known in its session. A digest, so that no rule takes it for a secret.
    """
    time = line.timestamp.isoformat() if line.timestamp else line.session
    parts = [role, line.key or [time, line.message], content]
    name = json.dumps(parts, sort_keys=True)
    line.key = "m" + hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:19]


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def parse_time(timestamp: object) -> datetime | None:
    """Parse an ISO 8601 time as UTC; None for anything else."""
    try:
        time = datetime.fromisoformat(timestamp)  # type: ignore[arg-type]
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
