"""Captured sessions arrive in `conversations` exactly once; what cannot be imported is kept with a reason."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from iccm_assets.capture.claude_code.session_spool import (
    deliver_sessions,
    list_captured_sessions,
    list_dead_letters,
    retry_dead_letters,
)
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.session_hooks import (
    run_hook,
    session_end,
    spooled,
    start_hook,
    write_session,
)
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS

TEST_FILE = "from sums import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"


def conversations(engine: sa.Engine) -> list[sa.Row]:
    query = """
        select c.session_id, c.origin, c.content, r.text, r.test_suite_origin from iccm.conversations c
        left join iccm.requirements r on r.session_id = c.session_id and r.kind = 'accepted'
        order by c.session_id
    """
    with engine.connect() as conn:
        return list(conn.execute(sa.text(query)))


def capture(settings: Settings, folder: Path, session: str = "s", **more: object) -> None:
    assert run_hook(settings.home, session_end(folder / f"{session}.jsonl", session, **more)) == ""


def test_a_captured_session_arrives_with_the_tests_of_its_folder(engine, settings, tmp_path) -> None:
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    (project / "tests" / "test_sums.py").write_text(TEST_FILE)
    transcript = write_session(tmp_path)
    transcript.prompt("My key is AKIAQ3EGVWTNPZ5RXK7M and my address is jane@example.com")
    transcript.write(tmp_path)
    capture(settings, tmp_path, cwd=str(project))
    report = deliver_sessions(engine, settings)
    assert (report.sessions, report.dead_letters, report.waiting) == ({"new": 1}, [], 0)
    [row] = conversations(engine)
    assert (row.session_id, row.origin, row.text) == ("s", "claude-code", ADD_REQUIREMENTS)
    assert row.test_suite_origin == "collected"
    assert ADD.splitlines()[0] in str(row.content)
    assert "jane@example.com" not in str(row.content) and "AKIAQ3EGVWTNPZ5RXK7M" not in str(row.content)
    assert spooled(settings.home) == []


def test_a_session_captured_twice_and_resumed_is_one_conversation(engine, settings, tmp_path) -> None:
    transcript = write_session(tmp_path)
    capture(settings, tmp_path)
    assert deliver_sessions(engine, settings).sessions == {"new": 1}
    capture(settings, tmp_path)
    assert deliver_sessions(engine, settings).sessions == {"unchanged": 1}
    transcript.prompt("Thank you")
    transcript.write(tmp_path)
    capture(settings, tmp_path)
    assert deliver_sessions(engine, settings).sessions == {"changed": 1}
    assert deliver_sessions(engine, settings).sessions == {}
    [row] = conversations(engine)
    assert "Thank you" in str(row.content)


def test_without_a_database_nothing_is_lost(engine, settings, tmp_path) -> None:
    for session in ("a", "b"):
        write_session(tmp_path, session)
        capture(settings, tmp_path, session)
    away = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:9/none")
    with pytest.raises(OperationalError):
        deliver_sessions(away, settings)
    assert len(spooled(settings.home)) == 2 and list_dead_letters(settings.home) == {}
    assert deliver_sessions(engine, settings).sessions == {"new": 2}
    assert [row.session_id for row in conversations(engine)] == ["a", "b"]


def test_what_cannot_be_imported_is_kept_with_its_reason_and_holds_up_nothing(
    engine, settings, tmp_path
) -> None:
    (tmp_path / "other.jsonl").write_text('{"role": "user", "content": "hello"}\n' * 3)
    (tmp_path / "binary.jsonl").write_bytes(os.urandom(5000))
    write_session(tmp_path, "good")
    for session in ("other", "binary", "good"):
        capture(settings, tmp_path, session)
    damaged = settings.home / "captured-sessions" / "0-0-0.session"
    damaged.write_bytes(b"no header")
    report = deliver_sessions(engine, settings)
    assert report.sessions == {"new": 1}
    assert len(report.dead_letters) == 3 and report.waiting == 0
    kept = list_dead_letters(settings.home)
    assert sorted(kept.values()) == [
        "it is not a Claude Code transcript",
        "it is not a Claude Code transcript",
        "its first line does not describe a session",
    ]
    assert deliver_sessions(engine, settings).dead_letters == []
    assert retry_dead_letters(settings.home) == 3
    assert len(deliver_sessions(engine, settings).dead_letters) == 3


def test_a_session_too_large_to_store_is_kept(engine, settings, tmp_path) -> None:
    transcript = write_session(tmp_path)
    for _ in range(12):
        transcript.prompt("word " * 100_000)
    transcript.write(tmp_path)
    capture(settings, tmp_path)
    [line] = deliver_sessions(engine, settings).dead_letters
    assert "MiB" in line
    assert conversations(engine) == []


def test_a_session_without_a_message_is_dropped(engine, settings, tmp_path) -> None:
    (tmp_path / "s.jsonl").write_text('{"type": "summary", "summary": "x", "leafUuid": "u"}\n')
    capture(settings, tmp_path)
    assert deliver_sessions(engine, settings).sessions == {"empty": 1}
    assert spooled(settings.home) == [] and list_dead_letters(settings.home) == {}


def test_what_was_too_long_to_copy_is_read_from_its_place(engine, settings, tmp_path) -> None:
    write_session(tmp_path)
    capture(settings, tmp_path)
    [path] = spooled(settings.home)
    header = path.read_bytes().partition(b"\n")[0]
    path.write_bytes(header.replace(b'"copied": true', b'"copied": false') + b"\n")
    assert deliver_sessions(engine, settings).sessions == {"new": 1}
    path.write_bytes(header.replace(b'"copied": true', b'"copied": false') + b"\n")
    (tmp_path / "s.jsonl").unlink()
    [line] = deliver_sessions(engine, settings).dead_letters
    assert "it was not copied" in line


def test_what_a_killed_hook_began_is_read_from_its_place(engine, settings, tmp_path) -> None:
    write_session(tmp_path)
    capture(settings, tmp_path)
    [path] = spooled(settings.home)
    partial = path.with_name("x-1-y.partial")
    partial.write_bytes(path.read_bytes()[:-20])
    path.unlink()
    assert list_captured_sessions(settings.home) == []  # it may still be at work
    os.utime(partial, (time.time() - 3600,) * 2)
    assert deliver_sessions(engine, settings).sessions == {"new": 1}
    assert not partial.exists()


def test_a_hook_that_is_killed_loses_no_session_of_others(engine, settings, tmp_path) -> None:
    write_session(tmp_path)
    process = start_hook(settings.home)
    process.kill()
    process.wait()
    capture(settings, tmp_path)
    assert deliver_sessions(engine, settings).sessions == {"new": 1}


def test_a_folder_without_a_project_has_no_tests(engine, settings, tmp_path) -> None:
    for number, cwd in enumerate(("", "/", "relative", "/nowhere/at/all", "~", "\udce4")):
        write_session(tmp_path, f"s{number}")
        run_hook(settings.home, session_end(tmp_path / f"s{number}.jsonl", f"s{number}", cwd=cwd))
    assert deliver_sessions(engine, settings).sessions == {"new": 6}
    assert {row.test_suite_origin for row in conversations(engine)} == {None}


def test_a_file_that_cannot_be_read_stays_and_holds_up_nothing(engine, settings, tmp_path) -> None:
    spool = settings.home / "captured-sessions"
    (spool / "0-0-0.session").mkdir(parents=True)  # root reads everything else
    write_session(tmp_path)
    capture(settings, tmp_path)
    report = deliver_sessions(engine, settings)
    assert (report.sessions, report.dead_letters, report.waiting) == ({"new": 1}, [], 1)
    assert report.unreadable == ["0-0-0.session: Is a directory"]


def test_two_deliveries_at_a_time_are_one(engine, settings, tmp_path) -> None:
    write_session(tmp_path)
    capture(settings, tmp_path)
    with (settings.home / "captured-sessions" / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = deliver_sessions(engine, settings)
    assert (report.sessions, report.waiting) == ({}, 1)
    assert deliver_sessions(engine, settings).sessions == {"new": 1}
