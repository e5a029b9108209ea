"""`iccm import claude-code`: import conversations from transcripts."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from iccm_assets.cli.console import (
    AsJson,
    echo_json,
    echo_json_line,
    err,
    make_table,
    out,
    pluralize,
    print_plain,
    progress_bar,
)
from iccm_assets.cli.context import open_platform
from iccm_assets.cli.env import load_first_day
from iccm_assets.errors import InputError, SkippedFilesError
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from iccm_assets.capture.claude_code.importer import ImportResult, SessionPreview
    from iccm_assets.capture.claude_code.transcripts import Transcript
    from iccm_assets.capture.messages import FilePart

group = typer.Typer(help="Import conversations from other tools.", no_args_is_help=True)
# Typer merges a group with a single command into its parent unless the group has a callback.
group.callback()(lambda: None)

_MAX_NAMED_FILES = 10
# The folder of the messages to subagents, which are not the developer's.
_SUBAGENTS = "subagents"
MAX_TEST_FILES = 2000  # of a repository
_FOREIGN_FOLDERS = frozenset({"node_modules", "site-packages", "venv", "env", "build", "dist", "__pycache__"})
_NO_SUITE = {
    "origin": None,
    "status": "none",
    "reason": "no test file of the session imports the source; a suite is recorded later",
}
_COLLECTED_SUITE = {
    "origin": "collected",
    "status": "unmeasured",
    "reason": "the test files of the session; they are measured before the first score",
}


@dataclass(frozen=True)
class _Source:
    """A file to read; ``path`` is None for standard input, ``listed`` false for a file of a directory."""

    name: str
    path: Path | None
    listed: bool = True

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open the file."""
        return nullcontext(sys.stdin.buffer) if self.path is None else self.path.open("rb")


@dataclass
class _Summary:
    """Counts of the lines and sessions of all files. ``errors``: files that are no transcripts, and why."""

    files: int = 0
    lines: int = 0
    messages: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    without_conversation: list[str] = field(default_factory=list)
    conversations: dict[str, ImportResult] = field(default_factory=dict)

    def add_file(self, source: _Source, transcript: Transcript) -> bool:
        """Count a file; return whether there is anything in it to import."""
        from iccm_assets.capture.claude_code.transcript_kinds import PROMPT_HISTORY

        self.files += 1
        self.lines += transcript.lines
        self.messages += transcript.messages
        self.skipped += transcript.skipped
        self.malformed += transcript.malformed + transcript.foreign
        if not transcript.holds_conversation:
            # Claude Code itself writes files without a conversation: empty ones, titles, its prompt history.
            is_own = set(transcript.foreign) <= {PROMPT_HISTORY} and not transcript.malformed
            is_usual = is_own and not source.listed
            reasons = self.without_conversation if is_usual else self.errors
            reasons.append(f"{source.name} {_explain(transcript)}")
        return transcript.holds_conversation

    def add_sessions(self, sessions: Iterable[ImportResult]) -> None:
        """Add results; of a session in several files the most informative one is kept."""
        for session in sessions:
            known = self.conversations.get(session.session_id)
            if known is None or known.state == "empty" or session.state in {"changed", "refused"}:
                extends_new = known is not None and known.state == "new" and session.state == "changed"
                self.conversations[session.session_id] = (
                    replace(session, state="new") if extends_new else session
                )

    def states(self) -> Counter[str]:
        return Counter(session.state for session in self.conversations.values())

    def forks(self) -> int:
        """Count the sessions that continue another one and add no requirements: they are no examples."""
        return sum(
            session.continues is not None and not session.requirements
            for session in self.conversations.values()
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "skipped": dict(sorted(self.skipped.items())),
            "malformed": dict(sorted(self.malformed.items())),
            "sessions": dict(sorted(self.states().items())),
            "forks_without_requirements": self.forks(),
            "conversations": [asdict(session) for session in self.conversations.values()],
        }

    def raise_errors(self, *, has_sessions: bool) -> None:
        """Raise ``InputError`` if a file is no transcript, or if none of them holds a conversation."""
        errors = self.errors or ([] if has_sessions else self.without_conversation)
        if errors:
            more = len(errors) - _MAX_NAMED_FILES
            names = [*errors[:_MAX_NAMED_FILES], *([f"and {more} more files"] if more > 0 else [])]
            hint = "Give the .jsonl files of Claude Code, which are below ~/.claude/projects."
            kind = SkippedFilesError if has_sessions else InputError
            raise kind("; ".join(names), hint=hint)


@group.command()
def claude_code(
    files: Annotated[
        list[str],
        typer.Argument(help="Transcripts (.jsonl), directories of them, or - for standard input."),
    ],
    user: Annotated[str | None, typer.Option(help="User id of the conversations' author.")] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Folder of the project, whose test files may be the suite of a session's source."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Store nothing; show the source and requirements of each session."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import Claude Code transcripts. A repeated import changes nothing; a longer one extends its session.

    A file of another kind is an error that names the kind; the other files are imported.
    """
    from iccm_assets.capture.conversations import validate_user_id

    validate_user_id(user)
    sources = list(_find_sources(files))
    tests = _read_tests(repository) if repository is not None else ()
    if dry_run:
        _preview(sources, user, tests, as_json)
    else:
        _import(sources, user, tests, as_json)


def _read_tests(repository: Path) -> tuple[FilePart, ...]:
    """Read the test files of a project, without those of installed packages and hidden folders."""
    from iccm_assets.capture.messages import FilePart

    if not repository.is_dir():
        raise InputError(f"{repository} is not a folder")
    parts: list[FilePart] = []
    for folder, inner, names in os.walk(repository):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in _FOREIGN_FOLDERS)
        for name in sorted(names):
            path = Path(folder, name)
            if not (name.startswith("test_") or name.endswith("_test.py")) or path.suffix != ".py":
                continue
            with suppress(OSError, UnicodeDecodeError):  # such a file is no test of this source
                parts.append(FilePart(str(path.relative_to(repository)), path.read_text("utf-8"), "read"))
            if len(parts) > MAX_TEST_FILES:
                raise InputError(f"{repository} holds more than {MAX_TEST_FILES} test files")
    return tuple(parts)


def _import(sources: list[_Source], user: str | None, tests: tuple[FilePart, ...], as_json: bool) -> None:
    from iccm_assets.capture.claude_code.importer import TranscriptImporter

    summary = _Summary()
    importer: TranscriptImporter | None = None
    for source, transcript in _read(sources):
        if summary.add_file(source, transcript):
            if importer is None:
                settings, engine = open_platform()
                first_day = load_first_day(engine, settings)
                importer = TranscriptImporter(engine, settings, user_id=user, repository=tests)
            summary.add_sessions(importer.import_transcript(transcript))
    if importer is not None:
        if as_json:
            echo_json(summary.to_json())
        else:
            _print(summary)
        if (earlier := load_first_day(engine, settings)) < first_day:
            err.print(f"The daily partitions begin on {earlier} from the next start of `iccm dev` on.")
    summary.raise_errors(has_sessions=bool(summary.conversations))


def _preview(sources: list[_Source], user: str | None, tests: tuple[FilePart, ...], as_json: bool) -> None:
    from iccm_assets.capture.claude_code.importer import TranscriptPreview

    summary = _Summary()
    preview = TranscriptPreview(get_settings(), user_id=user, repository=tests)
    for source, transcript in _read(sources):
        if summary.add_file(source, transcript):
            preview.add_transcript(transcript)
    sessions = preview.sessions()
    if as_json:
        for session in sessions:
            echo_json_line(_to_json(session))
    elif sessions:
        title = f"{pluralize(len(sessions), 'session')}, nothing stored"
        out.print(make_table(title, [_to_row(row) for row in sessions]))
    summary.raise_errors(has_sessions=bool(sessions))


def _read(sources: list[_Source]) -> Iterator[tuple[_Source, Transcript]]:
    """Read all files, with a progress bar."""
    from iccm_assets.capture.claude_code.transcripts import read_transcript

    size = sum(source.path.stat().st_size for source in sources if source.path is not None)
    with progress_bar(f"files: {len(sources)}", size or None, in_bytes=True) as update:
        for source in sources:
            name = None if source.path is None else source.path.stem
            with source.open() as stream:
                transcript = read_transcript(stream, lambda n: update(advance=n), name=name)
            yield source, transcript


def _to_json(session: SessionPreview) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "source_code": session.exchange.source,
        "requirements": session.exchange.requirements,
        "suite": _COLLECTED_SUITE if session.suite_origin else _NO_SUITE,
        "reason": session.exchange.reason,
    }


def _to_row(session: SessionPreview) -> dict[str, Any]:
    return {
        "session": session.session_id,
        "source": _first_line(session.exchange.source),
        "requirements": _first_line(session.exchange.requirements),
        "reason": session.exchange.reason,
    }


def _first_line(text: str | None) -> str | None:
    lines = text.strip().splitlines() if text is not None else []
    hidden = len(lines) - 1
    more = f" (and {hidden} more {'line' if hidden == 1 else 'lines'})" if hidden else ""
    return f"{lines[0][:60]}{more}" if lines else None


def _explain(transcript: Transcript) -> str:
    """Say why a file holds no conversation."""
    from iccm_assets.capture.claude_code.transcript_kinds import find_file_kind

    if transcript.foreign:
        return f"is not a Claude Code transcript: {transcript.foreign.most_common(1)[0][0]}"
    if not transcript.lines:
        return "is empty"
    counts = _format_counts(transcript.skipped + transcript.malformed)
    if not transcript.entries:
        return f"is not a Claude Code transcript: {find_file_kind(transcript.head)} ({counts})"
    return f"holds no conversation ({counts})"


def _find_sources(files: list[str]) -> Iterator[_Source]:
    """List the files to read, each once; an unreadable one is an error before anything is stored."""
    known: set[Path] = set()
    for name in files:
        if name == "-":
            yield _Source("standard input", None)
            continue
        paths = [Path(name)]
        is_directory = paths[0].is_dir()
        if is_directory:
            listing = paths[0].rglob("*.jsonl")
            paths = sorted(path for path in listing if path.is_file() and _SUBAGENTS not in path.parts)
        if not paths:
            raise InputError(f"there is no .jsonl file in {name}")
        for path in paths:
            _check_readable(path)
            if path.resolve() not in known:
                known.add(path.resolve())
                yield _Source(str(path), path, listed=not is_directory)


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_file() and not path.is_fifo():
        raise InputError(f"{path} is not a file")


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.most_common()) or "none"


def _print(summary: _Summary) -> None:
    print_plain(
        f"{pluralize(summary.lines, 'line')} in {pluralize(summary.files, 'file')}:"
        f" {pluralize(summary.messages, 'message')};"
        f" skipped: {_format_counts(summary.skipped)}; malformed: {_format_counts(summary.malformed)}"
    )
    print_plain(f"{pluralize(len(summary.conversations), 'session')}: {_format_counts(summary.states())}")
    if forks := summary.forks():
        print_plain(f"{forks} of them continue another session without new requirements: no examples")
    for session in summary.conversations.values():
        if session.reason:
            print_plain(f"session {session.session_id}: {session.reason}")
    for line in summary.without_conversation:
        print_plain(line)
