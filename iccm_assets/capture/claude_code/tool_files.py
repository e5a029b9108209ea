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
    text, is_shown = _attached_text(attachment.get("content"))
    names = (attachment.get("displayPath"), attachment.get("filename"))
    path = next((name for name in names if isinstance(name, str) and name), "")
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_FILE_CHARS:
        return None
    return make_part(path, clean_shown_file(text) if is_shown else text, "attached")


def _attached_text(content: object) -> tuple[object, bool]:
    """Return the text in an attachment, and whether it is as the Read tool shows it."""
    if not isinstance(content, Mapping):
        return content, True
    file = content.get("file")
    text = file.get("content") if isinstance(file, Mapping) else None
    if not isinstance(text, str):
        text = content.get("text", content.get("content"))
    return text, not isinstance(file, Mapping)


def parse_call(block: Mapping[str, Any]) -> ToolCall | None:
    """Return what a ``tool_use`` block does with a file, None if it does nothing that is known."""
    name, values = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(values, Mapping):
        return None
    if name == _PLAN_TOOL:
        path = values.get("planFilePath")
        return ToolCall(path if isinstance(path, str) else "plan.md", _text(values, "plan"), is_plan=True)
    if (path := _text(values, *_PATH_KEYS)) is not None:
        return _parse_file_call(name, path, values)
    command = values.get("command")
    shell = parse_shell_command(command) if isinstance(command, str) else None
    return None if shell is None else ToolCall(shell.path, shell.text, reads=shell.text is None)


def _parse_file_call(name: str, path: str, values: Mapping[str, Any]) -> ToolCall | None:
    if name == _NOTEBOOK_TOOL:
        return ToolCall(path)
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
    details = details if isinstance(details, Mapping) else {}
    text, is_complete = _shown_file(block.get("content"), details.get("file"))
    return ToolResult(
        block.get("is_error") is True,
        text if text is not None and len(text) <= MAX_FILE_CHARS else None,
        is_complete,
        _text(details, "originalFile"),
        _text(details, "plan"),
    )


def _shown_file(content: object, file: object) -> tuple[str | None, bool]:
    """Return the text that a result shows and whether it is complete; the line may hold the ``file``."""
    if isinstance(file, Mapping) and isinstance(file.get("content"), str):
        return file["content"], _is_whole(file)
    if (text := _result_text(content)) is None:
        return None, True
    first = _LINE_NUMBER.match(text)
    return clean_shown_file(text), first is None or int(first[1]) <= 1


def _is_whole(file: Mapping[str, Any]) -> bool:
    start, count, total = (file.get(key) for key in ("startLine", "numLines", "totalLines"))
    if isinstance(start, int) and isinstance(count, int) and isinstance(total, int):
        return start <= 1 and count >= total
    return True


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
        # A plan is written before its result; every other call counts with one.
        result = result or ToolResult(failed=not call.is_plan)
        if call.reads or result.failed:
            return None
        text = self._written_text(call, result)
        if text is None or len(text) > MAX_FILE_CHARS:
            self._texts.pop(call.path, None)
            return None
        self._texts[call.path] = text
        return make_part(call.path, text, "written") if text.strip() else None

    def _written_text(self, call: ToolCall, result: ToolResult) -> str | None:
        if call.edits:
            known = self._texts.get(call.path) if result.original is None else result.original
            return self._edit(known, call.edits)
        return result.plan if call.is_plan and call.text is None else call.text

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
