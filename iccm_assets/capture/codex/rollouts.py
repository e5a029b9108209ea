"""Read the rollouts of the Codex command line into the turns of their sessions.

The items of a rollout give their turns no ids, and a resumed or forked session copies those above it: a turn
is known by its words and all above it. What is taken back (`thread_rolled_back`) does not count. (C3, C8)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, BinaryIO

from iccm_assets.capture.claude_code.message_content import MalformedLineError
from iccm_assets.capture.claude_code.session_builder import SessionBuilder
from iccm_assets.capture.claude_code.tool_files import ToolResult
from iccm_assets.capture.claude_code.transcript_lines import (
    TranscriptLine,
    parse_entry,
    parse_time,
)
from iccm_assets.capture.claude_code.transcripts import Transcript
from iccm_assets.capture.codex.rollout_items import ITEM_TYPES, ItemParser
from iccm_assets.capture.file_kinds import CODEX, find_foreign_kind
from iccm_assets.capture.turn_keys import KeyChain

# A file is named rollout-<time>-<id of the session>.jsonl.
_NAMED_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_META = "session_meta"


def read_rollout(
    stream: BinaryIO, progress: Callable[[int], None] = lambda size: None, *, name: str | None = None
) -> Transcript:
    """Read a rollout to its end; ``progress`` receives the bytes of each line.

    ``name``: of the file, without its suffix; it names the session if no line does.
    """
    reader = _RolloutReader(name)
    reader.transcript.read_lines(stream, progress, reader.add_line)
    return reader.finish()


class _RolloutReader:
    """The state of reading one file: the session of its first `session_meta`, whatever it was copied from."""

    def __init__(self, name: str | None) -> None:
        self.transcript = Transcript()
        named = _NAMED_ID.search(name) if name is not None else None
        self._session = name if named is None else named[0]
        self._parent: str | None = None
        self._has_meta = False
        self._is_subagent = False
        self._time: datetime | None = None
        self._items = ItemParser()
        self._keys = KeyChain()
        self._lines: list[TranscriptLine] = []
        self._prompts: list[tuple[int, str]] = []
        self._dead: set[str] = set()
        self._results: dict[str, ToolResult] = {}

    def add_line(self, raw: bytes, complete: bool) -> None:
        self.transcript.lines += 1
        try:
            if not complete:
                raise MalformedLineError("too_long")
            entry = parse_entry(raw)
            if (kind := find_foreign_kind(entry, (CODEX,))) is not None:
                self.transcript.foreign[kind] += 1
            else:
                self._add_entry(entry)
        except MalformedLineError as reason:
            self.transcript.malformed[str(reason)] += 1
        except RecursionError:
            self.transcript.malformed["too_deep"] += 1

    def _add_entry(self, entry: Mapping[str, Any]) -> None:
        kind, values = self._unwrap(entry)
        self.transcript.entries += 1
        time = parse_time(entry.get("timestamp"))
        if kind == _META:
            self._add_meta(values, time)
        elif kind == "response_item":
            self._add_item(values, time or self._time)
        elif kind == "event_msg" and values.get("type") == "thread_rolled_back":
            self._roll_back(values.get("num_turns"))
        else:
            self.transcript.skipped[kind[:40] if kind.isprintable() and kind else "unknown"] += 1

    def _unwrap(self, entry: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Return the type of a line and its content; older versions wrote the content alone."""
        kind, payload = entry.get("type"), entry.get("payload")
        if isinstance(kind, str) and isinstance(payload, Mapping):
            return kind, payload
        if isinstance(kind, str):
            return ("response_item" if kind in ITEM_TYPES else kind), entry
        if "record_type" in entry:
            return "state", entry
        if not isinstance(entry.get("id"), str) or "timestamp" not in entry:
            raise MalformedLineError("no_type")
        return _META, entry

    def _add_meta(self, meta: Mapping[str, Any], time: datetime | None) -> None:
        """Read whose session it is; the lines of further sessions are copied with their words."""
        self.transcript.skipped[_META] += 1
        self._time = self._time or time
        if self._has_meta:
            return
        self._has_meta = True
        names = (meta.get(key) for key in ("id", "session_id", "thread_id", "conversation_id"))
        self._session = next((name for name in names if isinstance(name, str) and name), self._session)
        parent = meta.get("forked_from_id")
        self._parent = parent if isinstance(parent, str) and parent and parent != self._session else None
        source = meta.get("source")
        is_subagent = isinstance(source, Mapping) and "subagent" in source
        self._is_subagent = is_subagent or meta.get("thread_source") == "subagent"

    def _add_item(self, values: Mapping[str, Any], time: datetime | None) -> None:
        item = self._items.parse(values)
        self.transcript.skipped += item.dropped_parts
        if self._is_subagent:
            self.transcript.skipped["sidechain"] += 1
            return
        if item.skipped is not None:
            self.transcript.skipped[item.skipped] += 1
        if item.identity is None:
            return
        if not self._session:
            raise MalformedLineError("no_session")
        above = self._keys.last
        key = self._keys.add(item.identity)
        self._results |= item.results
        if item.kind == "prompt":
            self._prompts.append((len(self._lines), above))
        if item.kind:
            line = TranscriptLine(item.kind, self._session, key, timestamp=time, content=item.content)
            line.calls, line.results = item.calls, item.results
            self._lines.append(line)

    def _roll_back(self, count: object) -> None:
        """Drop the last prompts and their answers, which the developer took back."""
        self.transcript.skipped["event_msg"] += 1
        if not isinstance(count, int) or isinstance(count, bool) or count < 1 or not self._prompts:
            return
        first = max(len(self._prompts) - count, 0)
        start, self._keys.last = self._prompts[first]
        del self._prompts[first:]
        self.transcript.skipped["rewound"] += len(self._lines) - start
        self._dead.update(line.key for line in self._lines[start:])
        del self._lines[start:]

    def finish(self) -> Transcript:
        """Build the session of the file."""
        if self._lines and self._session:
            builder = SessionBuilder(self._session, self._results)
            for line in self._lines:
                builder.add(line)
            # The same words may be sent again.
            turns = builder.finish(frozenset(self._dead.difference(line.key for line in self._lines)))
            turns.parent = self._parent
            self.transcript.sessions[self._session] = turns
            self.transcript.messages = len(turns.turns)
        return self.transcript
