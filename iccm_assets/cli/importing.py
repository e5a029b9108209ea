"""`iccm import claude-code`: conversations from transcripts (C2)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from iccm_assets.cli.console import AsJson, echo_json, err, out
from iccm_assets.errors import InputError
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from iccm_assets.capture.importing import Imported
    from iccm_assets.capture.transcripts import Transcript

group = typer.Typer(help="Bring in conversations from elsewhere.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="import")


@dataclass
class _Summary:
    """What became of the lines and sessions of all files."""

    files: int = 0
    lines: int = 0
    messages: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    useless_files: list[str] = field(default_factory=list)
    conversations: dict[str, Imported] = field(default_factory=dict)

    def add(self, name: str, transcript: Transcript, sessions: Iterable[Imported]) -> None:
        self.files += 1
        self.lines += transcript.lines
        self.messages += transcript.messages
        self.skipped += transcript.skipped
        self.malformed += transcript.malformed
        if not transcript.entries:
            self.useless_files.append(f"{name} {_uselessness(transcript)}")
        for one in sessions:
            known = self.conversations.get(one.session_id)
            if known is None or known.state == "empty" or one.state in {"changed", "refused"}:
                was_new = known is not None and known.state == "new" and one.state == "changed"
                self.conversations[one.session_id] = _as_new(one) if was_new else one

    def as_json(self) -> dict[str, Any]:
        states = Counter(one.state for one in self.conversations.values())
        return {
            "files": self.files,
            "lines": self.lines,
            "messages": self.messages,
            "skipped": dict(sorted(self.skipped.items())),
            "malformed": dict(sorted(self.malformed.items())),
            "useless_files": self.useless_files,
            "sessions": dict(sorted(states.items())),
            "conversations": [asdict(one) for one in self.conversations.values()],
        }


@group.callback()
def _group() -> None:
    """Bring in conversations from elsewhere."""


@group.command("claude-code")
def claude_code(
    files: Annotated[
        list[str],
        typer.Argument(help="Transcripts (.jsonl), directories of them, or - for standard input."),
    ],
    user: Annotated[str | None, typer.Option(help="The user whose conversations these are.")] = None,
    as_json: AsJson = False,
) -> None:
    """Import Claude Code transcripts. Again, it changes nothing; longer ones extend what is there."""
    from iccm_assets.capture.conversations import check_user
    from iccm_assets.capture.importing import import_file
    from iccm_assets.store.database import connect

    check_user(user)
    sources = list(_sources(files))
    settings = get_settings()
    engine = connect(settings)
    summary = _Summary()
    with _progress(sources) as advance:
        for name, path in sources:
            with _opened(path) as stream:
                summary.add(name, *import_file(engine, settings, stream, user_id=user, progress=advance))
    if len(summary.useless_files) == summary.files:
        raise InputError("; ".join(summary.useless_files[:3]), hint="Give the .jsonl files of Claude Code.")
    if as_json:
        echo_json(summary.as_json())
    else:
        _print(summary)


def _sources(files: list[str]) -> Iterator[tuple[str, Path | None]]:
    """The files to read, each once; one that cannot be read is said before anything is stored."""
    seen: set[Path] = set()
    for given in files:
        if given == "-":
            yield "standard input", None
            continue
        path = Path(given)
        found = _transcripts(path) if path.is_dir() else [path]
        for one in found:
            _check_readable(one)
            if one.resolve() not in seen:
                seen.add(one.resolve())
                yield str(one), one


def _transcripts(directory: Path) -> list[Path]:
    found = sorted(path for path in directory.rglob("*.jsonl") if path.is_file())
    if not found:
        raise InputError(f"there is no .jsonl file in {directory}")
    return found


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_file() and not path.is_fifo():
        raise InputError(f"{path} is not a file")


@contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdin.buffer
        return
    with path.open("rb") as stream:
        yield stream


@contextmanager
def _progress(sources: list[tuple[str, Path | None]]) -> Iterator[Callable[[int], None]]:
    total = sum(path.stat().st_size for _, path in sources if path is not None)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(f"{len(sources)} file{'s' * (len(sources) != 1)}", total=total or None)
        yield lambda size: bar.update(task, advance=size)


def _uselessness(transcript: Transcript) -> str:
    if not transcript.lines:
        return "is empty"
    reasons = ", ".join(f"{count} {_words(kind)}" for kind, count in transcript.malformed.most_common())
    return f"holds no line of a transcript ({reasons})"


def _as_new(one: Imported) -> Imported:
    from dataclasses import replace

    return replace(one, state="new")


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {_words(kind)}" for kind, count in counts.most_common()) or "none"


def _print(summary: _Summary) -> None:
    states = Counter(one.state for one in summary.conversations.values())
    lines = [
        f"{summary.lines} lines in {summary.files} files: {summary.messages} messages;"
        f" skipped: {_counted(summary.skipped)}; malformed: {_counted(summary.malformed)}",
        f"{len(summary.conversations)} sessions: {_counted(states)}",
    ]
    lines += [
        f"session {one.session_id}: {one.reason}" for one in summary.conversations.values() if one.reason
    ]
    lines += summary.useless_files
    for line in lines:
        out.print(escape(line), highlight=False, soft_wrap=True)
