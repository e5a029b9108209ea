"""Parse the messages of OpenAI and ShareGPT chats, with the files that their tools read and write."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from iccm_assets.capture.claude_code.message_content import MalformedLineError, parse_content
from iccm_assets.capture.claude_code.tool_files import ToolResult, parse_call, parse_result
from iccm_assets.capture.claude_code.transcript_lines import TranscriptLine
from iccm_assets.capture.codex.tool_calls import file_id, parse_tool_call, parse_tool_output
from iccm_assets.capture.messages import normalize_role
from iccm_assets.capture.openai_chat.records import parse_timestamp
from iccm_assets.capture.turn_keys import KeyChain

_KINDS = {
    "user": "prompt",
    "assistant": "answer",
    "system": "system",
    "developer": "system",
    "tool": "result",
}
_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
_KEPT_TYPES = frozenset({"tool_use", "tool_result", "thinking"})
_FUNCTION_CALL = "function_call"


class ChatParser:
    """Parses the messages of one conversation in order.

    ``skipped`` counts parts without words, ``malformed`` messages that are none. ``results``: of all calls.
    """

    def __init__(self, session: str, seed: str) -> None:
        self.skipped: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.results: dict[str, ToolResult] = {}
        self._session = session
        self._keys = KeyChain(seed)
        self._pending: OrderedDict[str, None] = OrderedDict()  # the first is taken in constant time
        self._uses: dict[str, int] = {}
        self._max_lines: dict[str, int | None] = {}

    def parse(self, messages: list[Any], time: datetime | None) -> list[TranscriptLine]:
        """Return the messages as lines; ``time`` is that of messages without one."""
        lines = []
        for message in messages:
            try:
                line = self._parse(message, time)
            except MalformedLineError as reason:
                self.malformed[str(reason)] += 1
                continue
            except RecursionError:
                self.malformed["too_deep"] += 1
                continue
            if line is not None:
                lines.append(line)
        return lines

    def _parse(self, message: Any, time: datetime | None) -> TranscriptLine | None:
        if not isinstance(message, Mapping):
            raise MalformedLineError("no_message")
        role = message.get("role")
        role = normalize_role(role) if isinstance(role, str) else ""
        message = _as_call(message) if role == _FUNCTION_CALL else message
        kind = "answer" if role == _FUNCTION_CALL else _KINDS.get(role)
        if kind is None:
            raise MalformedLineError("no_role")
        times = (parse_timestamp(message.get(key)) for key in ("timestamp", "created_at", "create_time"))
        line = TranscriptLine(kind, self._session, timestamp=next((own for own in times if own), time))
        if kind == "result":
            blocks = self._parse_tool_message(message, line)
        else:
            blocks = [*self._parse_parts(message, line), *self._parse_calls(message, line)]
        line.content = _simplify(blocks)
        if not line.content:
            self.skipped["empty"] += 1
            return None
        line.key = self._keys.add(role, line.content)
        self.results |= line.results
        return line

    def _parse_parts(self, message: Mapping[str, Any], line: TranscriptLine) -> Iterator[dict[str, Any]]:
        content = message.get("content", message.get("text"))
        content = message.get("refusal") if content is None else content
        parts = content if isinstance(content, list) else [] if content is None else [content]
        for part in parts:
            block = {"type": "text", "text": part} if isinstance(part, str) else part
            if not isinstance(block, Mapping):
                raise MalformedLineError("no_content")
            yield from self._parse_part(block, line)

    def _parse_part(self, part: Mapping[str, Any], line: TranscriptLine) -> Iterator[dict[str, Any]]:
        kind, text = part.get("type", "text"), part.get("text", part.get("refusal"))
        if kind in {*_TEXT_TYPES, "refusal"} and isinstance(text, str):
            yield from _keep({"type": "text", "text": text})
        elif kind == "file" and isinstance(text, str):
            path, action = part.get("path"), part.get("action")
            default = "written" if line.kind == "answer" else "attached"
            values = {"path": path if isinstance(path, str) else "", "text": text}
            yield {"type": "file", **values, "action": action if isinstance(action, str) else default}
        elif kind in _KEPT_TYPES:
            self._add_tool_block(part, line)
            yield from _keep(dict(part))
        else:
            name = str(kind).removeprefix("input_").removesuffix("_url")
            self.skipped[name[:40] if name.isprintable() and name else "unknown"] += 1

    def _add_tool_block(self, part: Mapping[str, Any], line: TranscriptLine) -> None:
        """Note what the blocks of other interfaces say, which some files hold."""
        call_id, use_id = part.get("id"), part.get("tool_use_id")
        if part["type"] == "tool_use" and isinstance(call_id, str) and (call := parse_call(part)) is not None:
            line.calls[call_id] = call
        if part["type"] == "tool_result" and isinstance(use_id, str):
            line.results[use_id] = parse_result(part, None)

    def _parse_calls(self, message: Mapping[str, Any], line: TranscriptLine) -> Iterator[dict[str, Any]]:
        calls = message.get("tool_calls")
        calls = list(calls) if isinstance(calls, list) else []
        if isinstance(message.get(_FUNCTION_CALL), Mapping):  # the interface before tools
            calls.append({"function": message[_FUNCTION_CALL]})
        for call in calls if line.kind == "answer" else ():
            function = call.get("function", call.get("custom")) if isinstance(call, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(name, str):
                self.malformed["no_call"] += 1
                continue
            call_id = call.get("id")
            call_id = call_id if isinstance(call_id, str) and call_id else f"call-{len(self._uses) + 1}"
            uses = parse_tool_call(call_id, name, function.get("arguments", function.get("input")))
            self._pending[call_id] = None
            self._uses[call_id] = len(uses)
            self._max_lines[call_id] = uses[0].max_lines
            line.calls |= {use.block["id"]: use.call for use in uses if use.call is not None}
            for use in uses:
                yield from _keep(use.block)

    def _parse_tool_message(self, message: Mapping[str, Any], line: TranscriptLine) -> list[dict[str, Any]]:
        """Return the result of a call; without an id it answers the first call that has no result yet."""
        call_id = message.get("tool_call_id")
        if not isinstance(call_id, str) or not call_id:
            call_id = next(iter(self._pending), "call-0")
        self._pending.pop(call_id, None)
        text, result = parse_tool_output(message.get("content"), self._max_lines.get(call_id))
        line.results = {file_id(call_id, number): result for number in range(self._uses.get(call_id, 1))}
        others = [part for part in _as_list(message.get("content")) if isinstance(part, Mapping)]
        for part in others:
            if part.get("type") not in _TEXT_TYPES:
                list(self._parse_part(part, line))
        block = {"type": "tool_result", "tool_use_id": call_id, "content": text}
        return list(_keep(block)) if text.strip() or not others else []


def _as_call(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `function_call` turn of ShareGPT, whose text is the call as JSON, as a message."""
    content = message.get("content")
    try:
        values = json.loads(content) if isinstance(content, str) else content
    except ValueError:
        values = None
    calls = values if isinstance(values, list) else [values]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return {**message, "role": "assistant"}
    return {"role": "assistant", "content": None, "tool_calls": [{"function": call} for call in calls]}


def _keep(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from _as_list(parse_content([block]))


def _simplify(blocks: list[dict[str, Any]]) -> str | list[Any]:
    """Return the content of a message: a text if there is nothing else."""
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        return str(blocks[0]["text"])
    return blocks


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
