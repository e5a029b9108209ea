"""Calls of tools as the interfaces of OpenAI write them, and what such a tool says about its result."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iccm_assets.capture.claude_code.tool_files import MAX_FILE_CHARS, ToolCall, ToolResult, parse_call
from iccm_assets.capture.codex.patches import parse_patch

_MAX_ARGUMENTS = 4 << 20  # characters
_SHELL_FLAGS = frozenset({"-c", "-lc", "-command", "/c"})
_SHOW_LINES = re.compile(
    r"sed[ \t]{1,9}-n[ \t]{1,9}(['\"]?)1,(?P<last>\d{1,6})p\1[ \t]{1,9}(?P<path>[^\s|;&<>'\"()$`*?]{1,500})"
)
# What stands above the output of a command: its exit code, the time that it took.
_OUTPUT_HEADER = re.compile(r"(?:Exit code: |Chunk ID: |Wall time: |Command: |Process exited )")
_OUTPUT_START = re.compile(r"^Output:\n", re.MULTILINE)
_EXIT_CODE = re.compile(r"(?:Exit code: |exited with code )(-?\d{1,9})")
_IS_SHORTENED = re.compile(
    r"^Total output lines: |^\[\.\.\. (?:omitted|\d+)|…\d+ (?:chars|tokens|lines) truncated…"
    r"|\[\.\.\. omitted \d+ of \d+ lines \.\.\.\]",
    re.MULTILINE,
)
_IMAGE_TOOL = "view_image"


@dataclass(frozen=True)
class ToolUse:
    """One `tool_use` block of an answer, and what it does with a file; ``max_lines``: how many it shows."""

    block: dict[str, Any]
    call: ToolCall | None = None
    max_lines: int | None = None


def parse_tool_call(call_id: str, name: str, arguments: object) -> list[ToolUse]:
    """Return the blocks of a call: one, or one a file for a patch.

    ``arguments`` is an object, such an object as JSON, or the text that the tool receives.
    """
    values = _parse_arguments(arguments)
    command = _find_command(values)
    patch = command if command is not None else _find_patch(values)
    if patch is not None and (calls := parse_patch(patch)):
        return [_patch_block(call_id, number, call) for number, call in enumerate(calls)]
    if command is not None:
        values = {**values, "command": command}
        values.pop("cmd", None)
    block = {"type": "tool_use", "id": call_id, "name": name, "input": values}
    if command is not None and (shown := _SHOW_LINES.fullmatch(command.strip())):
        return [ToolUse(block, ToolCall(shown["path"], reads=True), int(shown["last"]))]
    return [ToolUse(block, None if name == _IMAGE_TOOL else parse_call(block))]


def _patch_block(call_id: str, number: int, call: ToolCall) -> ToolUse:
    """Return the block of one file of a patch; the first has the id of the call."""
    values: dict[str, Any] = {"file_path": call.path}
    if call.edits:
        values["edits"] = [{"old_string": old, "new_string": new} for old, new, _ in call.edits]
    return ToolUse(
        {"type": "tool_use", "id": file_id(call_id, number), "name": "apply_patch", "input": values}, call
    )


def file_id(call_id: str, number: int) -> str:
    """Return the id of the block for a file of a patch, from 0."""
    return f"{call_id}/{number}" if number else call_id


def _parse_arguments(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if not isinstance(arguments, str) or len(arguments) > _MAX_ARGUMENTS:
        return {}
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {"input": arguments}


def _find_command(values: Mapping[str, Any]) -> str | None:
    """Return what a call runs in a shell: a text, or a list of words."""
    command = values.get("command", values.get("cmd"))
    if isinstance(command, str):
        return command
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command) or not command:
        return None
    if len(command) >= 3 and command[1].lower() in _SHELL_FLAGS:
        return str(command[-1])
    return "\n".join(command) if command[0] == "apply_patch" else shlex.join(command)


def _find_patch(values: Mapping[str, Any]) -> str | None:
    return next((text for key in ("input", "patch") if isinstance(text := values.get(key), str)), None)


def parse_tool_output(output: object, max_lines: int | None = None) -> tuple[str, ToolResult]:
    """Return what a tool says, and its result; ``max_lines``: of a file that its call shows."""
    if isinstance(output, Mapping):
        output = output.get("content", output.get("output"))
    text = _join_texts(output)
    shown, code = _split_output(text)
    is_whole = _IS_SHORTENED.search(text[:2000]) is None and _IS_SHORTENED.search(shown) is None
    kept = shown if is_whole and len(shown) <= MAX_FILE_CHARS else None
    is_complete = max_lines is None or shown.count("\n") < max_lines
    return text, ToolResult(code not in {None, 0}, kept, is_complete)


def _join_texts(output: object) -> str:
    parts = output if isinstance(output, list) else [output]
    texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _split_output(text: str) -> tuple[str, int | None]:
    """Return the output of a command and its exit code, None where the text names none."""
    if text.startswith('{"output"'):
        try:
            values = json.loads(text)
            metadata = values.get("metadata")
            code = metadata.get("exit_code") if isinstance(metadata, Mapping) else None
            return str(values["output"]), code if isinstance(code, int) else None
        except (ValueError, RecursionError):
            return text, None
    header = _OUTPUT_START.search(text, 0, 2000) if _OUTPUT_HEADER.match(text) else None
    if header is None:
        return text, None
    code_text = _EXIT_CODE.search(text, 0, header.start())
    return text[header.end() :], None if code_text is None else int(code_text[1])
