"""Erasure reaches the sessions that a hook has captured, imported or not."""

from __future__ import annotations

from iccm_assets.capture.claude_code.session_spool import deliver_sessions, list_dead_letters
from iccm_assets.governance.captured_session_erasure import erase_captured_sessions
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets_tests.factories.session_hooks import run_hook, session_end, spooled, write_session


def test_an_erased_session_is_deleted_from_the_spool_and_does_not_return(engine, settings, tmp_path) -> None:
    write_session(tmp_path, "kept")
    write_session(tmp_path, "erased")
    for session in ("kept", "erased"):
        run_hook(settings.home, session_end(tmp_path / f"{session}.jsonl", session))
    assert deliver_sessions(engine, settings).sessions == {"new": 2}
    for session in ("kept", "erased"):
        run_hook(settings.home, session_end(tmp_path / f"{session}.jsonl", session))
    subject = DataSubject("session", "erased")
    erase(engine, subject, actor="test")
    assert erase_captured_sessions(engine, settings.home, subject) == []
    [kept] = spooled(settings.home)
    assert b'"kept"' in kept.read_bytes()
    run_hook(settings.home, session_end(tmp_path / "erased.jsonl", "erased"))
    assert deliver_sessions(engine, settings).sessions == {"unchanged": 1, "erased": 1}
    assert spooled(settings.home) == []


def test_a_session_that_was_never_imported_is_deleted_too(engine, settings, tmp_path) -> None:
    (tmp_path / "s.jsonl").write_text('{"sessionId": "s", "unknown": "kind"}\n')
    run_hook(settings.home, session_end(tmp_path / "s.jsonl"))
    deliver_sessions(engine, settings)
    assert len(list_dead_letters(settings.home)) == 1
    assert "name no user" in erase_captured_sessions(engine, settings.home, DataSubject("user", "u"))[0]
    erase_captured_sessions(engine, settings.home, DataSubject("session", "s"))
    assert [path for path in (settings.home / "captured-sessions").rglob("*") if path.is_file()] == [
        settings.home / "captured-sessions" / "lock"
    ]
