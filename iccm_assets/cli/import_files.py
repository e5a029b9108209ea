"""The formats that `iccm import` reads, and the files to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from iccm_assets.cli.console import progress_bar
from iccm_assets.errors import InputError

if TYPE_CHECKING:
    from iccm_assets.capture.claude_code.transcripts import Transcript

# The folder of the messages to subagents, which are not the developer's.
_SUBAGENTS = "subagents"


@dataclass(frozen=True)
class ImportFormat:
    """A format. ``name`` is also the origin of its conversations; ``reader`` is `module:function`."""

    name: str
    label: str
    hint: str
    reader: str

    def load_reader(self) -> Any:
        """Import the function that reads a file; commands that read none stay fast."""
        module, _, function = self.reader.partition(":")
        return getattr(import_module(module), function)


CLAUDE_CODE = ImportFormat(
    "claude-code",
    "Claude Code transcript",
    "Give the .jsonl files of Claude Code, which are below ~/.claude/projects.",
    "iccm_assets.capture.claude_code.transcripts:read_transcript",
)
CODEX = ImportFormat(
    "codex",
    "Codex rollout",
    "Give the rollout-*.jsonl files of Codex, which are below ~/.codex/sessions.",
    "iccm_assets.capture.codex.rollouts:read_rollout",
)
OPENAI = ImportFormat(
    "openai",
    "file of OpenAI or ShareGPT conversations",
    'Give JSON lines with "messages" or "conversations", one conversation a line, or an array of them.',
    "iccm_assets.capture.openai_chat.chat_files:read_chats",
)


@dataclass(frozen=True)
class ImportFile:
    """A file to read; ``path`` is None for standard input, ``listed`` false for a file of a directory."""

    name: str
    path: Path | None
    listed: bool = True

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open the file."""
        return nullcontext(sys.stdin.buffer) if self.path is None else self.path.open("rb")


def read_files(files: list[ImportFile], file_format: ImportFormat) -> Iterator[tuple[ImportFile, Transcript]]:
    """Read all files, with a progress bar."""
    read = file_format.load_reader()
    size = sum(file.path.stat().st_size for file in files if file.path is not None)
    with progress_bar(f"files: {len(files)}", size or None, in_bytes=True) as update:
        for file in files:
            name = None if file.path is None else file.path.stem
            with file.open() as stream:
                transcript = read(stream, lambda n: update(advance=n), name=name)
            yield file, transcript


def find_files(names: list[str]) -> Iterator[ImportFile]:
    """List the files to read, each once; an unreadable one is an error before anything is stored."""
    known: set[Path] = set()
    for name in names:
        if name == "-":
            yield ImportFile("standard input", None)
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
                yield ImportFile(str(path), path, listed=not is_directory)


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_file() and not path.is_fifo():
        raise InputError(f"{path} is not a file")
