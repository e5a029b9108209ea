"""Parse the items of a Codex rollout: messages, reasoning, calls of tools and their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iccm_assets.capture.claude_code.message_content import MalformedLineError, parse_content
from iccm_assets.capture.claude_code.tool_files import ToolCall, ToolResult
from iccm_assets.capture.codex.tool_calls import ToolUse, file_id, parse_tool_call, parse_tool_output
from iccm_assets.capture.codex.user_words import remove_inserted_text

_TEXT_TYPES = frozenset({"input_text", "output_text", "text"})
_CALL_TYPES = frozenset({"function_call", "custom_tool_call", "local_shell_call"})
_OUTPUT_TYPES = frozenset({"function_call_output", "custom_tool_call_output"})
ITEM_TYPES = frozenset({"message", "reasoning", *_CALL_TYPES, *_OUTPUT_TYPES})


@dataclass
class RolloutItem:
    """One item. ``kind`` is `prompt`, `answer`, `result` or "", for one that is only counted as ``skipped``.

    ``identity``: what a copy of the item has in common with it; None if it is not part of the conversation.
    """

    kind: str = ""
    content: str | list[Any] = ""
    identity: object = None
    skipped: str | None = None
    dropped_parts: Counter[str] = field(default_factory=Counter)
    calls: dict[str, ToolCall] = field(default_factory=dict)
    results: dict[str, ToolResult] = field(default_factory=dict)


class ItemParser:
    """Parses the items of one file in order: the result of a call depends on the call."""

    def __init__(self) -> None:
        self._uses: dict[str, list[ToolUse]] = {}

    def parse(self, item: Mapping[str, Any]) -> RolloutItem:
        """Parse an item; raises ``MalformedLineError`` for one without a role or content."""
        kind = item.get("type")
        parsers: dict[object, Callable[[Mapping[str, Any]], RolloutItem]] = {
            "message": _parse_message,
            "reasoning": _parse_reasoning,
            **dict.fromkeys(_CALL_TYPES, self._parse_call),
            **dict.fromkeys(_OUTPUT_TYPES, self._parse_output),
        }
        if not isinstance(kind, str):
            raise MalformedLineError("no_type")
        if kind not in parsers:
            return RolloutItem(skipped=kind[:40] if kind.isprintable() and kind else "unknown")
        return parsers[kind](item)

    def _parse_call(self, item: Mapping[str, Any]) -> RolloutItem:
        call_id = item.get("call_id", item.get("id"))
        action = item.get("action")
        name = item.get("name", "local_shell" if isinstance(action, Mapping) else None)
        if not isinstance(call_id, str) or not isinstance(name, str):
            raise MalformedLineError("no_call")
        arguments = item.get("arguments", item.get("input", action))
        uses = self._uses[call_id] = parse_tool_call(call_id, name, arguments)
        content = parse_content([use.block for use in uses]) or []
        calls = {use.block["id"]: use.call for use in uses if use.call is not None}
        return RolloutItem("answer", content, ["call", call_id, name, arguments], calls=calls)

    def _parse_output(self, item: Mapping[str, Any]) -> RolloutItem:
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise MalformedLineError("no_call")
        uses = self._uses.get(call_id, [])
        text, result = parse_tool_output(item.get("output"), uses[0].max_lines if uses else None)
        block = {"type": "tool_result", "tool_use_id": call_id, "content": text}
        results = {file_id(call_id, number): result for number in range(max(len(uses), 1))}
        return RolloutItem("result", parse_content([block]) or [], ["output", call_id, text], results=results)


def _parse_message(item: Mapping[str, Any]) -> RolloutItem:
    role, content = item.get("role"), item.get("content")
    parts = [content] if isinstance(content, str) else content
    if not isinstance(role, str) or not isinstance(parts, list):
        raise MalformedLineError("no_message")
    if role not in {"user", "assistant"}:
        return RolloutItem(skipped=role if role in {"developer", "system"} else "other_role")
    texts, dropped = _split_parts(parts)
    words = [remove_inserted_text(text) for text in texts] if role == "user" else texts
    words = [text for text in words if text.strip()]
    if not words:
        is_inserted = any(text.strip() for text in texts)
        reason = "inserted" if is_inserted else None if dropped else "empty"
        return RolloutItem(skipped=reason, dropped_parts=dropped)
    kept = words[0] if len(words) == 1 else [{"type": "text", "text": text} for text in words]
    return RolloutItem(
        "prompt" if role == "user" else "answer", kept, ["message", role, words], dropped_parts=dropped
    )


def _split_parts(parts: list[Any]) -> tuple[list[str], Counter[str]]:
    """Return the texts of a message, and the number of its other parts by type."""
    texts: list[str] = []
    dropped: Counter[str] = Counter()
    for part in parts:
        values = part if isinstance(part, Mapping) else {"type": "text", "text": part}
        kind, text = values.get("type"), values.get("text")
        if kind in _TEXT_TYPES and isinstance(text, str):
            texts.append(text)
        else:
            dropped[str(kind).removeprefix("input_")[:40]] += 1
    return texts, dropped


def _parse_reasoning(item: Mapping[str, Any]) -> RolloutItem:
    parts = [part for key in ("summary", "content") if isinstance(item.get(key), list) for part in item[key]]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    text = "\n".join(text for text in texts if isinstance(text, str)).strip()
    identity = ["reasoning", text, item.get("encrypted_content")]
    if not text:
        return RolloutItem(identity=identity, skipped="reasoning")
    return RolloutItem("answer", parse_content([{"type": "thinking", "thinking": text}]) or [], identity)
