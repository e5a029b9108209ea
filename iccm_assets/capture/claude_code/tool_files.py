"""Files in a transcript: attached or mentioned by the developer, read or written by a tool.

A file becomes a part of a message, ``{"type": "file", "path", "text", "action"}``; ``action`` is `attached`,
`read` or `written`. A write counts if its result is no error. (C3)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iccm_assets.capture.claude_code.shell_files import parse_shell_command
from iccm_assets.capture.messages import remove_line_numbers

# A longer file is no part: neither its source nor its requirements could be used.
MAX_FILE_CHARS = 256 * 1024
# All edits of a session build at most so many characters.
_MAX_EDITED_CHARS = 16 * 2**20
_PATH_KEYS = ("file_path", "path", "filename", "file_name", "target_file", "file", "uri")
_TEXT_KEYS = ("content", "contents", "file_text", "text", "code_edit")
_READ_NAMES = re.compile(
    r"read|view|(?:get|open|show|fetch|load)\w{0,40}(?:content|source|text)", re.IGNORECASE
)
_PLAN_TOOL = "ExitPlanMode"
_NOTEBOOK_TOOL = "NotebookEdit"
# The Read tool numbers lines: "     1→text", in newer versions "1<tab>text".
_LINE_NUMBER = re.compile(r"[ \t]{0,12}(\d{1,7})(?:→|\t)")
_REMINDER = "<system-reminder>"

FilePart = dict[str, str]


@dataclass(frozen=True)
class ToolCall:
    """What a tool was called to do with a file: write ``text``, apply ``edits``, or show it."""

    path: str
    text: str | None = None
    edits: tuple[tuple[str, str, bool], ...] = ()
    reads: bool = False
    is_plan: bool = False


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool call. ``original``: the file before an edit, where the transcript holds it."""

    failed: bool
    text: str | None = None
    is_complete: bool = True
    original: str | None = None
    plan: str | None = None


def make_part(path: str, text: str, action: str) -> FilePart:
    """Build the part of a message that holds a file."""
    return {"type": "file", "path": path, "text": text, "action": action}


def parse_attachment(attachment: Mapping[str, Any]) -> FilePart | None:
    """Return the file that the developer attached or mentioned, None for any other attachment."""
    if str(attachment.get("type")) not in {"file", "already_read_file", "selected_lines_in_ide"}:
        return None
    content = attachment.get("content")
    file = content.get("file") if isinstance(content, Mapping) else None
    text = file.get("content") if isinstance(file, Mapping) else content
    if isinstance(content, Mapping) and not isinstance(text, str):
        text = content.get("text", content.get("content"))
    names = (attachment.get("displayPath"), attachment.get("filename"))
    path = next((name for name in names if isinstance(name, str) and name), "")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_FILE_CHARS:
        return None
    return make_part(path, text if isinstance(file, Mapping) else clean_shown_file(text), "attached")


def parse_call(block: Mapping[str, Any]) -> ToolCall | None:
    """Return what a ``tool_use`` block does with a file, None if it does nothing that is known."""
    name, values = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(values, Mapping):
        return None
    if name == _PLAN_TOOL:
        path = values.get("planFilePath")
        return ToolCall(path if isinstance(path, str) else "plan.md", _text(values, "plan"), is_plan=True)
    if isinstance(command := values.get("command"), str) and _text(values, *_PATH_KEYS) is None:
        if (shell := parse_shell_command(command)) is None:
            return None
        return ToolCall(shell.path, shell.text, reads=shell.text is None)
    path = _text(values, *_PATH_KEYS)
    if path is None or name == _NOTEBOOK_TOOL:
        return None if path is None else ToolCall(path)
    if edits := _parse_edits(values):
        return ToolCall(path, edits=edits)
    text = _text(values, *_TEXT_KEYS)
    if text is not None:
        return ToolCall(path, text)
    return ToolCall(path, reads=True) if _READ_NAMES.search(name) else None


def drop_file_texts(values: Any) -> Any:
    """Return the input of a tool call without the text that it writes: that text is a part of its own."""
    if not isinstance(values, Mapping):
        return values
    return {key: value for key, value in values.items() if key not in {*_TEXT_KEYS, "plan"}}


def hide_output(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``tool_result`` block whose ``content`` is its ``output``: no reader takes it for a file.

    What a tool shows is a file only where its call says so, and then a part of its own.
    """
    return {("output" if key == "content" else key): value for key, value in block.items()}


def parse_result(block: Mapping[str, Any], details: object) -> ToolResult:
    """Return the result in a ``tool_result`` block; ``details`` is what the line says about it besides."""
    failed = block.get("is_error") is True
    details = details if isinstance(details, Mapping) else {}
    file = details.get("file")
    original, plan = details.get("originalFile"), details.get("plan")
    text, is_complete = _result_text(block.get("content")), True
    if isinstance(file, Mapping) and isinstance(file.get("content"), str):
        text = file["content"]
        start, count, total = (file.get(key) for key in ("startLine", "numLines", "totalLines"))
        if isinstance(start, int) and isinstance(count, int) and isinstance(total, int):
            is_complete = start <= 1 and count >= total
    elif text is not None:
        first = _LINE_NUMBER.match(text)
        is_complete = first is None or int(first[1]) <= 1
        text = clean_shown_file(text)
    return ToolResult(
        failed,
        text if text is not None and len(text) <= MAX_FILE_CHARS else None,
        is_complete,
        original if isinstance(original, str) else None,
        plan if isinstance(plan, str) else None,
    )


def clean_shown_file(text: str) -> str:
    """Return the text of a file as the Read tool shows it: without line numbers and the reminder after it."""
    if _LINE_NUMBER.match(text) is None:
        return text
    lines = text.split("\n")
    end = next((place for place, line in enumerate(lines) if line.startswith(_REMINDER)), len(lines))
    numbered = "\n".join(lines[:end]).rstrip("\n")
    cleaned = remove_line_numbers(numbered)
    return text if cleaned == numbered else cleaned


@dataclass
class FileHistory:
    """The files of one session as far as the transcript shows them, in the order of its messages."""

    calls: dict[str, ToolCall] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)
    _edited_chars: int = 0

    def add_attached(self, part: FilePart) -> None:
        """Note a file that the developer attached."""
        self._texts[part["path"]] = part["text"]

    def apply(self, call_id: str, call: ToolCall, result: ToolResult | None) -> FilePart | None:
        """Apply a tool call; return the file that it wrote, None if it wrote none or failed."""
        self.calls[call_id] = call
        if call.reads or (result is None and not call.is_plan) or (result is not None and result.failed):
            return None
        text = call.text
        if call.is_plan and text is None and result is not None:
            text = result.plan
        if call.edits:
            known = (
                self._texts.get(call.path) if result is None or result.original is None else result.original
            )
            text = self._edit(known, call.edits)
        if text is None or len(text) > MAX_FILE_CHARS:
            self._texts.pop(call.path, None)
            return None
        self._texts[call.path] = text
        return make_part(call.path, text, "written") if text.strip() else None

    def read(self, call_id: str, result: ToolResult) -> FilePart | None:
        """Return the file that a tool read and the result shows."""
        call = self.calls.get(call_id)
        if call is None or not call.reads or result.failed or not (result.text or "").strip():
            return None
        text = result.text or ""
        if result.is_complete:
            self._texts[call.path] = text
        return make_part(call.path, text, "read")

    def _edit(self, text: str | None, edits: tuple[tuple[str, str, bool], ...]) -> str | None:
        """Return the edited text; None if the text before is unknown or an edit does not apply to it."""
        for old, new, replaces_all in edits:
            if not old:
                text = new if not text else None
            elif text is not None:
                text = text.replace(old, new, -1 if replaces_all else 1) if old in text else None
            if text is None or len(text) > MAX_FILE_CHARS:
                return None
            self._edited_chars += len(text)
            if self._edited_chars > _MAX_EDITED_CHARS:
                return None
        return text


def _parse_edits(values: Mapping[str, Any]) -> tuple[tuple[str, str, bool], ...]:
    edits = values.get("edits")
    entries = edits if isinstance(edits, list) else [values]
    return tuple(
        (old, new, entry.get("replace_all") is True)
        for entry in entries
        if isinstance(entry, Mapping)
        and isinstance(old := entry.get("old_string", entry.get("old_str", entry.get("oldText"))), str)
        and isinstance(new := entry.get("new_string", entry.get("new_str", entry.get("newText"))), str)
    )


def _text(values: Mapping[str, Any], *keys: str) -> str | None:
    return next((value for key in keys if isinstance(value := values.get(key), str)), None)


def _result_text(content: object) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [
        block["text"]
        for block in content
        if isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str)
    ]
    return "\n".join(texts) if texts else None
