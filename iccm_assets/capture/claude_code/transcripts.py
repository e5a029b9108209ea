"""Read Claude Code transcripts into the turns of their sessions.

Only the live branch of a session is read: no prompt that was edited later, no messages of a subagent. Every
other line is skipped and counted by its kind; a malformed line is counted and never stops the import. (C3)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO

from iccm_assets.capture.claude_code.live_branch import BranchGraph
from iccm_assets.capture.claude_code.queued_prompts import mark_queued_prompts
from iccm_assets.capture.claude_code.tool_files import FileHistory, ToolResult
from iccm_assets.capture.claude_code.transcript_kinds import find_foreign_kind
from iccm_assets.capture.claude_code.transcript_lines import (
    MalformedLineError,
    TranscriptLine,
    is_blank,
    parse_entry,
    parse_line,
    read_lines,
)

_HEAD_BYTES = 4096
_MESSAGES = frozenset({"prompt", "queued", "answer", "result", "file"})


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
    the file names it. ``dead``: the keys of lines outside of the live branch.
    """

    turns: list[Turn] = field(default_factory=list)
    inherited: list[Turn] = field(default_factory=list)
    parent: str | None = None
    dead: frozenset[str] = frozenset()


@dataclass
class Transcript:
    """The content of one file: sessions, and counts of its lines.

    ``foreign``: lines of other formats. ``head``: the first bytes of the file.
    """

    lines: int = 0
    messages: int = 0
    entries: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    head: bytes = b""
    sessions: dict[str, SessionTurns] = field(default_factory=dict)

    @property
    def holds_conversation(self) -> bool:
        """Whether there is a message of a session."""
        return any(session.turns or session.inherited for session in self.sessions.values())


def read_transcript(
    stream: BinaryIO, progress: Callable[[int], None] = lambda size: None, *, name: str | None = None
) -> Transcript:
    """Read a transcript to its end; ``progress`` receives the bytes of each line.

    ``name``: the session of lines that name none, as older versions wrote them.
    """
    reader = _Reader(name)
    for raw, complete in read_lines(stream):
        progress(len(raw))
        reader.add_head(raw)
        if not is_blank(raw):
            reader.add_line(raw, complete)
    return reader.finish()


class _Reader:
    """The state of reading one file."""

    def __init__(self, name: str | None) -> None:
        self.transcript = Transcript()
        self._lines: list[TranscriptLine] = []
        self._session = name
        self._known: set[tuple[str, str]] = set()
        self._occurrences: Counter[str] = Counter()

    def add_head(self, raw: bytes) -> None:
        """Keep the first bytes: of a file of another kind they are all that can be read."""
        room = _HEAD_BYTES - len(self.transcript.head)
        if room > 0:
            self.transcript.head += raw[:room]

    def add_line(self, raw: bytes, complete: bool) -> None:
        self.transcript.lines += 1
        try:
            if not complete:
                raise MalformedLineError("too_long")
            entry = parse_entry(raw)
            if (kind := find_foreign_kind(entry)) is not None:
                self.transcript.foreign[kind] += 1
                return
            line = parse_line(entry, self._session)
        except MalformedLineError as reason:
            self.transcript.malformed[str(reason)] += 1
            return
        self.transcript.entries += 1
        self._session = line.session or self._session
        if self._is_repeated(line):
            self.transcript.skipped["repeated"] += 1
        else:
            self._lines.append(line)

    def _is_repeated(self, line: TranscriptLine) -> bool:
        """Whether the line was read before; without an id and a time, it is another one of the same words."""
        if line.kind == "queue" or (line.uuid is None and line.kind == "link"):
            return False
        if line.uuid is None and line.timestamp is None:
            self._occurrences[line.key] += 1
            line.key = f"{line.key}.{self._occurrences[line.key]}"
            return False
        identity = (line.session, line.uuid or line.key)
        repeated = identity in self._known
        self._known.add(identity)
        return repeated

    def finish(self) -> Transcript:
        """Build the sessions of the file."""
        transcript = self.transcript
        mark_queued_prompts(self._lines)
        graph = BranchGraph(self._lines)
        results = {key: result for line in self._lines for key, result in line.results.items()}
        for session, positions in graph.positions.items():
            if session and any(_is_conversation(self._lines[position]) for position in positions):
                live = graph.find_live(session)
                dead = set(positions).difference(live)
                transcript.sessions[session] = self._build(session, live, dead, results)
        transcript.skipped.update(line.skipped for line in self._lines if line.skipped is not None)
        transcript.messages = sum(len(session.turns) for session in transcript.sessions.values())
        return transcript

    def _build(
        self, session: str, live: list[int], dead: set[int], results: dict[str, ToolResult]
    ) -> SessionTurns:
        builder = _SessionBuilder(session, results)
        for position in live:
            builder.add(self._lines[position])
        rewound = [line for line in map(self._lines.__getitem__, dead) if line.kind in _MESSAGES]
        for line in rewound:
            line.skipped = line.skipped or "rewound"
        return builder.finish(frozenset(line.key for line in rewound))


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


class _SessionBuilder:
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
        if line.skipped is not None or line.kind not in _MESSAGES:
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
        blocks: list[Any] = []
        for block in line.content:
            blocks.append(block)
            call = line.calls.get(str(block.get("id"))) if block.get("type") == "tool_use" else None
            if call is not None:
                part = self._files.apply(block["id"], call, self._results.get(block["id"]))
                blocks += [part] if part else []
            name = str(block.get("tool_use_id"))
            result = line.results.get(name) if block.get("type") == "tool_result" else None
            if result is not None and (part := self._files.read(name, result)) is not None:
                blocks[-1:] = [{key: value for key, value in block.items() if key != "content"}, part]
        return blocks

    def _time(self, line: TranscriptLine) -> datetime | None:
        """Return the time of a message, never before that of the messages above it."""
        times = [time for time in (self._latest, line.timestamp) if time is not None]
        self._latest = max(times, default=None)
        return self._latest


def _is_conversation(line: TranscriptLine) -> bool:
    """Whether a line shows that its session is a conversation, even if nothing of it is kept."""
    return line.kind in _MESSAGES or line.skipped in {"empty", "command", "inserted"}


def _role(line: TranscriptLine) -> str:
    return "assistant" if line.kind == "answer" else "user"


def _as_blocks(content: str | list[Any]) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
