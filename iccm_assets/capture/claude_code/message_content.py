"""The content of a message as it is stored: words, and the blocks of tools, shortened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iccm_assets.capture.claude_code.tool_files import drop_file_texts, hide_output, parse_call

# Inputs and outputs of tools are truncated to this length; images and signatures are dropped.
_MAX_TOOL_TEXT = 4000
_MAX_DEPTH = 60
_DROPPED_KEYS = {"data", "signature"}


class MalformedLineError(Exception):
    """The line does not belong to a transcript; the message is the reason to count."""


def parse_content(content: object) -> str | list[Any] | None:
    """Return the part of a message's content to store; empty if nothing remains, None if it is invalid."""
    if isinstance(content, str):
        return content if content.strip() else ""
    if not isinstance(content, list):
        return None
    blocks = (_parse_block(block) for block in content if isinstance(block, str | Mapping))
    return [block for block in blocks if block]


def _parse_block(block: str | Mapping[str, Any]) -> Any:
    if isinstance(block, str):
        block = {"type": "text", "text": block}
    kind = block.get("type", "text")
    if not isinstance(kind, str):
        return None
    if kind == "text":
        text = block.get("text")
        return {"type": "text", "text": text} if isinstance(text, str) and text.strip() else None
    if kind == "tool_use" and parse_call(block) is not None:
        block = {**block, "input": drop_file_texts(block.get("input"))}
    if kind == "tool_result":
        block = hide_output(block)
    return _shorten(block, 0)


def _shorten(value: Any, depth: int) -> Any:
    """Truncate long texts in a block of a tool, and drop images and signatures."""
    if depth > _MAX_DEPTH:
        raise MalformedLineError("too_deep")
    if isinstance(value, Mapping):
        return {key: _shorten(item, depth + 1) for key, item in value.items() if key not in _DROPPED_KEYS}
    if isinstance(value, list):
        return [_shorten(item, depth + 1) for item in value]
    if not isinstance(value, str) or len(value) <= _MAX_TOOL_TEXT:
        return value
    # Truncate at a space: half a secret would no longer look like one.
    cut = value[:_MAX_TOOL_TEXT]
    cut = cut[: max(cut.rfind(" "), cut.rfind("\n"), 0)]
    return f"{cut}\n[… {len(value) - len(cut)} characters omitted]"


def get_own_text(content: str | list[Any]) -> str:
    """Return the words of a message, without tools and files."""
    if isinstance(content, str):
        return content.strip()
    return "\n".join(block["text"] for block in content if block.get("type") == "text").strip()
