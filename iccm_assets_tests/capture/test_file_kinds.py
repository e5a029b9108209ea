"""Files of other kinds are named; none of their lines is read as a conversation."""

from __future__ import annotations

import gzip
import io
import json
import re

import pytest

from iccm_assets.capture.claude_code.transcripts import read_transcript
from iccm_assets.capture.file_kinds import find_file_kind
from iccm_assets_tests.factories.transcripts import TranscriptBuilder

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It shall."}]
FOREIGN: dict[str, list[object]] = {
    "Codex rollout": [
        {"timestamp": "2026-01-01T00:00:00Z", "type": "session_meta", "payload": {"id": "x"}},
        {"timestamp": "2026-01-01T00:00:01Z", "type": "response_item", "payload": {"type": "message"}},
        {"type": "event_msg", "payload": {}},
    ],
    "Codex rollout (old)": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"record_type": "state"},
    ],
    "output of `codex exec --json`": [
        {"type": "thread.started", "thread_id": "x"},
        {"type": "item.completed"},
    ],
    "stream-json output of `claude -p`": [
        {"type": "system", "subtype": "init", "session_id": "a"},
        {"type": "user", "message": MESSAGES[0], "session_id": "a", "parent_tool_use_id": None},
        {"type": "assistant", "message": {**MESSAGES[1], "id": "m"}, "session_id": "a"},
        {"type": "result", "result": "x", "session_id": "a"},
    ],
    "OpenAI messages file": [{"messages": MESSAGES}, {"messages": MESSAGES}],
    "OpenAI batch file": [{"custom_id": "1", "method": "POST", "body": {"messages": MESSAGES}}],
    "ShareGPT conversation": [{"conversations": [{"from": "human", "value": "hi"}]}],
    "list of chat messages": list(MESSAGES),
    "Langfuse or other trace export": [{"id": "t", "observations": [], "projectId": "p"}],
    "Langfuse or other trace export (LangSmith)": [{"run_type": "llm", "inputs": {}, "trace_id": "x"}],
    "OpenTelemetry export (OTLP)": [{"resourceSpans": []}],
    "Cursor export": [{"composerId": "c", "conversation": []}, {"bubbleId": "b", "text": "hi"}],
    "Cursor export (agent)": [{"role": "user", "message": {"content": [{"type": "text", "text": "hi"}]}}],
    "GitHub Copilot session": [{"type": "session.start", "data": {}, "id": "a", "parentId": None}],
    "pi session": [{"type": "message", "id": "a", "parentId": None, "message": MESSAGES[0]}],
    "OpenAI response file without its prompts": [{"choices": [{"message": MESSAGES[1]}]}],
    "Langfuse or other trace export (Phoenix)": [{"context": {}, "span_kind": "LLM"}],
    "Gemini CLI session": [{"sessionId": "g", "projectHash": "h", "messages": []}],
    "prompt history of Claude Code": [{"display": "hi", "pastedContents": {}, "project": "/w"}],
}
# Of one kind there are several forms.
_VARIANT = re.compile(r" \((?:old|agent|LangSmith|Phoenix)\)$")


def read(raw: bytes):
    return read_transcript(io.BytesIO(raw), name="file-name")


@pytest.mark.parametrize("name", FOREIGN)
def test_lines_of_other_formats_are_named(name):
    raw = "\n".join(json.dumps(entry) for entry in FOREIGN[name]).encode()
    transcript = read(raw)
    assert set(transcript.foreign) == {_VARIANT.sub("", name)}
    assert not transcript.holds_conversation and transcript.sessions == {}


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "empty file"),
        (b" \n\n", "file of blank lines"),
        ('{"type": "user"}\n'.encode("utf-16"), "UTF-16 text"),
        ('{"type": "user", "message": {"role": "user"}}\n'.encode("utf-16-le"), "UTF-16 text"),
        ('{"type": "user", "message": {"role": "user"}}\n'.encode("utf-16-be"), "UTF-16 text"),
        (json.dumps([{"type": "user"}]).encode(), "JSON array"),
        (json.dumps({"a": 1}, indent=1).encode(), "JSON document over several lines"),
        (b"a,b,c\n1,2,3\n", "CSV table"),
        (b"a\tb\n1\t2\n", "TSV table"),
        (b"<html></html>", "HTML or XML document"),
        (gzip.compress(b"{}", mtime=0), "gzip file"),
        (b"SQLite format 3\0" + bytes(100), "SQLite database"),
        (bytes(range(256)) * 20, "binary file"),
        ("Grüße an alle".encode("latin-1"), "binary file or text that is not UTF-8"),
        (b"User: hi\nAssistant: it shall.\n", "plain text"),
    ],
)
def test_files_without_a_line_of_a_transcript_are_named(raw, kind):
    transcript = read(raw)
    assert not transcript.holds_conversation and find_file_kind(transcript.head) == kind


def test_a_file_without_session_ids_is_the_session_of_its_name():
    transcript = TranscriptBuilder()
    for role in ("user", "assistant"):
        message = {"role": role, "content": f"from {role}", "id": "m"}
        transcript.raw(
            {"type": role, "uuid": f"u-{role}", "timestamp": "2025-01-01T00:00:00Z", "message": message}
        )
    assert list(transcript.read().sessions) == ["file-name"] and transcript.read().messages == 2


def test_lines_without_a_session_belong_to_the_session_above():
    transcript = TranscriptBuilder("named")
    transcript.prompt("Hello")
    transcript.add("user", sessionId=None, message={"role": "user", "content": "again"})
    assert transcript.texts() == ["Hello", "again"] and list(transcript.read().sessions) == ["named"]


def test_a_transcript_with_lines_of_another_format_is_read():
    transcript = TranscriptBuilder()
    transcript.prompt("Hello")
    transcript.raw({"messages": MESSAGES})
    read = transcript.read()
    assert read.messages == 1 and read.foreign == {"OpenAI messages file": 1}


@pytest.mark.parametrize(
    "change", [lambda raw: raw.replace(b"\n", b"\r\n"), lambda raw: b"\xef\xbb\xbf" + raw]
)
def test_other_line_ends_and_a_mark_at_the_beginning_are_accepted(change):
    transcript = TranscriptBuilder()
    transcript.prompt("Hello")
    transcript.answer("Hi.")
    assert read(change(transcript.to_bytes())).messages == 2
