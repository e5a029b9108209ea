"""Run the SessionEnd hook of the plug-in for Claude Code, as the program runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from iccm_assets.capture.claude_code.plugin_install import PLUGIN
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, TranscriptBuilder, ask

HOOK = PLUGIN / "hooks" / "capture_session.py"


def session_end(transcript: str | Path, session: str = "s", **more: object) -> bytes:
    """The input of the hook."""
    event = {
        "session_id": session,
        "transcript_path": str(transcript),
        "cwd": "/nowhere",
        "hook_event_name": "SessionEnd",
        "reason": "prompt_input_exit",
    }
    return json.dumps(event | more).encode()


def start_hook(home: Path, *, is_timed: bool = False) -> subprocess.Popen[bytes]:
    """Start the hook; its input is still open.

    Only if ``is_timed`` it gives up after its second, which a busy machine may take to write a file.
    """
    script = [str(HOOK)]
    if not is_timed:
        source = HOOK.read_text(encoding="utf-8")
        assert source.count("MAX_SECONDS = 0.9\n") == 1
        script = ["-c", source.replace("MAX_SECONDS = 0.9\n", "MAX_SECONDS = 50.0\n")]
    return subprocess.Popen(
        [sys.executable, "-I", *script, "--home", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
    )


def run_hook(home: Path, event: bytes) -> str:
    """Run the hook and return what it says on standard error; it never fails and prints nothing."""
    process = start_hook(home)
    output, errors = process.communicate(event, timeout=60)
    assert (process.returncode, output) == (0, b"")
    return errors.decode()


def spooled(home: Path) -> list[Path]:
    """The finished files of the spool."""
    return sorted((home / "captured-sessions").glob("*.session"))


def write_session(folder: Path, session: str = "s") -> TranscriptBuilder:
    """Write the transcript of a session with an accepted example."""
    transcript = TranscriptBuilder(session)
    transcript.prompt(ask(ADD))
    transcript.answer(ADD_REQUIREMENTS)
    transcript.write(folder)
    return transcript
