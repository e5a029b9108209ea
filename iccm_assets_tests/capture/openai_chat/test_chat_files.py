"""OpenAI and ShareGPT records become sessions: roles, parts, tools, ids, times and what came with them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest

from iccm_assets.capture.claude_code.session_state import to_messages
from iccm_assets.capture.extraction import extract_exchange
from iccm_assets.capture.openai_chat.records import parse_timestamp
from iccm_assets_tests.factories.chat_records import (
    chat,
    contents,
    read_bytes,
    read_records,
    sharegpt,
    to_lines,
)
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, ask

ANSWERED = [("user", "Hi"), ("assistant", "Hello.")]


def test_a_record_is_a_session_with_what_it_says_of_it():
    suite = {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}
    read = read_records(
        chat(
            ask(ADD),
            ADD_REQUIREMENTS,
            session_id="s-1",
            user="ann",
            created=1_772_366_400,
            model="gpt-4o",
            metadata={"source_code": ADD, "team": "x", "turns": []},
            requirements=ADD_REQUIREMENTS,
            tests=suite,
        )
    )
    turns = read.sessions["s-1"]
    assert contents(read, "s-1") == [("user", ask(ADD)), ("assistant", ADD_REQUIREMENTS)]
    details = turns.details
    assert (details.user_id, details.source_code, details.requirements) == ("ann", ADD, ADD_REQUIREMENTS)
    assert (details.test_suite, details.metadata) == (suite, {"team": "x", "model": "gpt-4o"})
    assert turns.turns[0].timestamp == datetime(2026, 3, 1, 12, tzinfo=UTC)
    exchange = extract_exchange(to_messages(turns.turns), {})
    assert (exchange.source, exchange.requirements) == (ADD, ADD_REQUIREMENTS)


def test_parts_null_content_and_roles_are_read_and_images_counted():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look"}, image, audio, {"type": "text", "text": "!"}],
        },
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [image]},
    ]
    read = read_records({"messages": messages, "id": "a"})
    parts = [{"type": "text", "text": "Look"}, {"type": "text", "text": "!"}]
    assert contents(read, "a") == [
        ("system", "Be brief."),
        ("system", "Be kind."),
        ("user", parts),
        ("assistant", "No."),
    ]
    assert read.skipped == {"audio": 1, "image": 2, "empty": 2} and read.malformed == {}


def tool_call(call_id: str, name: str, arguments: object) -> dict:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def files(read, session: str) -> list[tuple[str, str, str]]:
    blocks = [
        block for _, content in contents(read, session) if isinstance(content, list) for block in content
    ]
    return [(block["action"], block["path"], block["text"]) for block in blocks if block["type"] == "file"]


def test_files_that_tools_read_and_write_are_parts():
    messages = [
        {"role": "user", "content": "Document add.py"},
        tool_call("c1", "read_file", {"path": "add.py"}),
        {"role": "tool", "tool_call_id": "c1", "content": ADD},
        tool_call("c2", "write_file", {"path": "spec.md", "content": ADD_REQUIREMENTS}),
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "written"}]},
        tool_call("c3", "write_file", {"path": "lost.md", "content": "never answered"}),
    ]
    read = read_records({"messages": messages, "id": "a"})
    assert files(read, "a") == [("read", "add.py", ADD), ("written", "spec.md", ADD_REQUIREMENTS)]
    assert [role for role, _ in contents(read, "a")] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    exchange = extract_exchange(to_messages(read.sessions["a"].turns), {})
    assert (exchange.source, exchange.requirements) == (ADD, ADD_REQUIREMENTS)


def test_the_interface_before_tools_is_read():
    call = {"name": "read_file", "arguments": '{"path": "add.py"}'}
    messages = [
        {"role": "user", "content": "Document add.py"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "read_file", "content": ADD},
    ]
    assert files(read_records({"messages": messages, "id": "a"}), "a") == [("read", "add.py", ADD)]


def test_sharegpt_is_read_with_its_tools():
    read = read_records(
        {
            "id": "identity_0",
            "system": "ignored",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Document add.py"},
                {"from": "function_call", "value": '{"name": "read_file", "arguments": {"path": "add.py"}}'},
                {"from": "observation", "value": ADD},
                {"from": "gpt", "value": ADD_REQUIREMENTS},
                {"from": "narrator", "value": "Meanwhile"},
            ],
        }
    )
    assert files(read, "identity_0") == [("read", "add.py", ADD)]
    assert [role for role, _ in contents(read, "identity_0")] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert read.malformed == {"no_role": 1}


def test_logged_requests_and_batches_hold_the_answer():
    response = {"id": "chatcmpl-1", "choices": [{"message": {"role": "assistant", "content": "Hello."}}]}
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], "user": "ann"}
    read = read_records(
        {"session_id": "log", "request": request, "response": response},
        {"session_id": "flat", **request, **{"choices": response["choices"]}},
        {"custom_id": "batch", "body": request, "response": {"status_code": 200, "body": response}},
    )
    assert {name: contents(read, name) for name in read.sessions} == dict.fromkeys(
        ("log", "flat", "batch"), ANSWERED
    )
    assert {turns.details.user_id for turns in read.sessions.values()} == {"ann"}


def test_a_record_without_an_id_is_named_by_its_words():
    first, again, other = (read_records(chat("Hi", end)) for end in ("Hello.", "Hello.", "Good day."))
    assert list(first.sessions) == list(again.sessions) != list(other.sessions)
    response_ids = read_records(chat("Hi", "Hello.", id="chatcmpl-1"), chat("Hi", "Hello.", id="chatcmpl-2"))
    assert list(response_ids.sessions) == list(first.sessions)


def test_requests_that_repeat_the_conversation_above_them_are_one_session():
    steps = ("Hi", "Hello.", "Again", "Hello again.", "Bye", "Bye.")
    read = read_records(*(chat(*steps[:end]) for end in (2, 6, 4)))
    ((name, turns),) = read.sessions.items()
    assert [turn.content for turn in turns.turns] == list(steps) and read.skipped == {"continued": 2}
    read = read_records(*(chat(*steps[:end], session_id="s", model=f"gpt-{end}") for end in (2, 4, 6)))
    assert read.sessions["s"].details.metadata == {"model": "gpt-6"}
    assert [content for _, content in contents(read, "s")] == list(steps) and name != "s"


def test_parts_of_a_session_are_joined_and_two_records_of_one_id_are_not():
    read = read_records(chat("Hi", "Hello.", session_id="s"), chat("More", "Yes.", session_id="s"))
    assert [content for _, content in contents(read, "s")] == ["Hi", "Hello.", "More", "Yes."]
    read = read_records(
        chat("Hi", "Hello.", id=1), chat("More", "Yes.", id=1), chat("Hi", "Hello.", "Bye", id=1)
    )
    assert [content for _, content in contents(read, "1")] == ["Hi", "Hello.", "Bye"]
    assert read.malformed == {"repeated_id": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-03-01T12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01 13:00:00+01:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        (1_772_366_400, datetime(2026, 3, 1, 12, tzinfo=UTC)),
        (1_772_366_400_500, datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("1772366400", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        (float("nan"), None),
        (10**400, None),
        (True, None),
        ("yesterday", None),
        (None, None),
    ],
)
def test_times_are_read_in_every_usual_form(value, expected):
    assert parse_timestamp(value) == expected


ARRAYS = {
    "one line": lambda records: json.dumps(records).encode(),
    "indented": lambda records: json.dumps(records, indent=2).encode(),
    "one record a line": lambda records: (
        b"[\n" + b",\n".join(json.dumps(record).encode() for record in records) + b"\n]\n"
    ),
    "lines": to_lines,
    "windows": lambda records: b"\xef\xbb\xbf" + to_lines(records).replace(b"\n", b"\r\n"),
    "indented objects": lambda records: "\n".join(
        json.dumps(record, indent=1) for record in records
    ).encode(),
}


@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_and_lines_hold_the_same_sessions(form):
    records = [chat("Hi", "Hello.", session_id="a"), sharegpt("Hi", "Hello.", id="b"), chat("Hi", "Hello.")]
    read = read_bytes(ARRAYS[form](records))
    assert (read.lines, len(read.sessions), read.malformed) == (3, 3, {})
    assert all(contents(read, name) == ANSWERED for name in read.sessions)


@pytest.mark.parametrize("form", ["indented", "one record a line", "lines"])
def test_a_broken_record_costs_no_other(form):
    raw = ARRAYS[form]([chat("Hi", "Hello.", session_id=name) for name in "abc"])
    broken = raw.replace(b'"b"', b'"b')
    assert list(read_bytes(broken).sessions) == ["a", "c"]
    latin = read_bytes(raw.replace(b'"b"', b'"\xfc"'))
    assert (list(latin.sessions), latin.malformed) == (["a", "c"], {"not_utf8": 1})
    torn = raw[: raw.index(b'"c"')]
    assert list(read_bytes(torn).sessions) == ["a", "b"] and read_bytes(torn).malformed == {"not_json": 1}


def test_odd_values_are_counted_and_never_an_exception():
    odd = [
        {
            "messages": [
                7,
                None,
                {"role": 3, "content": "x"},
                {"role": "user", "content": 7},
                {"role": "user"},
            ]
        },
        {"messages": [{"role": "user", "content": [[1], None]}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [3, {"function": {"name": 4}}]}]},
        {
            "messages": [{"role": "user", "content": [json.loads("[" * 80 + "]" * 80)]}],
            "id": True,
            "user": [],
        },
        {"messages": []},
        {"conversations": [3, {"from": None, "value": None}]},
        {"neither": 1},
    ]
    raw = (
        to_lines(odd)
        + b"[" * 100_000
        + b'\n{"messages": "\xff"}\n'
        + to_lines([chat("Hi", "Hello.", id="good")])
    )
    read = read_bytes(raw)
    assert contents(read, "good") == ANSWERED and len(read.sessions) == 2
    assert read.malformed == {
        "no_call": 2,
        "no_content": 3,
        "no_message": 3,
        "no_messages": 1,
        "no_role": 2,
        "not_utf8": 1,
        "too_deep": 1,
    }


def test_a_file_of_another_kind_names_it():
    claude = {"type": "user", "sessionId": "s", "message": {"role": "user", "content": "hi"}}
    codex = {"timestamp": "2026-01-01T00:00:00Z", "type": "session_meta", "payload": {"id": "x"}}
    answers = {"custom_id": "1", "response": {"body": {"choices": []}}}
    read = read_records(claude, codex, answers, {"role": "user", "content": "hi"})
    assert read.foreign == {
        "Claude Code transcript": 1,
        "Codex rollout": 1,
        "OpenAI batch output without its prompts": 1,
        "list of chat messages": 1,
    }
    assert not read.holds_conversation


@pytest.mark.slow
@pytest.mark.parametrize("unit", ['{"messages":[', '{"a":1,', "{\n", '{"messages":["\n'])
def test_reading_takes_time_in_proportion_to_the_size(unit):
    def measure(count: int) -> float:
        start = time.process_time()
        read_bytes(b"[\n" + unit.encode() * count)
        return time.process_time() - start

    assert measure(80_000) < 20 * max(measure(8_000), 0.01)
