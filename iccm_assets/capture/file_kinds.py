"""Name the kind of a file by what its lines hold: what an import reads, and what people take for it. (C8)"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

Entry = Mapping[str, Any]

CLAUDE_CODE = "Claude Code transcript"
CODEX = "Codex rollout"
OPENAI = "OpenAI messages file"
OPENAI_BATCH = "OpenAI batch file"
OPENAI_LOG = "OpenAI request log"
SHAREGPT = "ShareGPT conversation"
# The format that reads a kind of file.
IMPORT_FORMATS = {
    CLAUDE_CODE: "claude-code",
    CODEX: "codex",
    **dict.fromkeys((OPENAI, OPENAI_BATCH, OPENAI_LOG, SHAREGPT), "openai"),
}
PROMPT_HISTORY = "prompt history of Claude Code"
CODEX_HISTORY = "prompt history of Codex"
CODEX_INDEX = "index of the sessions of Codex"

# Files without conversations that a program keeps beside those of a format.
OWN_FILES = {
    "claude-code": frozenset({PROMPT_HISTORY}),
    "codex": frozenset({CODEX_HISTORY, CODEX_INDEX}),
}

_CODEX_TYPES = frozenset({"session_meta", "response_item", "event_msg", "turn_context", "compacted"})
_PI_TYPES = frozenset({"message", "model_change", "thinking_level_change"})
_CODEX_EVENT_PREFIXES = ("thread.", "turn.", "item.")
_CODEX_CONTENT = frozenset({"input_text", "output_text", "summary_text"})


def _has(*names: str) -> Callable[[Entry], bool]:
    return lambda entry: all(name in entry for name in names)


def _is_list(name: str) -> Callable[[Entry], bool]:
    return lambda entry: isinstance(entry.get(name), list)


def _is_codex(entry: Entry) -> bool:
    kind = str(entry.get("type"))
    if kind in _CODEX_TYPES or "record_type" in entry:
        return True
    if "type" not in entry and all(name in entry for name in ("id", "timestamp", "instructions")):
        return True
    if kind in {"function_call", "function_call_output", "reasoning", "local_shell_call"}:
        return True
    content = entry.get("content")
    blocks = content if isinstance(content, list) else []
    items = (str(block.get("type")) for block in blocks if isinstance(block, Mapping))
    return kind == "message" and any(item in _CODEX_CONTENT for item in items)


def _is_codex_output(entry: Entry) -> bool:
    return str(entry.get("type")).startswith(_CODEX_EVENT_PREFIXES)


def _is_claude_code(entry: Entry) -> bool:
    """Whether a line is of a transcript; older versions name no session."""
    kind = str(entry.get("type"))
    if "sessionId" in entry and isinstance(entry.get("type"), str):
        return True
    is_message = kind in {"user", "assistant"} and isinstance(entry.get("message"), Mapping)
    return (is_message and "session_id" not in entry) or (kind == "summary" and "leafUuid" in entry)


def _is_openai(entry: Entry) -> bool:
    return isinstance(entry.get("messages"), list) and "projectHash" not in entry


def _is_openai_log(entry: Entry) -> bool:
    request = entry.get("request")
    return isinstance(request, Mapping) and isinstance(request.get("messages"), list)


def _is_stream_json(entry: Entry) -> bool:
    return isinstance(entry.get("session_id"), str) and "type" in entry


def _is_message(entry: Entry) -> bool:
    return "role" in entry and "content" in entry and not isinstance(entry.get("message"), Mapping)


def _is_trace(entry: Entry) -> bool:
    names = ("traceId", "trace_id", "spanId", "span_kind", "observations", "run_type")
    return any(name in entry for name in names)


def _is_cursor(entry: Entry) -> bool:
    if any(name in entry for name in ("composerId", "bubbleId", "composerData")):
        return True
    return "role" in entry and "type" not in entry and isinstance(entry.get("message"), Mapping)


def _is_copilot(entry: Entry) -> bool:
    return str(entry.get("type")).startswith(("session.", "user.message", "assistant.")) and "data" in entry


def _is_pi(entry: Entry) -> bool:
    return "parentId" in entry and "parentUuid" not in entry and str(entry.get("type")) in _PI_TYPES


# What names the kind of a file that is one JSON document; only its beginning is searched.
_SIGNS = (
    (re.compile(r'"(?:parentUuid|leafUuid)"\s{0,9}:'), CLAUDE_CODE),
    (re.compile(r'"type"\s{0,9}:\s{0,9}"(?:session_meta|response_item)"'), CODEX),
    (re.compile(r'"conversations"\s{0,9}:\s{0,9}\['), SHAREGPT),
    (re.compile(r'"messages"\s{0,9}:\s{0,9}\['), OPENAI),
)
# The first that holds names the file.
_KINDS: tuple[tuple[str, Callable[[Entry], bool]], ...] = (
    (
        "OpenTelemetry export (OTLP)",
        lambda entry: any(name in entry for name in ("resourceSpans", "resourceLogs")),
    ),
    (CLAUDE_CODE, _is_claude_code),
    (CODEX, _is_codex),
    ("output of `codex exec --json`", _is_codex_output),
    ("stream-json output of `claude -p`", _is_stream_json),
    (OPENAI_BATCH, _has("custom_id", "body")),
    ("OpenAI batch output without its prompts", _has("custom_id", "response")),
    (SHAREGPT, _is_list("conversations")),
    (OPENAI, _is_openai),
    (OPENAI_LOG, _is_openai_log),
    ("Cursor export", _is_cursor),
    ("GitHub Copilot session", _is_copilot),
    ("pi session", _is_pi),
    ("Langfuse or other trace export", _is_trace),
    ("Claude.ai export", _is_list("chat_messages")),
    ("ChatGPT export", _has("mapping")),
    ("Gemini CLI session", _has("projectHash")),
    (PROMPT_HISTORY, _has("display", "pastedContents")),
    (CODEX_HISTORY, _has("session_id", "ts", "text")),
    (CODEX_INDEX, _has("id", "thread_name", "updated_at")),
    ("OpenAI response file without its prompts", _is_list("choices")),
    ("list of chat messages", _is_message),
    ("preference data set", _has("chosen", "rejected")),
    ("instruction data set", _has("instruction", "output")),
    ("prompt and completion data set", _has("prompt", "completion")),
)

_MAGIC = (
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"PK\x03\x04", "zip archive"),
    (b"\x1f\x8b", "gzip file"),
    (b"\x28\xb5\x2f\xfd", "zstd file"),
    (b"SQLite format 3\0", "SQLite database"),
    (b"PAR1", "Parquet file"),
    (b"%PDF", "PDF file"),
    (b"\x89PNG", "PNG image"),
)


def find_kind(entry: Entry) -> str | None:
    """Return the kind of file that a JSON object is a line of; None if it is unknown."""
    return next((name for name, holds in _KINDS if holds(entry)), None)


def find_foreign_kind(entry: Entry, own_kinds: Collection[str] = (CLAUDE_CODE,)) -> str | None:
    """Return what a JSON object belongs to, None if it may be a line of a file of ``own_kinds``."""
    kind = find_kind(entry)
    return None if kind in own_kinds else kind


def find_file_kind(head: bytes) -> str:
    """Return what a file is none of whose lines could be read, by its first bytes."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        return "file of blank lines" if head else "empty file"
    if head[1:2] == b"\0" or head[:1] == b"\0":
        return "UTF-16 text" if head[1:40:2].count(0) > 10 or head[0:40:2].count(0) > 10 else "binary file"
    if head.count(0) > len(head) // 100:
        return "binary file"
    return _find_text_kind(head)


def _find_text_kind(head: bytes) -> str:
    try:
        text = head.decode("utf-8", "strict" if len(head) < 4096 else "ignore").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return "binary file or text that is not UTF-8"
    first, _, rest = text.partition("\n")
    if text.startswith(("[", "{")):
        sign = next((kind for pattern, kind in _SIGNS if pattern.search(text)), None)
        if sign is not None:
            return sign
    if text.startswith("["):
        return "JSON array"
    if text.startswith("{"):
        return "JSON document over several lines" if first.strip() == "{" else "file of other JSON objects"
    if text.startswith("<"):
        return "HTML or XML document"
    for separator, name in ((",", "CSV table"), ("\t", "TSV table"), (";", "CSV table")):
        second = rest.partition("\n")[0]
        if first.count(separator) and second.count(separator) >= first.count(separator):
            return name
    return "plain text"
