"""Read files of OpenAI and ShareGPT chats into the turns of their sessions.

A record with an id is that session, and further records of the id extend it. One without an id is named by a
digest of its words: of records that repeat the words of others, each keeps those that are new. (C8)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from iccm_assets.capture.claude_code.message_content import MalformedLineError
from iccm_assets.capture.claude_code.session_builder import SessionBuilder
from iccm_assets.capture.claude_code.session_details import NO_DETAILS, SessionDetails, join_details
from iccm_assets.capture.claude_code.tool_files import ToolResult
from iccm_assets.capture.claude_code.transcript_lines import TranscriptLine
from iccm_assets.capture.claude_code.transcripts import Transcript
from iccm_assets.capture.file_kinds import IMPORT_FORMATS, OPENAI_BATCH, find_kind
from iccm_assets.capture.openai_chat.chat_messages import ChatParser
from iccm_assets.capture.openai_chat.documents import Document, read_documents
from iccm_assets.capture.openai_chat.records import ChatRecord, parse_record

_UNNAMED = "chat-"


@dataclass
class _OpenSession:
    """A session while its records are read."""

    lines: dict[str, TranscriptLine] = field(default_factory=dict)
    results: dict[str, ToolResult] = field(default_factory=dict)
    details: SessionDetails = NO_DETAILS


def read_chats(
    stream: BinaryIO, progress: Callable[[int], None] = lambda size: None, *, name: str | None = None
) -> Transcript:
    """Read a file of chats to its end; ``progress`` receives the sizes of its pieces.

    ``name`` (of the file) is not used: a file holds many sessions.
    """
    reader = _ChatReader()

    def add_piece(raw: bytes) -> None:
        progress(len(raw))
        reader.transcript.add_head(raw)

    for document in read_documents(stream, add_piece):
        reader.add(document)
    return reader.finish()


class _ChatReader:
    """The state of reading one file."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self._sessions: dict[str, _OpenSession] = {}
        self._unnamed: dict[str, list[str]] = {}

    def add(self, document: Document) -> None:
        """Add a record, or count why it is none."""
        self.transcript.lines += 1
        if isinstance(document, MalformedLineError):
            self.transcript.malformed[str(document)] += 1
            return
        record = parse_record(document)
        if record is not None:
            self.transcript.entries += 1
            self._add_record(record)
            return
        self._count_foreign(document)

    def _count_foreign(self, document: Mapping[str, Any]) -> None:
        kind = find_kind(document)
        if kind is None or (IMPORT_FORMATS.get(kind) == "openai" and kind != OPENAI_BATCH):
            self.transcript.malformed["no_messages"] += 1
        else:
            self.transcript.foreign[kind if kind != OPENAI_BATCH else "batch of another interface"] += 1

    def _add_record(self, record: ChatRecord) -> None:
        name = record.session_id
        parser = ChatParser(name or "", name or "")
        lines = parser.parse(record.messages, record.timestamp)
        self.transcript.skipped += parser.skipped
        self.transcript.malformed += parser.malformed
        if not lines:
            self.transcript.skipped["no_conversation"] += 1
            return
        if name is None:
            name = f"{_UNNAMED}{lines[-1].key}"
            self._unnamed[name] = [line.key for line in lines]
        session = self._sessions.setdefault(name, _OpenSession())
        if record.details.has_weak_id and not _continues(session, lines):
            self.transcript.malformed["repeated_id"] += 1
            return
        for line in lines:
            line.session = name
            session.lines.setdefault(line.key, line)
        session.results |= parser.results
        session.details = join_details(session.details, record.details)

    def finish(self) -> Transcript:
        """Build the sessions of the file, without those that others repeat whole."""
        beginnings = {key for keys in self._unnamed.values() for key in keys[:-1]}
        for name, session in self._sessions.items():
            keys = self._unnamed.get(name)
            if keys is not None and keys[-1] in beginnings and not _says_more(session.details):
                self.transcript.skipped["continued"] += 1
                continue
            builder = SessionBuilder(name, session.results)
            for line in session.lines.values():
                builder.add(line)
            turns = builder.finish(frozenset())
            turns.details = session.details
            turns.key_prefix = None if keys is None else _UNNAMED
            self.transcript.sessions[name] = turns
            self.transcript.messages += len(turns.turns)
        return self.transcript


def _says_more(details: SessionDetails) -> bool:
    """Whether a record says what makes it an example of its own."""
    return (details.source_code, details.requirements, details.test_suite) != (None, None, None)


def _continues(session: _OpenSession, lines: list[TranscriptLine]) -> bool:
    """Whether messages belong to a session, of which they repeat the beginning."""
    return not session.lines or any(line.key in session.lines for line in lines if line.kind != "system")
