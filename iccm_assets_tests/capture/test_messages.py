"""Messages in the formats of chat programs, and what is no message."""

from __future__ import annotations

import json

import pytest

from iccm_assets.capture.messages import ChatMessage, FilePart, parse_messages, remove_line_numbers


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("words", "words"),
        (["two", {"type": "text", "text": "parts"}], "two\nparts"),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "a\nb"),
        ([{"type": "text", "text": {"value": "nested"}}], "nested"),
        ([{"text": "without a type"}], "without a type"),
        ([{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": "a"}], "a"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}], "a"),
    ],
)
def test_texts_and_parts_are_read(content: object, text: str) -> None:
    assert parse_messages([{"role": "assistant", "content": content}]) == [ChatMessage("assistant", text)]


@pytest.mark.parametrize(
    "content",
    [None, 3, {}, [], [3], [None], [{"type": ["text"], "text": "a"}], [{"type": "text", "text": 3}]],
)
def test_content_without_text_is_no_message(content: object) -> None:
    assert parse_messages([{"role": "user", "content": content}]) == []
    assert parse_messages([{"role": 3, "content": "a"}, "text", None]) == []


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ({"type": "file", "path": "a.py", "text": "x", "action": "read"}, FilePart("a.py", "x", "read")),
        ({"type": "file", "path": "a.py", "text": "x"}, FilePart("a.py", "x", "attached")),
        ({"type": "file", "text": "x"}, FilePart("", "x", "attached")),
        (
            {"type": "document", "title": "a.py", "source": {"type": "text", "data": "x"}},
            FilePart("a.py", "x", "attached"),
        ),
        ({"type": "tool_result", "tool_use_id": "t", "content": "x"}, FilePart("", "x", "read")),
        ({"type": "tool_result", "content": [{"type": "text", "text": "x"}]}, FilePart("", "x", "read")),
    ],
)
def test_files_and_results_are_read(part: dict[str, object], file: FilePart) -> None:
    assert parse_messages([{"role": "user", "content": [part]}]) == [ChatMessage("user", "", (file,))]


@pytest.mark.parametrize(
    "arguments", ["{", "[]", "3", "null", json.dumps({"content": "x"}), "[" * 5000, None, 3]
)
def test_a_call_that_names_no_file_writes_none(arguments: object) -> None:
    calls = [{"id": "t", "function": {"name": "f", "arguments": arguments}}, {"function": 3}, None, "call"]
    assert parse_messages([{"role": "assistant", "content": None, "tool_calls": calls}]) == []


def test_a_result_has_the_path_of_its_call() -> None:
    call = {"id": "t", "function": {"name": "read", "arguments": json.dumps({"path": "src/a.py"})}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t", "content": "x = 1"},
    ]
    assert parse_messages(messages)[-1] == ChatMessage("tool", "", (FilePart("src/a.py", "x = 1", "read"),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("     1→def f():\n     2→    return 1", "def f():\n    return 1"),
        ("1\tdef f():\n2\t    return 1", "def f():\n    return 1"),
        ("9: a\n10: b", "a\nb"),
        ("1 a\n3 b", "1 a\n3 b"),
        ("1. a\nb", "1. a\nb"),
        ("a = 1", "a = 1"),
    ],
)
def test_line_numbers_that_count_up_are_removed(text: str, expected: str) -> None:
    assert remove_line_numbers(text) == expected
