"""Builds rollouts of the Codex command line, item by item, as the program writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from iccm_assets.capture.claude_code.session_state import to_messages
from iccm_assets.capture.claude_code.transcripts import Transcript
from iccm_assets.capture.codex.rollouts import read_rollout
from iccm_assets.capture.extraction import Exchange, extract_exchange

_START = datetime(2026, 11, 20, 10, tzinfo=UTC)
ENVIRONMENT = "<environment_context>\n  <cwd>/w</cwd>\n  <shell>bash</shell>\n</environment_context>"


class RolloutBuilder:
    """A rollout of one session. ``flat``: in the older form, without the `payload` around each item."""

    def __init__(self, session: str = "s", *, flat: bool = False, meta: bool = True, **values: Any) -> None:
        self.session = session
        self.flat = flat
        self.lines: list[str] = []
        self._count = 0
        self._calls = 0
        if meta:
            self.add_meta(session, **values)

    def add_meta(self, session: str, **values: Any) -> None:
        """Add the line that names a session."""
        if self.flat:
            self.raw({"id": session, "timestamp": self._time(), "instructions": None, **values})
        else:
            payload = {"id": session, "cwd": "/w", "originator": "codex_cli_rs", "source": "cli", **values}
            self.line("session_meta", payload)

    def line(self, kind: str, payload: dict[str, Any]) -> None:
        """Add a line; each is a minute after the last one."""
        self._count += 1
        self.raw({"timestamp": self._time(), "type": kind, "payload": payload})

    def item(self, **payload: Any) -> None:
        """Add an item of the conversation."""
        if self.flat:
            self.raw(payload)
        else:
            self.line("response_item", payload)

    def raw(self, entry: object) -> None:
        """Add a line as it is."""
        self.lines.append(entry if isinstance(entry, str) else json.dumps(entry))

    def message(self, role: str, *texts: str, parts: Iterable[dict[str, Any]] = ()) -> None:
        """Add a message of any role, with further parts."""
        kind = "output_text" if role == "assistant" else "input_text"
        content = [{"type": kind, "text": text} for text in texts]
        self.item(type="message", role=role, content=[*content, *parts])

    def prompt(self, *texts: str) -> None:
        """Add a message of the developer, and the event that repeats it."""
        self.message("user", *texts)
        self.event("user_message", message="\n".join(texts))

    def answer(self, text: str) -> None:
        """Add a message of the assistant, and the event that repeats it."""
        self.event("agent_message", message=text)
        self.message("assistant", text)

    def event(self, kind: str, **values: Any) -> None:
        """Add an event, which is no part of the conversation."""
        if not self.flat:
            self.line("event_msg", {"type": kind, **values})

    def reasoning(self, text: str = "", secret: str = "gAAAA") -> None:
        """Add reasoning: mostly encrypted."""
        summary = [{"type": "summary_text", "text": text}] if text else []
        self.item(type="reasoning", summary=summary, content=None, encrypted_content=secret)

    def call(self, name: str, arguments: Any, output: Any = "ok", *, custom: bool = False) -> None:
        """Add the call of a tool and its output."""
        self._calls += 1
        call_id = f"call_{self.session}_{self._calls}"
        if custom:
            self.item(
                type="custom_tool_call", status="completed", call_id=call_id, name=name, input=arguments
            )
            self.item(type="custom_tool_call_output", call_id=call_id, output=output)
        else:
            self.item(type="function_call", name=name, arguments=json.dumps(arguments), call_id=call_id)
            self.item(type="function_call_output", call_id=call_id, output=output)

    def shell(self, command: str, output: str = "", code: int = 0) -> None:
        """Run a command in a shell, whose output has the form of the version."""
        result = json.dumps({"output": output, "metadata": {"exit_code": code, "duration_seconds": 0.1}})
        self.call("shell", {"command": ["bash", "-lc", command], "workdir": "/w"}, result)

    def patch(self, body: str, code: int = 0) -> None:
        """Apply a patch."""
        text = f"*** Begin Patch\n{body}\n*** End Patch"
        output = json.dumps({"output": "Success.", "metadata": {"exit_code": code}})
        self.call("apply_patch", text, output, custom=True)

    def copy(self, session: str, *, later: bool = True, **meta: Any) -> RolloutBuilder:
        """Copy the history into the rollout of another session, as a fork or an older resume does.

        ``later``: whether the copies have new times.
        """
        copied = RolloutBuilder(session, flat=self.flat, **meta)
        copied._count = self._count + 60
        for raw in self.lines[1:] if self.flat else self.lines:
            entry = json.loads(raw)
            copied.raw({**entry, "timestamp": copied._time()} if later and "timestamp" in entry else entry)
        return copied

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return "".join(f"{line}\n" for line in self.lines).encode()

    def write(self, folder: Path, name: str | None = None) -> str:
        """Write the file; return its path."""
        path = folder / (name or f"rollout-{self.session}.jsonl")
        path.write_bytes(self.to_bytes())
        return str(path)

    def read(self, name: str | None = "file-name") -> Transcript:
        """Read the rollout."""
        return read_rollout(io.BytesIO(self.to_bytes()), name=name)

    def messages(self) -> list[dict[str, Any]]:
        """The messages of the session, in order."""
        return to_messages(self.read().sessions[self.session].turns)

    def texts(self) -> list[str]:
        """The words of the session's turns; the types of other blocks in angle brackets."""
        return [_text(message["content"]) for message in self.messages()]

    def exchange(self) -> Exchange:
        """The example that the session gives."""
        return extract_exchange(self.messages(), {})

    def files(self) -> list[tuple[str, str, str]]:
        """The files of the session: action, path and text."""
        return [
            (block["action"], block["path"], block["text"])
            for message in self.messages()
            for block in (message["content"] if isinstance(message["content"], list) else [])
            if block.get("type") == "file"
        ]

    def _time(self) -> str:
        return (_START + timedelta(minutes=self._count)).isoformat().replace("+00:00", "Z")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block.get("text") or f"<{block['type']}>" for block in content)
