"""`iccm import claude-code` with valid and invalid lines and files, on a real database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.errors import InputError
from iccm_assets.settings import Settings, get_settings
from iccm_assets_tests.factories import redaction_samples

ASK = "Write requirements for this:\n```python\ndef f(x):\n    return x + 1\n```"


def line(kind: str, content: Any, uuid: str, at: int = 0, session: str = "s1", **more: Any) -> str:
    message = {"role": kind, "content": content, **more.pop("message", {})}
    entry = {"type": kind, "message": message, "uuid": uuid, "sessionId": session, "isSidechain": False}
    entry |= {"timestamp": f"2026-03-01T12:{at // 60:02}:{at % 60:02}.000Z", "cwd": "/w", "version": "2.0.1"}
    return json.dumps({**entry, **more})


def answer(text: str, uuid: str, at: int, **more: Any) -> str:
    return line("assistant", [{"type": "text", "text": text}], uuid, at, **more)


TALK = [
    json.dumps({"type": "summary", "summary": "x", "leafUuid": "u"}),
    json.dumps({"type": "file-history-snapshot", "messageId": "m", "snapshot": {}}),
    line("user", "<command-name>/clear</command-name>", "c1", 0),
    line("user", "Caveat", "c2", 0, isMeta=True),
    line("user", ASK, "u1", 1),
    line(
        "assistant",
        [{"type": "thinking", "thinking": "hm", "signature": "zz"}],
        "a1",
        2,
        message={"id": "m1"},
    ),
    line(
        "assistant",
        [{"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "a.py"}}],
        "a2",
        3,
        message={"id": "m1"},
    ),
    line(
        "user",
        [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "```python\nother = 1\n```"}],
        "u2",
        4,
        toolUseResult={"stdout": "other"},
    ),
    line("user", "do it for the helper", "side", 4, isSidechain=True),
    answer("The function f shall return x plus one.", "a3", 5, message={"id": "m2"}),
    line("assistant", [{"type": "text", "text": "API Error: 529"}], "e1", 6, isApiErrorMessage=True),
    json.dumps({"type": "system", "subtype": "turn_duration", "sessionId": "s1"}),
    line("user", "This session is being continued. ```python\nz = 1\n```", "k1", 7, isCompactSummary=True),
    answer("Anything else? Shall I add tests?", "a4", 8),
]


@pytest.fixture
def transcript(tmp_path: Path):
    def write(*lines: str | bytes, name: str = "s1.jsonl") -> str:
        path = tmp_path / name
        raw = [entry.encode() if isinstance(entry, str) else entry for entry in lines]
        path.write_bytes(b"".join(entry + b"\n" for entry in raw))
        return str(path)

    return write


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        get_settings.cache_clear()
        result = CliRunner().invoke(build_app(), arguments)
        if result.exception is not None:
            raise result.exception
        return result

    yield call
    get_settings.cache_clear()


@pytest.fixture
def load(run, platform: Settings):
    return lambda *arguments: json.loads(run("import", "claude-code", *arguments, "--json").stdout)


def rows(engine: sa.Engine, table: str = "conversations") -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.text(f"select * from iccm.{table} order by id")))


def test_a_transcript_becomes_a_conversation(load, engine, transcript):
    report = load(transcript(*TALK), "--user", "ann")
    assert report["skipped"] == {
        "api_error": 1,
        "command": 1,
        "compact_summary": 1,
        "file-history-snapshot": 1,
        "meta": 1,
        "sidechain": 1,
        "summary": 1,
        "system": 1,
    }
    assert (report["lines"], report["messages"], report["malformed"]) == (len(TALK), 5, {})
    assert report["sessions"] == {"new": 1}
    (row,) = rows(engine)
    assert (row.session_id, row.user_id, row.origin) == ("s1", "ann", "claude-code")
    assert row.timestamp.isoformat() == "2026-03-01T12:00:05+00:00"
    assert [message["role"] for message in row.content] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "assistant",
    ]
    assert [block["type"] for block in row.content[1]["content"]] == ["thinking", "tool_use"]
    assert "signature" not in row.content[1]["content"][0]
    (accepted,) = rows(engine, "requirements")
    assert accepted.text == "The function f shall return x plus one."
    assert report["conversations"][0]["source"] and report["conversations"][0]["requirements"]


def test_importing_again_changes_nothing(load, engine, transcript):
    path = transcript(*TALK)
    load(path)
    before = rows(engine), rows(engine, "requirements")
    report = load(path, path)
    assert (report["files"], report["sessions"]) == (1, {"unchanged": 1})
    assert (rows(engine), rows(engine, "requirements")) == before


def test_a_file_that_grew_extends_its_conversation(load, engine, transcript):
    load(transcript(*TALK[:6]))
    report = load(transcript(*TALK, answer("f shall return x + 1, exactly.", "a9", 90)))
    assert report["sessions"] == {"changed": 1}
    (row,) = rows(engine)
    assert row.content[-1]["content"][0]["text"] == "f shall return x + 1, exactly."
    assert len(row.content) == 6


def test_a_session_in_several_files_is_merged_in_any_order(load, engine, transcript):
    first = transcript(*TALK[:8], name="b.jsonl")
    second = transcript(*TALK[4:], line("user", "thanks", "u9", 99), name="a.jsonl")
    load(first, second)
    forwards = rows(engine)[0]
    assert load(second, first)["sessions"] == load(second)["sessions"] == {"unchanged": 1}
    with engine.begin() as conn:
        conn.execute(sa.text("truncate iccm.conversations, iccm.requirements cascade"))
    load(second)
    load(first)
    backwards = rows(engine)[0]
    assert forwards.content == backwards.content and forwards.metadata == backwards.metadata
    assert len(forwards.content) == 6


def test_several_sessions_in_one_file_are_separated(load, engine, transcript):
    report = load(
        transcript(
            *TALK,
            line("user", ASK, "u1", 1, session="s2"),
            line("user", "hi", "x", 1, session="s3", isSidechain=True),
            line("user", "  ", "y", 1, session="s4"),
        )
    )
    assert report["sessions"] == {"empty": 1, "new": 2}
    reasons = {session["session_id"]: session["reason"] for session in report["conversations"]}
    unanswered = "no requirements (there is no answer)"
    assert reasons == {"s1": "", "s2": unanswered, "s4": "it contains no messages"}
    assert [row.session_id for row in rows(engine)] == ["s1", "s2"]


def test_broken_lines_are_counted_and_the_rest_is_stored(load, engine, transcript):
    report = load(
        transcript(
            TALK[4],
            "{not json",
            b'{"type": "user", "message": "\xff\xfe"}',
            b"\x00\x00\x00",
            b"\x00garbage\x00",
            "[" * 200_000,
            "[1, 2]",
            '"text"',
            json.dumps({"no": "type"}),
            json.dumps({"type": ["user"]}),
            json.dumps({"type": "user", "sessionId": 3, "message": {}}),
            json.dumps({"type": "user", "sessionId": "s1", "message": "hi"}),
            line("user", 7, "w1", 3),
            line("user", [[[1]], None, 3], "w2", 3),
            line("user", [{"type": "x", "y": json.loads("[" * 80 + "]" * 80)}], "w3", 3),
            line("user", "lone \ud800 and \x00 nul", "w4", 3),
            '{"type": "user", "n": ' + "9" * 5000 + "}",
            TALK[9],
            TALK[9][:100],
        )
    )
    assert report["malformed"] == {
        "no_message": 2,
        "no_object": 2,
        "no_session": 1,
        "no_type": 2,
        "not_json": 4,
        "not_utf8": 1,
        "too_deep": 2,
    }
    assert report["messages"] == 3 and report["sessions"] == {"new": 1}
    (row,) = rows(engine)
    assert row.content[1]["content"] == "lone � and � nul"


def test_an_erased_session_or_one_of_another_origin_is_not_changed(load, engine, transcript):
    load(transcript(*TALK))
    for change, state in (
        ("origin = 'gateway'", "other_origin"),
        ("origin = 'claude-code', erased_at = now()", "erased"),
    ):
        with engine.begin() as conn:
            conn.execute(sa.text(f"update iccm.conversations set {change}"))
        before = rows(engine)
        report = load(transcript(*TALK, answer("It shall be new.", "n", 70)))
        assert report["sessions"] == {state: 1} and rows(engine) == before


def test_a_session_that_is_too_large_does_not_stop_the_others(load, engine, transcript):
    huge = line("user", "x" * 5_000_000, "big", 1, session="big")
    report = load(transcript(huge, *TALK))
    assert report["sessions"] == {"new": 1, "refused": 1}
    assert "MiB" in next(
        session["reason"] for session in report["conversations"] if session["state"] == "refused"
    )
    assert [row.session_id for row in rows(engine)] == ["s1"]


def test_files_that_are_not_transcripts_are_reported_in_one_line(run, platform, engine, transcript, tmp_path):
    (tmp_path / "nothing").mkdir()
    cases = {
        str(tmp_path / "missing.jsonl"): "No such file",
        str(tmp_path / "nothing"): "no .jsonl file",
        transcript(name="empty.jsonl"): "is empty",
        transcript(bytes(range(256)) * 50, name="binary.jsonl"): "binary file",
        transcript("hello", "world", name="prose.jsonl"): r"plain text \(2 not json\)",
    }
    for path, message in cases.items():
        with pytest.raises(InputError, match=message):
            run("import", "claude-code", path)
    with pytest.raises(InputError, match="user_id"):
        run("import", "claude-code", transcript(*TALK), "--user", " ")
    assert rows(engine) == []


def test_a_directory_is_searched_and_a_summary_is_printed(run, platform, transcript, tmp_path):
    transcript(*TALK)
    transcript(name="empty.jsonl")
    printed = run("import", "claude-code", str(tmp_path)).stdout
    assert "5 messages" in printed and "1 sidechain" in printed and "1 new" in printed
    assert "empty.jsonl is empty" in printed


def test_no_secret_sample_is_stored_in_any_table(load, engine, transcript):
    samples = redaction_samples.secrets(11, rounds=3) + redaction_samples.personal(11, rounds=3)
    lines = []
    for number, (_, text, _) in enumerate(samples):
        style = number % 4
        content: Any = text
        if style == 1:
            content = [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}]}
            ]
        if style == 2:
            content = [{"type": "text", "text": f"```python\nx = 1\n```\n{text}"}]
        lines.append(line("user", content, f"u{number}", number, session=f"s{number % 7}"))
        if style == 3:
            block = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": text, "n": [1]}}
            lines.append(line("assistant", [block], f"a{number}", number, session=f"s{number % 7}"))
    lines += [answer("f shall do it.", f"end{n}", 3000, session=f"s{n}") for n in range(7)]
    assert load(transcript(*lines))["sessions"] == {"new": 7}
    stored = everything(engine)
    leaked = [kind for kind, _, needles in samples if any(needle in stored for needle in needles)]
    assert len(leaked) <= len(samples) // 100, leaked
    before = rows(engine)
    assert load(transcript(*lines))["sessions"] == {"unchanged": 7}
    assert rows(engine) == before


def everything(engine: sa.Engine) -> str:
    """Read every row of every table of the database as text."""
    with engine.connect() as conn:
        names = conn.execute(
            sa.text("select table_name from information_schema.tables where table_schema = 'iccm'")
        ).scalars()
        texts = [
            text
            for name in names
            for text in conn.execute(sa.text(f'select t::text from iccm."{name}" t')).scalars()
        ]
    return "\n".join(texts).replace('\\"', '"').replace('""', '"')
