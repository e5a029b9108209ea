"""Parse a conversation's content into messages: role, own words, and the files that came with them.

Content is ``[{role, content}]``: a text, null, or a list of parts. Parts are texts, files (``{"type": "file",
"path", "text", "action"}``), and the tool calls and results of the OpenAI and Anthropic interfaces. Anything
else is skipped, never an exception. (C2, M3)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from iccm_assets.capture.injected_text import is_injected_message, remove_injected_text, remove_reasoning

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "ai", "gpt", "model", "bot", "chatbot", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
_PATH_KEYS = ("file_path", "path", "filename", "file_name", "target_file", "notebook_path", "file", "uri")
_CONTENT_KEYS = ("content", "contents", "text", "file_text", "code_edit", "plan")
_MAX_ARGUMENTS = 1 << 20  # characters
# Tools number the lines of a file that they show: "   12→text", "12\ttext".
_LINE_NUMBER = re.compile(r"[ \t]{0,12}(\d{1,7})(?:→|\t|:[ ]?|[ ]?\|[ ]?|[ ]{1,2}|$)")


@dataclass(frozen=True)
class FilePart:
    """A file in a message. ``action``: `attached` by the user, `read` or `written` by a tool."""

    path: str
    text: str
    action: str


@dataclass(frozen=True)
class ChatMessage:
    """One readable message: its role, its own words (may be empty) and its files."""

    role: str
    text: str
    files: tuple[FilePart, ...] = ()


def normalize_role(role: str) -> str:
    """Return the usual name of a role: `user`, `assistant` or `tool`; another one in small letters."""
    name = role.strip().lower()
    return _ROLES.get(name, name)


def parse_messages(content: object) -> list[ChatMessage]:
    """Parse the readable messages of a conversation's ``content``, in order; empty for anything else."""
    paths: dict[str, str] = {}
    messages = (_parse_message(entry, paths) for entry in _as_list(content) if isinstance(entry, Mapping))
    return [message for message in messages if message is not None]


def holds_only_words(content: object) -> bool:
    """Whether no message of a conversation's ``content`` can hold a file: each is one text."""
    return all(
        isinstance(entry, Mapping)
        and isinstance(entry.get("content"), str)
        and entry.get("role") in ("user", "assistant")
        and not entry.get("tool_calls")
        for entry in _as_list(content)
    )


def _parse_message(entry: Mapping[str, Any], paths: dict[str, str]) -> ChatMessage | None:
    """Parse one message; ``paths`` maps the ids of tool calls to the files that they name."""
    role = entry.get("role")
    if not isinstance(role, str):
        return None
    role = normalize_role(role)
    content = entry.get("content")
    if isinstance(content, str) and role != "tool" and not entry.get("tool_calls"):
        return ChatMessage(role, "\n".join(_own_words(role, [content], entry)))
    texts = _part_texts(content)
    parts = (part for part in _as_list(content) if isinstance(part, Mapping))
    files = [file for part in parts for file in _part_files(part, role, paths)]
    files += [file for call in _as_list(entry.get("tool_calls")) for file in _call_files(call, paths)]
    if not texts and not files:
        return None
    if role == "tool":
        files += _shown_files(content, entry.get("tool_call_id"), paths)
        return ChatMessage(role, "", tuple(files))
    return ChatMessage(role, "\n".join(_own_words(role, texts, entry)), tuple(files))


def _own_words(role: str, texts: list[str], entry: Mapping[str, Any]) -> list[str]:
    """Return the texts of a message without those of a program and without reasoning."""
    if role == "user":
        return [] if is_injected_message(entry) else list(map(remove_injected_text, texts))
    return list(map(remove_reasoning, texts)) if role == "assistant" else texts


def _part_texts(content: object) -> list[str]:
    parts = [content] if isinstance(content, str) else _as_list(content)
    return [text for part in parts if (text := _part_text(part)) is not None]


def _part_text(part: object) -> str | None:
    """Return the words of a part: no tool calls, tool results, images, files or reasoning."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or _as_text(part.get("type", "text")) not in _TEXT_TYPES:
        return None
    text = part.get("text")
    text = text.get("value") if isinstance(text, Mapping) else text
    return text if isinstance(text, str) else None


def _part_files(part: Mapping[str, Any], role: str, paths: dict[str, str]) -> Iterator[FilePart]:
    kind, text = part.get("type"), part.get("text")
    if kind == "file" and isinstance(text, str):
        action = part.get("action")
        default = "written" if role == "assistant" else "attached"
        yield FilePart(_as_text(part.get("path")), text, action if isinstance(action, str) else default)
    elif kind == "document" and isinstance(part.get("source"), Mapping):
        data = part["source"].get("data")
        if part["source"].get("type") == "text" and isinstance(data, str):
            yield FilePart(_as_text(part.get("title")), data, "attached")
    elif kind == "tool_use":
        yield from _written_files(part.get("input"), str(part.get("id")), paths)
    elif kind == "tool_result":
        yield from _shown_files(part.get("content"), part.get("tool_use_id"), paths)


def _shown_files(content: object, call_id: object, paths: Mapping[str, str]) -> Iterator[FilePart]:
    """Yield what the result of a tool call shows as files that it read."""
    path = paths.get(str(call_id), "")
    for text in _part_texts(content):
        yield FilePart(path, remove_line_numbers(remove_injected_text(text)), "read")


def _call_files(call: object, paths: dict[str, str]) -> Iterator[FilePart]:
    """Yield the files that an OpenAI tool call writes; its arguments are JSON in a text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(arguments, str) or len(arguments) > _MAX_ARGUMENTS:
        return
    with suppress(ValueError, RecursionError):
        yield from _written_files(json.loads(arguments), str(call.get("id")), paths)


def _written_files(arguments: object, call_id: str, paths: dict[str, str]) -> Iterator[FilePart]:
    if not isinstance(arguments, Mapping):
        return
    path = next((value for key in _PATH_KEYS if isinstance(value := arguments.get(key), str)), "")
    if path:
        paths[call_id] = path
    text = next((value for key in _CONTENT_KEYS if isinstance(value := arguments.get(key), str)), None)
    if text is not None and (path or "plan" in arguments):
        yield FilePart(path, text, "written")


def remove_line_numbers(text: str) -> str:
    """Remove the numbers before all lines, where they count up by one."""
    if not text.lstrip(" \t\n")[:1].isdigit():
        return text
    lines = text.split("\n")
    numbers = [_LINE_NUMBER.match(line) for line in lines]
    if not all(number or not line.strip() for number, line in zip(numbers, lines, strict=True)):
        return text
    counted = [int(number[1]) for number in numbers if number]
    if counted != list(range(counted[0], counted[0] + len(counted))):
        return text
    return "\n".join(
        line[number.end() :] if number else line for number, line in zip(numbers, lines, strict=True)
    )


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
