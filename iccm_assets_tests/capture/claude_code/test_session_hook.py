"""The SessionEnd hook: it never fails, returns within a second, and its copy is complete or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iccm_assets_tests.factories.session_hooks import (
    HOOK,
    run_hook,
    session_end,
    spooled,
    start_hook,
    write_session,
)

MIB = 1 << 20


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home with 'quotes'"


def test_the_copy_is_the_transcript_after_a_line_that_describes_it(tmp_path, home) -> None:
    transcript = write_session(tmp_path)
    assert run_hook(home, session_end(tmp_path / "s.jsonl", cwd="/project")) == ""
    [copy] = spooled(home)
    header, _, content = copy.read_bytes().partition(b"\n")
    assert json.loads(header) == {
        "session_id": "s",
        "transcript_path": str(tmp_path / "s.jsonl"),
        "cwd": "/project",
        "reason": "prompt_input_exit",
        "copied": True,
    }
    assert content == transcript.to_bytes()
    assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(copy.parent.iterdir()) == [copy]


def test_the_same_content_is_captured_once_and_a_longer_one_replaces_it(tmp_path, home) -> None:
    transcript = write_session(tmp_path)
    for _ in range(2):
        run_hook(home, session_end(tmp_path / "s.jsonl"))
    [first] = spooled(home)
    transcript.prompt("And more")
    transcript.write(tmp_path)
    run_hook(home, session_end(tmp_path / "s.jsonl"))
    [second] = spooled(home)
    assert second != first and transcript.to_bytes() in second.read_bytes()


def test_another_content_or_session_replaces_nothing(tmp_path, home) -> None:
    write_session(tmp_path)
    run_hook(home, session_end(tmp_path / "s.jsonl"))
    run_hook(home, session_end(tmp_path / "s.jsonl", session="other"))
    write_session(tmp_path).prompt("rewritten")
    (tmp_path / "s.jsonl").write_bytes(b'{"rewritten": true}\n' * 100)
    run_hook(home, session_end(tmp_path / "s.jsonl"))
    assert len(spooled(home)) == 3


WRONG_INPUTS = {
    "empty": b"",
    "no JSON": b"\xff\xfe{",
    "a list": b"[]",
    "a number": b"7",
    "no session": b'{"transcript_path": "/t.jsonl"}',
    "no transcript": b'{"session_id": "s"}',
    "an empty session": b'{"session_id": "", "transcript_path": "/t.jsonl"}',
    "null": b'{"session_id": null, "transcript_path": null}',
    "a missing transcript": session_end("/nowhere/t.jsonl"),
    "a folder": session_end("/tmp"),
    "a device": session_end("/dev/zero"),
    "another kind of file": session_end("/etc/passwd"),
    "NUL": b'{"session_id": "s\\u0000", "transcript_path": "/t.jsonl"}',
    "half a surrogate pair": b'{"session_id": "\\ud800", "transcript_path": "/\\ud800.jsonl"}',
    "a long name": session_end("/" + "x" * 5000 + ".jsonl"),
    "deep nesting": b"[" * 500_000,
    "huge": b'{"session_id": "' + b"x" * (8 * MIB),
}


@pytest.mark.parametrize("event", WRONG_INPUTS.values(), ids=WRONG_INPUTS.keys())
def test_a_wrong_input_leaves_nothing_and_no_failure(home, event: bytes) -> None:
    message = run_hook(home, event)
    assert message.startswith("session not captured: ") and message.count("\n") == 1
    assert spooled(home) == []


def test_an_empty_transcript_is_nothing_to_capture(tmp_path, home) -> None:
    (tmp_path / "s.jsonl").touch()
    assert run_hook(home, session_end(tmp_path / "s.jsonl")) == ""
    assert spooled(home) == []


def test_a_pipe_in_place_of_the_transcript_does_not_block(tmp_path, home) -> None:
    os.mkfifo(tmp_path / "s.jsonl")
    assert "not a file" in run_hook(home, session_end(tmp_path / "s.jsonl"))


def test_a_home_that_cannot_be_written_is_a_message(tmp_path) -> None:
    write_session(tmp_path)
    (tmp_path / "home").write_text("a file")
    assert "Not a directory" in run_hook(tmp_path / "home", session_end(tmp_path / "s.jsonl"))


def test_an_input_that_never_ends_ends_the_hook_within_a_second(home) -> None:
    process = start_hook(home, is_timed=True)
    begin = time.monotonic()
    assert process.wait(30) == 0
    assert time.monotonic() - begin < 10  # of which the machine may take most to start it
    process.stdin.close()
    assert b"it took too long" in process.stderr.read()


def test_a_transcript_too_long_to_copy_is_named(tmp_path, home) -> None:
    with (tmp_path / "s.jsonl").open("wb") as stream:
        stream.truncate(1 << 30)
    assert run_hook(home, session_end(tmp_path / "s.jsonl")) == ""
    [file] = spooled(home)
    assert json.loads(file.read_bytes())["copied"] is False


def test_concurrent_hooks_leave_every_session_once(tmp_path, home) -> None:
    for number in range(4):
        write_session(tmp_path, f"s{number}")
    hooks = [(start_hook(home), session_end(tmp_path / f"s{n % 4}.jsonl", f"s{n % 4}")) for n in range(16)]
    for process, event in hooks:
        process.stdin.write(event)
        process.stdin.close()
    for process, _ in hooks:
        assert (process.wait(60), process.stderr.read()) == (0, b"")
    files = spooled(home)
    assert sorted(json.loads(file.read_bytes().partition(b"\n")[0])["session_id"] for file in files) == [
        "s0",
        "s1",
        "s2",
        "s3",
    ]
    assert len(list((home / "captured-sessions").iterdir())) == 4


def test_the_hook_costs_at_most_five_starts_of_python(tmp_path, home) -> None:
    write_session(tmp_path)
    event = session_end(tmp_path / "s.jsonl")
    # Without a virtual environment, whose path files make an empty program slow.
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = str(python if python.exists() else sys.executable)

    def measure(*arguments: str) -> float:
        begin = time.perf_counter()
        subprocess.run([interpreter, "-I", *arguments], input=event, env={}, check=True)
        return time.perf_counter() - begin

    runs = [(measure("-c", "pass"), measure(str(HOOK), "--home", str(home))) for _ in range(15)]
    assert min(hook for _, hook in runs) < 5 * min(start for start, _ in runs)
    assert len(spooled(home)) == 1
