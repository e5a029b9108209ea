"""Import the sessions that the SessionEnd hook has captured, from ``$ICCM_HOME/captured-sessions``. (C5)

The hook (`plugin/hooks/capture_session.py`) writes one file a session: a line of JSON, then the transcript. A
file is removed once its session is stored; what cannot be imported is kept in ``dead-letters``, with its
reason. Without a database all files stay where they are.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from iccm_assets.capture.claude_code.importer import ImportResult, TranscriptImporter
from iccm_assets.capture.claude_code.transcripts import Transcript, read_transcript
from iccm_assets.capture.messages import FilePart
from iccm_assets.capture.repository_tests import read_repository_tests
from iccm_assets.errors import DatabaseError, InputError, first_line
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

SPOOL = "captured-sessions"
DEAD_LETTERS = "dead-letters"
_SUFFIX, _PARTIAL_SUFFIX = ".session", ".partial"
# A hook ends within a second: a file that it has not finished by then it never will.
PARTIAL_AGE_SECONDS = 60.0
_MAX_HEADER_BYTES = 8 << 20
# Reasons to keep a file: the others are results of an import, or of a session in which nobody said anything.
_REFUSED = "refused"


@dataclass
class DeliveryReport:
    """What became of the captured sessions: counts by state of an import, and what could not be imported.

    ``dead_letters`` were moved away, ``unreadable`` files stay in the spool.
    """

    sessions: Counter[str] = field(default_factory=Counter)
    dead_letters: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    waiting: int = 0

    def summary(self) -> str:
        """Describe the report in one line."""
        counts = ", ".join(
            f"{count} {state.replace('_', ' ')}" for state, count in self.sessions.most_common()
        )
        return f"captured sessions: {counts or 'none'}; {len(self.dead_letters)} kept aside"


@dataclass(frozen=True)
class CapturedSession:
    """What a file says about its session."""

    session_id: str
    transcript: Path
    cwd: str
    copied: bool


def list_captured_sessions(home: Path) -> list[Path]:
    """List the files to import, oldest first, with those that a killed hook has left."""
    spool, oldest_partial = home / SPOOL, time.time() - PARTIAL_AGE_SECONDS
    files = []
    for path in spool.iterdir() if spool.is_dir() else ():
        with suppress(FileNotFoundError):  # a hook replaces its earlier copies
            changed_at = path.stat().st_mtime
            is_left = path.suffix == _PARTIAL_SUFFIX and changed_at < oldest_partial
            if path.suffix == _SUFFIX or is_left:
                files.append((changed_at, path))
    return [path for _, path in sorted(files)]


def list_dead_letters(home: Path) -> dict[str, str]:
    """Return the files that could not be imported, with the reason of each."""
    folder = home / SPOOL / DEAD_LETTERS
    names = sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []
    return {str(path): _read_reason(path) for path in names}


def list_session_files(home: Path) -> dict[Path, str | None]:
    """Return every file with content of a session, and the session that its first line names, if it does."""
    files: dict[Path, str | None] = {}
    for path in (home / SPOOL).rglob("*"):
        if path.suffix in {_SUFFIX, _PARTIAL_SUFFIX}:
            with suppress(FileNotFoundError), path.open("rb") as stream:
                files[path] = None
                with suppress(_UnusableFileError):
                    files[path] = _read_header(stream).session_id
    return files


def retry_dead_letters(home: Path) -> int:
    """Put the files that could not be imported back into the spool; return their number."""
    paths = [Path(name) for name in list_dead_letters(home)]
    for path in paths:
        path.replace(home / SPOOL / path.name)
        path.with_suffix(".reason").unlink(missing_ok=True)
    return len(paths)


def deliver_sessions(engine: Engine, settings: Settings) -> DeliveryReport:
    """Import all captured sessions, each once; only one process does so at a time.

    Raises what the database raises; the files not imported yet stay in the spool.
    """
    report = DeliveryReport()
    with _locked(settings.home / SPOOL) as is_ours:
        for path in list_captured_sessions(settings.home) if is_ours else ():
            try:
                report.sessions.update(_deliver(engine, settings, path))
            except (SQLAlchemyError, DatabaseError) as error:
                if not _is_refused(error):
                    raise
                report.dead_letters.append(_keep_aside(path, first_line(getattr(error, "orig", error))))
            except FileNotFoundError:
                continue  # a hook has replaced the file by a longer one
            except OSError as error:
                report.unreadable.append(f"{path.name}: {error.strerror}")
            except Exception as error:  # of whatever a hostile transcript brings about
                report.dead_letters.append(_keep_aside(path, first_line(error)))
    report.waiting = len(list_captured_sessions(settings.home))
    return report


class _UnusableFileError(Exception):
    """A file that cannot be imported, now or later."""


def _deliver(engine: Engine, settings: Settings, path: Path) -> Counter[str]:
    """Import one file and remove it; return its sessions by state."""
    with path.open("rb") as stream:
        captured = _read_header(stream)
        transcript = _read_transcript(stream, captured, path.suffix == _PARTIAL_SUFFIX)
    if transcript.foreign or (not transcript.entries and transcript.lines):
        raise _UnusableFileError("it is not a Claude Code transcript")
    states: Counter[str] = Counter()
    if transcript.holds_conversation:
        tests = _read_tests(captured.cwd)
        importer = TranscriptImporter(engine, settings, repository=tests)
        results = importer.import_transcript(transcript)
        if refused := next((result for result in results if result.state == _REFUSED), None):
            raise _UnusableFileError(f"session {refused.session_id}: {refused.reason}")
        states = Counter(result.state for result in results)
        _log(results)
    else:
        states["empty"] += 1
    path.unlink(missing_ok=True)
    return states


def _read_header(stream: BinaryIO) -> CapturedSession:
    """Parse the first line of a file; raises ``_UnusableFileError``."""
    line = stream.readline(_MAX_HEADER_BYTES)
    try:
        header: dict[str, Any] = json.loads(line)
        return CapturedSession(
            str(header["session_id"]),
            Path(header["transcript_path"]),
            header["cwd"],
            header["copied"] is True,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _UnusableFileError("its first line does not describe a session") from None


def _read_transcript(stream: BinaryIO, captured: CapturedSession, is_partial: bool) -> Transcript:
    """Read the copy, or the original where it is too long to copy or the hook was killed."""
    name = captured.transcript.stem
    if captured.copied and not is_partial:
        return read_transcript(stream, name=name)
    try:
        if not captured.transcript.is_file():
            raise ValueError("is no file any more")
        with captured.transcript.open("rb") as original:
            return read_transcript(original, name=name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _UnusableFileError(f"it was not copied, and {captured.transcript} {reason}") from None


def _read_tests(cwd: str) -> tuple[FilePart, ...]:
    """Read the test files of the session's folder, as it is now; none of a folder without a project."""
    folder = Path(cwd) if cwd else None
    try:
        if folder is None or not folder.is_absolute() or folder in {Path.home(), Path(folder.anchor)}:
            return ()
        return read_repository_tests(folder)
    except (InputError, OSError, ValueError) as error:
        log.debug("no tests of %s are collected: %s", cwd, error)
        return ()


def _log(results: list[ImportResult]) -> None:
    for result in results:
        log.info("captured session %s: %s", result.session_id, result.state)


def _is_refused(error: Exception) -> bool:
    """Whether PostgreSQL refuses the values themselves (SQLSTATE classes 22 and 23), now and later."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(state, str) and state[:2] in {"22", "23"}


def _keep_aside(path: Path, reason: str) -> str:
    """Move a file to the dead letters and return what to report; the reason is written first."""
    folder = path.parent / DEAD_LETTERS
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{path.stem}{_SUFFIX}"
    target.with_suffix(".reason").write_text(reason + "\n", encoding="utf-8", errors="backslashreplace")
    path.replace(target)
    # The reason may quote the conversation, and Dagster's event log keeps these lines.
    log.error("captured session not imported, kept with its reason in %s", target)
    return f"{path.name}: {reason}"


def _read_reason(path: Path) -> str:
    try:
        return path.with_suffix(".reason").read_text(encoding="utf-8").strip()
    except OSError:
        return "no reason recorded"


@contextmanager
def _locked(spool: Path) -> Iterator[bool]:
    """Lock the spool against other deliveries; False if another process does, or there is no spool."""
    if not spool.is_dir():
        yield False
        return
    descriptor = os.open(spool / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
