"""Read Claude Code transcripts into the turns of their sessions.

Only the live branch of a session is read: no prompt that was edited later, no messages of a subagent. Every
other line is skipped and counted by its kind; a malformed line is counted and never stops the import. (C3)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from iccm_assets.capture.claude_code.live_branch import BranchGraph
from iccm_assets.capture.claude_code.message_content import MalformedLineError
from iccm_assets.capture.claude_code.queued_prompts import mark_queued_prompts
from iccm_assets.capture.claude_code.session_builder import MESSAGE_KINDS, SessionBuilder, SessionTurns
from iccm_assets.capture.claude_code.tool_files import ToolResult
from iccm_assets.capture.claude_code.transcript_lines import (
    TranscriptLine,
    is_blank,
    parse_entry,
    parse_line,
    read_lines,
)
from iccm_assets.capture.file_kinds import find_foreign_kind

_HEAD_BYTES = 4096


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

    def read_lines(
        self, stream: BinaryIO, progress: Callable[[int], None], add_line: Callable[[bytes, bool], None]
    ) -> None:
        """Read a file to its end: ``add_line`` gets each line with words, and whether it is complete."""
        for raw, complete in read_lines(stream):
            progress(len(raw))
            self.add_head(raw)
            if not is_blank(raw):
                add_line(raw, complete)

    def add_head(self, raw: bytes) -> None:
        """Keep the first bytes: of a file of another kind they are all that can be read."""
        room = _HEAD_BYTES - len(self.head)
        if room > 0:
            self.head += raw[:room]

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
    reader.transcript.read_lines(stream, progress, reader.add_line)
    return reader.finish()


class _Reader:
    """The state of reading one file."""

    def __init__(self, name: str | None) -> None:
        self.transcript = Transcript()
        self._lines: list[TranscriptLine] = []
        self._session = name
        self._known: set[tuple[str, str]] = set()
        self._occurrences: Counter[str] = Counter()

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
        builder = SessionBuilder(session, results)
        for position in live:
            builder.add(self._lines[position])
        rewound = [line for line in map(self._lines.__getitem__, dead) if line.kind in MESSAGE_KINDS]
        for line in rewound:
            line.skipped = line.skipped or "rewound"
        return builder.finish(frozenset(line.key for line in rewound))


def _is_conversation(line: TranscriptLine) -> bool:
    """Whether a line shows that its session is a conversation, even if nothing of it is kept."""
    return line.kind in MESSAGE_KINDS or line.skipped in {"empty", "command", "inserted"}
