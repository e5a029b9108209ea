"""Name files that are not Claude Code transcripts, by what their lines hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Entry = Mapping[str, Any]

PROMPT_HISTORY = "prompt history of Claude Code"

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
    if kind.startswith(_CODEX_EVENT_PREFIXES):
        return True
    if kind in {"function_call", "function_call_output", "reasoning", "local_shell_call"}:
        return True
    content = entry.get("content")
    blocks = content if isinstance(content, list) else []
    items = (str(block.get("type")) for block in blocks if isinstance(block, Mapping))
    return kind == "message" and any(item in _CODEX_CONTENT for item in items)


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


# The first that holds names the file.
_KINDS: tuple[tuple[str, Callable[[Entry], bool]], ...] = (
    (
        "OpenTelemetry export (OTLP)",
        lambda entry: any(name in entry for name in ("resourceSpans", "resourceLogs")),
    ),
    ("Codex rollout", _is_codex),
    ("stream-json output of `claude -p`", _is_stream_json),
    ("OpenAI batch file", _has("custom_id", "body")),
    ("ShareGPT conversation", _is_list("conversations")),
    ("Cursor export", _is_cursor),
    ("GitHub Copilot session", _is_copilot),
    ("pi session", _is_pi),
    ("Langfuse or other trace export", _is_trace),
    ("Claude.ai export", _is_list("chat_messages")),
    ("ChatGPT export", _has("mapping")),
    ("Gemini CLI session", _has("projectHash")),
    (PROMPT_HISTORY, _has("display", "pastedContents")),
    ("OpenAI messages file", _is_list("messages")),
    ("OpenAI response file", _is_list("choices")),
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


def find_foreign_kind(entry: Entry) -> str | None:
    """Return what a JSON object belongs to, None if it may be a line of a Claude Code transcript."""
    if "sessionId" in entry and isinstance(entry.get("type"), str):
        return None
    return next((name for name, holds in _KINDS if holds(entry)), None)


def find_file_kind(head: bytes) -> str:
    """Return what a file is that holds no line of a transcript, by its first bytes."""
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
