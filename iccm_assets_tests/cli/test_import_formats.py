"""`iccm import codex` and `iccm import openai`: on a real database, and files of the wrong format."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.errors import InputError, SkippedFilesError
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.settings import Settings, get_settings
from iccm_assets_tests.factories.chat_records import (
    chat,
    export_conversations,
    make_conversations,
    sharegpt,
    to_lines,
    write_records,
)
from iccm_assets_tests.factories.codex_rollouts import RolloutBuilder
from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, SUB, TranscriptBuilder, ask

SUITE = {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}
SECRET = "AKIAIOSFODNN7EXAMPLQ"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str, stdin: bytes = b"") -> str:
        get_settings.cache_clear()
        result = CliRunner().invoke(build_app("import"), ["import", *arguments], input=stdin)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    yield call
    get_settings.cache_clear()


@pytest.fixture
def load(run, platform: Settings):
    return lambda *arguments, **options: json.loads(run(*arguments, "--json", **options))


def rows(engine: sa.Engine, table: str = "conversations") -> list[Any]:
    with engine.connect() as conn:
        return list(conn.execute(sa.text(f"select * from iccm.{table} order by id")))


def rollout() -> RolloutBuilder:
    session = RolloutBuilder("0199-a")
    session.prompt(ask(ADD))
    session.answer(ADD_REQUIREMENTS)
    return session


def transcript() -> TranscriptBuilder:
    session = TranscriptBuilder("claude")
    session.prompt(ask(ADD))
    session.answer(ADD_REQUIREMENTS)
    return session


def test_a_rollout_becomes_a_conversation_and_grows(load, engine, tmp_path):
    session = rollout()
    report = load("codex", session.write(tmp_path), "--user", "ann")
    assert report["sessions"] == {"new": 1} and report["messages"] == 2
    (row,) = rows(engine)
    assert (row.session_id, row.user_id, row.origin) == ("0199-a", "ann", "codex")
    assert row.timestamp.isoformat() == "2026-11-20T10:05:00+00:00"
    assert [text.text for text in rows(engine, "requirements")] == [ADD_REQUIREMENTS]
    before = rows(engine), rows(engine, "requirements")
    assert load("codex", session.write(tmp_path), "--user", "ann")["sessions"] == {"unchanged": 1}
    assert (rows(engine), rows(engine, "requirements")) == before
    session.answer("The function add shall add.")
    assert load("codex", session.write(tmp_path))["sessions"] == {"changed": 1}
    assert rows(engine)[0].content[-1]["content"] == "The function add shall add."


def test_a_record_becomes_a_conversation_with_its_requirements_tests_and_user(load, engine, tmp_path):
    record = chat(
        "Hello", "Hi.", session_id="s", user="bob", created=1_772_366_400, metadata={"source_code": ADD}
    )
    record |= {"requirements": ADD_REQUIREMENTS, "tests": SUITE, "model": "gpt-4o"}
    path = write_records(tmp_path / "chats.jsonl", record)
    report = load("openai", path, "--user", "ann")
    assert report["conversations"][0]["source"] and report["conversations"][0]["requirements"]
    (row,) = rows(engine)
    assert (row.user_id, row.origin, row.metadata["model"]) == ("bob", "openai", "gpt-4o")
    assert row.metadata["source_code"] == ADD and row.timestamp.isoformat() == "2026-03-01T12:00:00+00:00"
    (text,) = rows(engine, "requirements")
    assert (text.text, text.test_suite, text.test_suite_origin) == (ADD_REQUIREMENTS, SUITE, "attached")
    before = rows(engine), rows(engine, "requirements")
    assert load("openai", path, "--user", "ann")["sessions"] == {"unchanged": 1}
    assert (rows(engine), rows(engine, "requirements")) == before


def test_a_longer_record_extends_its_session_and_keeps_what_the_shorter_one_said(load, engine, tmp_path):
    details = {"requirements": ADD_REQUIREMENTS, "metadata": {"source_code": ADD}, "tests": SUITE}
    write_records(tmp_path / "a.jsonl", chat(ask(SUB), "Hi.", session_id="s", **details))
    load("openai", str(tmp_path / "a.jsonl"))
    longer = write_records(tmp_path / "b.jsonl", chat(ask(SUB), "Hi.", "Bye", "Bye.", session_id="s"))
    assert load("openai", longer)["sessions"] == {"changed": 1}
    (row,) = rows(engine)
    assert [message["content"] for message in row.content] == [ask(SUB), "Hi.", "Bye", "Bye."]
    (text,) = rows(engine, "requirements")
    assert (text.text, text.test_suite, row.metadata["source_code"]) == (ADD_REQUIREMENTS, SUITE, ADD)
    assert (
        load("openai", longer)["sessions"] == load("openai", longer, longer)["sessions"] == {"unchanged": 1}
    )


def test_records_without_ids_have_every_word_once_in_any_order(load, engine, tmp_path):
    short = write_records(tmp_path / "short.jsonl", chat(ask(ADD), ADD_REQUIREMENTS))
    longer = write_records(
        tmp_path / "long.jsonl", chat(ask(ADD), ADD_REQUIREMENTS, "Shorter.", "The function add shall add.")
    )
    for order in ((short, longer), (longer, short)):
        for path in (*order, *order):
            report = load("openai", path)
        texts = sorted(message["content"] for row in rows(engine) for message in row.content)
        assert texts == sorted([ask(ADD), ADD_REQUIREMENTS, "Shorter.", "The function add shall add."])
        assert report["sessions"] == {"unchanged": 1} and len(rows(engine, "requirements")) == 2
        with engine.begin() as conn:
            conn.execute(sa.text("truncate iccm.conversations, iccm.requirements cascade"))


def test_the_words_of_an_erased_record_without_an_id_do_not_return_in_a_longer_one(load, engine, tmp_path):
    load("openai", write_records(tmp_path / "short.jsonl", chat(ask(ADD), ADD_REQUIREMENTS)))
    erase(engine, DataSubject("session", rows(engine)[0].session_id), actor="test")
    words = (ask(ADD), ADD_REQUIREMENTS, "Shorter.", "The function add shall add.")
    longer = write_records(tmp_path / "long.jsonl", chat(*words))
    assert load("openai", longer)["sessions"] == {"new": 1}
    row = rows(engine)[-1]
    assert [message["content"] for message in row.content] == list(words[2:])
    assert "source_code" not in row.metadata
    assert load("openai", longer)["sessions"] == {"unchanged": 1}


def test_another_conversation_with_the_id_of_a_record_is_refused(load, run, engine, tmp_path):
    load("openai", write_records(tmp_path / "a.jsonl", sharegpt("Hello", "Hi.", id="0")))
    other = write_records(tmp_path / "b.jsonl", sharegpt("Good day", "Yes?", id="0"))
    report = load("openai", other)
    assert report["sessions"] == {"refused": 1}
    assert report["conversations"][0]["reason"] == "another conversation with this id was imported before"
    assert [message["content"] for message in rows(engine)[0].content] == ["Hello", "Hi."]


def test_an_invalid_suite_or_user_refuses_its_record_only(load, engine, tmp_path):
    path = write_records(
        tmp_path / "a.jsonl",
        chat("Hello", "Hi.", session_id="a", tests={"kind": "unknown"}),
        chat("Hello", "Hi.", session_id="b", user="x\x00"),
        chat("Hello", "Hi.", session_id="c"),
    )
    report = load("openai", path)
    states = {session["session_id"]: session["state"] for session in report["conversations"]}
    assert states == {"a": "refused", "b": "refused", "c": "new"}
    assert "'unknown'" in report["conversations"][0]["reason"]


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_all_conversations_survive_an_export_and_an_import(load, engine, tmp_path, count):
    conversations = make_conversations(7, count)
    path = write_records(tmp_path / "export.jsonl", *export_conversations(conversations))
    assert load("openai", path)["sessions"] == {"new": count}
    accepted = {row.session_id: row for row in rows(engine, "requirements")}
    for conversation, row in zip(conversations, rows(engine), strict=True):
        name = conversation["session_id"]
        assert (row.session_id, row.user_id) == (name, conversation["user_id"])
        assert row.timestamp.isoformat() == conversation["timestamp"]
        assert [(turn["role"], text(turn["content"])) for turn in row.content] == [
            (message["role"], message["content"]) for message in conversation["messages"]
        ]
        assert row.metadata.get("source_code") == conversation["source_code"]
        requirements = conversation["requirements"] or conversation["messages"][-1]["content"]
        assert accepted[name].text == requirements
        is_attached = "requirements" in row.metadata.get("attached", [])
        assert is_attached == (conversation["requirements"] is not None)
        if conversation["tests"] is not None:
            assert (accepted[name].test_suite, accepted[name].test_suite_origin) == (
                conversation["tests"],
                "attached",
            )
    again = write_records(tmp_path / "again.jsonl", *export_conversations(conversations)[:20])
    assert load("openai", again)["sessions"] == {"unchanged": 20}


def text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_secrets_of_both_formats_are_not_stored(load, engine, tmp_path):
    session = RolloutBuilder("s")
    session.prompt(f"The key is {SECRET}")
    session.shell(f"export KEY={SECRET}", f"KEY={SECRET}")
    load("codex", session.write(tmp_path))
    tool = {
        "id": "c",
        "type": "function",
        "function": {"name": "sh", "arguments": f'{{"command": "{SECRET}"}}'},
    }
    record = chat(f"The key is {SECRET}", session_id="t", requirements=f"It shall use {SECRET}.")
    record["messages"].append({"role": "assistant", "content": None, "tool_calls": [tool]})
    load("openai", write_records(tmp_path / "a.jsonl", record))
    stored = str(rows(engine)) + str(rows(engine, "requirements"))
    assert len(rows(engine)) == 2 and SECRET not in stored


def test_a_dry_run_shows_the_same_of_every_format(run, tmp_path):
    paths = {
        "claude-code": transcript().write(tmp_path),
        "codex": rollout().write(tmp_path),
        "openai": write_records(tmp_path / "a.jsonl", chat(ask(ADD), ADD_REQUIREMENTS, session_id="o")),
    }
    shown = {name: json.loads(run(name, path, "--dry-run", "--json")) for name, path in paths.items()}
    assert [line["session_id"] for line in shown.values()] == ["claude", "0199-a", "o"]
    assert {(line["source_code"], line["requirements"]) for line in shown.values()} == {
        (ADD, ADD_REQUIREMENTS)
    }
    record = chat(ask(ADD), ADD_REQUIREMENTS, session_id="o", tests=SUITE)
    suite = json.loads(run("openai", write_records(tmp_path / "b.jsonl", record), "--dry-run", "--json"))[
        "suite"
    ]
    assert (suite["origin"], suite["status"]) == ("attached", "unmeasured")
    mail = {
        "kind": "cases",
        "cases": [{"call": "add", "args": ["jane@acme.io", ""], "expect": "jane@acme.io"}],
    }
    record = chat(ask(ADD), ADD_REQUIREMENTS, session_id="p", tests=mail)
    suite = json.loads(run("openai", write_records(tmp_path / "c.jsonl", record), "--dry-run", "--json"))[
        "suite"
    ]
    assert suite["reason"].endswith("redaction replaced values in it (EMAIL 2), so a test may fail")


def test_tests_that_a_tool_of_codex_wrote_are_the_suite(run, tmp_path):
    session = rollout()
    session.patch(
        "*** Add File: tests/test_calc.py\n+from calc import add\n+\n+\n+def test_add():\n"
        "+    assert add(1, 2) == 3"
    )
    shown = json.loads(run("codex", session.write(tmp_path), "--dry-run", "--json"))
    assert shown["suite"]["origin"] == "collected"


@pytest.mark.parametrize("name", ["codex", "openai"])
def test_standard_input_is_read(load, engine, name):
    raw = {"codex": rollout().to_bytes(), "openai": to_lines([chat(ask(ADD), ADD_REQUIREMENTS)])}[name]
    assert load(name, "-", stdin=raw)["sessions"] == {"new": 1}


FILES = {
    "Claude Code transcript": ("claude-code", transcript().to_bytes()),
    "Codex rollout": ("codex", rollout().to_bytes()),
    "OpenAI messages file": ("openai", to_lines([chat("Hi", "Hello.")])),
    "ShareGPT conversation": ("openai", to_lines([sharegpt("Hi", "Hello.")])),
    "OpenAI batch file": ("openai", to_lines([{"custom_id": "1", "body": chat("Hi")}])),
    "OpenAI messages file (array)": ("openai", json.dumps([chat("Hi", "Hello.")], indent=1).encode()),
    "ShareGPT conversation (array)": ("openai", json.dumps([sharegpt("Hi", "Hello.")]).encode()),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["claude-code", "codex", "openai"])
def test_a_file_of_another_format_names_the_command_that_reads_it(run, tmp_path, name, kind, monkeypatch):
    def refuse() -> None:
        raise AssertionError("no database is needed")

    monkeypatch.setattr("iccm_assets.cli.import_.open_platform", refuse)
    command, raw = FILES[kind]
    if command == name:
        return
    path = tmp_path / "other.jsonl"
    path.write_bytes(raw)
    article = "an" if kind.startswith("OpenAI") else "a"
    expected = f"this is {article} {kind.removesuffix(' (array)')}; use `iccm import {command}`"
    with pytest.raises(InputError, match=expected):
        run(name, str(path))


@pytest.mark.parametrize("name", ["codex", "openai"])
def test_files_that_are_no_format_are_reported(run, tmp_path, name):
    cases = {
        b"": "is empty",
        b"a,b\n1,2\n": r"CSV table \(2 not json\)",
        b'{"a": 1}\n': "file of other JSON objects",
        b'{"resourceSpans": []}\n': "OpenTelemetry export",
        bytes(range(256)) * 40: "binary file",
    }
    path = tmp_path / "x.jsonl"
    for raw, message in cases.items():
        path.write_bytes(raw)
        with pytest.raises(InputError, match=rf"x\.jsonl .*{message}"):
            run(name, str(path), "--dry-run")
    with pytest.raises(InputError, match=r"no \.jsonl file"):
        (tmp_path / "nothing").mkdir()
        run(name, str(tmp_path / "nothing"))


def test_the_good_files_are_imported_and_the_others_named(run, platform, engine, tmp_path):
    good = rollout().write(tmp_path)
    bad = write_records(tmp_path / "bad.jsonl", chat("Hi", "Hello."))
    with pytest.raises(SkippedFilesError, match=r"bad\.jsonl .*use `iccm import openai`"):
        run("codex", bad, good)
    assert [row.session_id for row in rows(engine)] == ["0199-a"]


def test_what_codex_keeps_besides_its_rollouts_is_no_error_in_a_directory(run, platform, tmp_path):
    rollout().write(tmp_path)
    write_records(tmp_path / "history.jsonl", {"session_id": "a", "ts": 1, "text": "hi"})
    write_records(tmp_path / "session_index.jsonl", {"id": "a", "thread_name": "x", "updated_at": "2026"})
    subagent = RolloutBuilder("sub", source={"subagent": "review"})
    subagent.prompt("Review it.")
    subagent.write(tmp_path)
    report = json.loads(run("codex", str(tmp_path), "--json"))
    assert (report["files"], report["errors"], report["sessions"]) == (4, [], {"new": 1})
    with pytest.raises(InputError, match="prompt history of Codex"):
        run("codex", str(tmp_path / "history.jsonl"))


def test_the_command_exits_with_1_for_a_file_of_another_format(tmp_path):
    path = rollout().write(tmp_path)
    result = iccm("import", "openai", path, ICCM_HOME=str(tmp_path / "home"), HOME=str(tmp_path))
    assert result.returncode == 1 and result.stdout == ""
    assert "this is a Codex rollout; use `iccm import codex`" in " ".join(result.stderr.split())
    assert not (tmp_path / "home").exists()
