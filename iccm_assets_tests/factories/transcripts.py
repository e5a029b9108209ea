"""Builds Claude Code transcripts line by line, as the program writes them."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from iccm_assets.capture.claude_code.session_state import to_messages
from iccm_assets.capture.claude_code.transcripts import Transcript, read_transcript
from iccm_assets.capture.extraction import Exchange, extract_exchange

ADD = "def add(a, b):\n    return a + b"
SUB = "def sub(a, b):\n    return a - b"
ADD_REQUIREMENTS = "The function add shall return the sum of a and b."
SUB_REQUIREMENTS = "The function sub shall return a minus b."
_START = datetime(2026, 11, 20, 10, tzinfo=UTC)
_LAST: Any = object()


def ask(source: str) -> str:
    """A prompt for the requirements of a source."""
    return f"Write requirements for\n```python\n{source}\n```"


class TranscriptBuilder:
    """A transcript of one session; each line follows the last one unless ``parent`` says otherwise."""

    def __init__(self, session: str = "s", *, uuids: str | None = None) -> None:
        self.session = session
        self.lines: list[str] = []
        self.last: str | None = None
        self._uuids = session if uuids is None else uuids
        self._count = 0
        self._tools = 0

    def add(self, kind: str, *, parent: Any = _LAST, **values: Any) -> str:
        """Add a line with a uuid and a parent; return its uuid. None as a value leaves the key out."""
        self._count += 1
        uuid = f"{self._uuids}-{self._count}"
        entry = {
            "parentUuid": self.last if parent is _LAST else parent,
            "isSidechain": False,
            "sessionId": self.session,
            "timestamp": (_START + timedelta(minutes=self._count)).isoformat(),
            "type": kind,
            "uuid": uuid,
        } | values
        self.raw({key: value for key, value in entry.items() if key == "parentUuid" or value is not None})
        self.last = entry["uuid"]
        return uuid

    def raw(self, entry: object) -> None:
        """Add a line as it is."""
        self.lines.append(entry if isinstance(entry, str) else json.dumps(entry))

    def prompt(self, content: Any, **values: Any) -> str:
        """Add a message of the developer."""
        return self.add("user", message={"role": "user", "content": content}, **values)

    def answer(self, content: Any, *, id: str | None = "", **values: Any) -> str:
        """Add a line of an answer; ``id``: of the answer, a new one by default."""
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        message = {"role": "assistant", "content": blocks, "model": "claude-x"}
        if id is not None:
            message["id"] = id or f"msg_{self._uuids}_{self._count + 1}"
        return self.add("assistant", message=message, **values)

    def call(self, name: str, tool_input: dict[str, Any], **values: Any) -> str:
        """Add the call of a tool; return its id."""
        self._tools += 1
        tool_id = f"toolu_{self._uuids}_{self._tools}"
        self.answer([{"type": "tool_use", "id": tool_id, "name": name, "input": tool_input}], **values)
        return tool_id

    def result(
        self, tool_id: str, content: Any = "ok", *, error: bool = False, details: Any = None, **values: Any
    ) -> str:
        """Add the result of a tool call."""
        block = {"type": "tool_result", "tool_use_id": tool_id, "content": content}
        if error:
            block["is_error"] = True
        return self.prompt([block], toolUseResult=details, **values)

    def use(self, name: str, tool_input: dict[str, Any], content: Any = "ok", **values: Any) -> None:
        """Add the call of a tool and its result."""
        self.result(self.call(name, tool_input), content, **values)

    def attach(self, **attachment: Any) -> str:
        """Add an attachment."""
        return self.add("attachment", attachment=attachment)

    def attach_file(self, path: str, text: str) -> str:
        """Add a file that the developer mentions with @."""
        file = {"filePath": f"/w/{path}", "content": text, "numLines": 2, "startLine": 1, "totalLines": 2}
        content = {"type": "text", "file": file}
        return self.attach(type="file", filename=f"/w/{path}", displayPath=path, content=content)

    def queue(self, operation: str, content: str | None = None, **values: Any) -> None:
        """Add an operation on the queue of prompts; such lines have no uuid."""
        entry = {"type": "queue-operation", "operation": operation, "sessionId": self.session} | values
        time = (_START + timedelta(minutes=self._count)).isoformat()
        self.raw({**entry, "timestamp": time} | ({} if content is None else {"content": content}))

    def fork(self, session: str, *, flagged: bool = True, new_uuids: bool = False) -> TranscriptBuilder:
        """Copy the history into a transcript of another session, as a fork or a resume does."""
        copy = TranscriptBuilder(session)
        names: dict[str, str] = {}
        for raw in self.lines:
            entry = json.loads(raw)
            if flagged and "uuid" in entry:
                entry["forkedFrom"] = {"sessionId": self.session, "messageUuid": entry["uuid"]}
            if new_uuids and "uuid" in entry:
                names[entry["uuid"]] = f"{session}-copy-{len(names)}"
                entry["uuid"] = names[entry["uuid"]]
                entry["parentUuid"] = names.get(entry["parentUuid"], entry["parentUuid"])
            copy.raw({**entry, "sessionId": session})
            copy.last = entry.get("uuid", copy.last)
        copy._count = self._count
        return copy

    def next_file(self) -> TranscriptBuilder:
        """The next file of the same session, which goes on after this one."""
        following = TranscriptBuilder(self.session, uuids=f"{self._uuids}-next")
        following.last, following._count = self.last, self._count
        return following

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return "".join(f"{line}\n" for line in self.lines).encode()

    def write(self, folder: Path, name: str | None = None) -> str:
        """Write the file; return its path."""
        path = folder / (name or f"{self.session}.jsonl")
        path.write_bytes(self.to_bytes())
        return str(path)

    def read(self) -> Transcript:
        """Read the transcript."""
        return read_transcript(io.BytesIO(self.to_bytes()), name="file-name")

    def texts(self) -> list[str]:
        """The words of the session's turns, in order; names of files in angle brackets."""
        return [_text(turn.content) for turn in self.read().sessions[self.session].turns]

    def exchange(self) -> Exchange:
        """The example that the session gives."""
        return extract_exchange(to_messages(self.read().sessions[self.session].turns), {})

    def files(self) -> list[tuple[str, str, str, str]]:
        """The files of the session: role, action, path and text."""
        return [
            (turn.role, block["action"], block["path"], block["text"])
            for turn in self.read().sessions[self.session].turns
            for block in (turn.content if isinstance(turn.content, list) else [])
            if block.get("type") == "file"
        ]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block.get("text") or f"<{block['type']}>" for block in content)
