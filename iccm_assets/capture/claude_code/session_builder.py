"""Build the turns of one session from the lines of its live branch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from iccm_assets.capture.claude_code.session_details import NO_DETAILS, SessionDetails
from iccm_assets.capture.claude_code.tool_files import FileHistory, ToolResult
from iccm_assets.capture.claude_code.transcript_lines import TranscriptLine

MESSAGE_KINDS = frozenset({"prompt", "queued", "answer", "result", "file", "system"})


@dataclass(frozen=True)
class Turn:
    """One message of a session. ``key`` identifies it in every file."""

    key: str
    timestamp: datetime | None
    role: str
    content: str | list[Any]


@dataclass
class SessionTurns:
    """What one file holds of a session.

    ``inherited``: the turns before its own, of the session that it continues; ``parent`` is that session, if
    the file names it. ``dead``: the keys of lines outside of the live branch. ``key_prefix``: of a session
    that is named by the key of its last turn, what stands before the key.
    """

    turns: list[Turn] = field(default_factory=list)
    inherited: list[Turn] = field(default_factory=list)
    parent: str | None = None
    dead: frozenset[str] = frozenset()
    details: SessionDetails = NO_DETAILS
    key_prefix: str | None = None


@dataclass
class _OpenTurn:
    """A turn while its lines are read; ``blocks`` is a text if it has one line with a text alone."""

    line: TranscriptLine
    owner: str
    timestamp: datetime | None
    content: str | list[Any]
    known: set[str] = field(default_factory=set)

    def add_blocks(self, blocks: list[Any]) -> None:
        """Add blocks; a known one is not added, a longer beginning of the last text replaces it."""
        if isinstance(self.content, str):
            self.content = [{"type": "text", "text": self.content}]
        for block in blocks:
            identity = json.dumps(block, sort_keys=True)
            if identity in self.known:
                continue
            self.known.add(identity)
            last = self.content[-1] if self.content else {}
            if block.get("type") == last.get("type") == "text" and block["text"].startswith(last["text"]):
                self.content.pop()
            self.content.append(block)


class SessionBuilder:
    """Builds the turns of one session from its live lines."""

    def __init__(self, session: str, results: dict[str, ToolResult]) -> None:
        self._session = session
        self._results = results
        self._files = FileHistory()
        self._turns: list[_OpenTurn] = []
        self._latest: datetime | None = None
        self._parent: str | None = None
        self._compacted = False

    def add(self, line: TranscriptLine) -> None:
        """Add a line, in the order of the conversation."""
        if line.is_compaction:
            self._compacted = True
        if line.skipped is not None or line.kind not in MESSAGE_KINDS:
            return
        if line.kind == "file":
            self._add_file(line)
        else:
            self._compacted = False
            blocks = self._blocks(line)
            if self._continues(line):
                self._turns[-1].add_blocks(_as_blocks(blocks))
            else:
                self._open(line, blocks)

    def finish(self, dead: frozenset[str]) -> SessionTurns:
        """Return the turns; those before the first one of the session itself are inherited."""
        built = [Turn(turn.line.key, turn.timestamp, _role(turn.line), turn.content) for turn in self._turns]
        owns = [turn.owner == self._session for turn in self._turns]
        own = [turn for turn, is_own in zip(built, owns, strict=True) if is_own]
        inherited = [turn for turn, is_own in zip(built, owns, strict=True) if not is_own]
        return SessionTurns(own, inherited, self._parent, dead)

    def _open(self, line: TranscriptLine, content: str | list[Any]) -> None:
        owner = line.forked_from or line.session
        if owner != self._session:
            self._parent = owner
        turn = _OpenTurn(line, owner, self._time(line), content)
        if isinstance(content, list):
            turn.content = []
            turn.add_blocks(content)
        self._turns.append(turn)

    def _continues(self, line: TranscriptLine) -> bool:
        """Whether the line continues the answer above it: answers are written block by block."""
        if not self._turns or line.message is None or self._turns[-1].line.message is None:
            return False
        (name, request), (last_name, last_request) = line.message, self._turns[-1].line.message
        return name == last_name and (request == last_request or None in {request, last_request})

    def _add_file(self, line: TranscriptLine) -> None:
        """Add a file to the prompt above it; after a compaction the program attaches files by itself."""
        assert line.file is not None
        if self._compacted:
            line.skipped = "compact_file"
            return
        self._files.add_attached(line.file)
        last = self._turns[-1] if self._turns else None
        owner = line.forked_from or line.session
        if last is not None and last.line.kind in {"prompt", "queued", "file"} and last.owner == owner:
            last.add_blocks([line.file])
        else:
            self._open(line, [line.file])

    def _blocks(self, line: TranscriptLine) -> str | list[Any]:
        """Return the content of a message, each file after the block of the tool that read or wrote it."""
        if (not line.calls and not line.results) or isinstance(line.content, str):
            return line.content
        return [part for block in line.content for part in self._with_file(block, line)]

    def _with_file(self, block: dict[str, Any], line: TranscriptLine) -> list[Any]:
        call = line.calls.get(str(block.get("id"))) if block.get("type") == "tool_use" else None
        if call is not None:
            part = self._files.apply(block["id"], call, self._results.get(block["id"]))
            return [block, part] if part else [block]
        name = str(block.get("tool_use_id"))
        result = line.results.get(name) if block.get("type") == "tool_result" else None
        if result is not None and (part := self._files.read(name, result)) is not None:
            return [{key: value for key, value in block.items() if key != "output"}, part]
        return [block]

    def _time(self, line: TranscriptLine) -> datetime | None:
        """Return the time of a message, never before that of the messages above it."""
        times = [time for time in (self._latest, line.timestamp) if time is not None]
        self._latest = max(times, default=None)
        return self._latest


def _role(line: TranscriptLine) -> str:
    return {"answer": "assistant", "system": "system"}.get(line.kind, "user")


def _as_blocks(content: str | list[Any]) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
