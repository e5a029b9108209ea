"""`iccm import claude-code`: import conversations from transcripts."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from iccm_assets.cli.console import AsJson, echo_json, print_plain, progress_bar
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import InputError

if TYPE_CHECKING:
    from iccm_assets.capture.claude_code.importer import ImportResult
    from iccm_assets.capture.claude_code.transcripts import Transcript

group = typer.Typer(help="Import conversations from other tools.", no_args_is_help=True)
# Typer merges a group with a single command into its parent unless the group has a callback.
group.callback()(lambda: None)


@dataclass
class _Summary:
    """Counts of the lines and sessions of all files."""

    files: int = 0
    lines: int = 0
    messages: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    useless_files: list[str] = field(default_factory=list)
    conversations: dict[str, ImportResult] = field(default_factory=dict)

    def add(self, name: str, transcript: Transcript, sessions: Iterable[ImportResult]) -> None:
        """Count a file; of a session in several files the most informative result is kept."""
        self.files += 1
        self.lines += transcript.lines
        self.messages += transcript.messages
        self.skipped += transcript.skipped
        self.malformed += transcript.malformed
        if not transcript.entries:
            reason = f"holds no line of a transcript ({_format_counts(transcript.malformed)})"
            self.useless_files.append(f"{name} {reason if transcript.lines else 'is empty'}")
        for session in sessions:
            known = self.conversations.get(session.session_id)
            if known is None or known.state == "empty" or session.state in {"changed", "refused"}:
                extends_new = known is not None and known.state == "new" and session.state == "changed"
                self.conversations[session.session_id] = (
                    replace(session, state="new") if extends_new else session
                )

    def states(self) -> Counter[str]:
        return Counter(session.state for session in self.conversations.values())

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "skipped": dict(sorted(self.skipped.items())),
            "malformed": dict(sorted(self.malformed.items())),
            "sessions": dict(sorted(self.states().items())),
            "conversations": [asdict(session) for session in self.conversations.values()],
        }


@group.command()
def claude_code(
    files: Annotated[
        list[str],
        typer.Argument(help="Transcripts (.jsonl), directories of them, or - for standard input."),
    ],
    user: Annotated[str | None, typer.Option(help="User id of the conversations' author.")] = None,
    as_json: AsJson = False,
) -> None:
    """Import Claude Code transcripts. A repeated import changes nothing; a longer one extends its session."""
    from iccm_assets.capture.claude_code.importer import import_transcript
    from iccm_assets.capture.conversations import validate_user_id

    validate_user_id(user)
    sources = list(_find_sources(files))
    settings, engine = open_platform()
    summary = _Summary()
    size = sum(path.stat().st_size for _, path in sources if path is not None)
    with progress_bar(f"files: {len(sources)}", size or None, in_bytes=True) as update:
        for name, path in sources:
            with _open(path) as stream:
                transcript, sessions = import_transcript(
                    engine, settings, stream, user_id=user, progress=lambda n: update(advance=n)
                )
            summary.add(name, transcript, sessions)
    if len(summary.useless_files) == summary.files:
        raise InputError("; ".join(summary.useless_files[:3]), hint="Give the .jsonl files of Claude Code.")
    if as_json:
        echo_json(summary.to_json())
    else:
        _print(summary)


def _find_sources(files: list[str]) -> Iterator[tuple[str, Path | None]]:
    """List the files to read, each once; an unreadable one is an error before anything is stored."""
    known: set[Path] = set()
    for name in files:
        if name == "-":
            yield "standard input", None
            continue
        paths = [Path(name)]
        if paths[0].is_dir():
            paths = sorted(path for path in paths[0].rglob("*.jsonl") if path.is_file())
        if not paths:
            raise InputError(f"there is no .jsonl file in {name}")
        for path in paths:
            _check_readable(path)
            if path.resolve() not in known:
                known.add(path.resolve())
                yield str(path), path


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_file() and not path.is_fifo():
        raise InputError(f"{path} is not a file")


def _open(path: Path | None) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if path is None else path.open("rb")


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.most_common()) or "none"


def _print(summary: _Summary) -> None:
    print_plain(
        f"{summary.lines} lines in {summary.files} files: {summary.messages} messages;"
        f" skipped: {_format_counts(summary.skipped)}; malformed: {_format_counts(summary.malformed)}"
    )
    print_plain(f"{len(summary.conversations)} sessions: {_format_counts(summary.states())}")
    for session in summary.conversations.values():
        if session.reason:
            print_plain(f"session {session.session_id}: {session.reason}")
    for line in summary.useless_files:
        print_plain(line)
