"""Builds records of OpenAI and ShareGPT files, and exports conversations as the OpenAI format writes them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iccm_assets.capture.claude_code.transcripts import Transcript
from iccm_assets.capture.openai_chat.chat_files import read_chats


def chat(*texts: Any, **values: Any) -> dict[str, Any]:
    """A record whose messages alternate between the developer and the assistant."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": messages, **values}


def sharegpt(*texts: str, **values: Any) -> dict[str, Any]:
    """A record of ShareGPT."""
    roles = ("human", "gpt")
    turns = [{"from": roles[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"conversations": turns, **values}


def to_lines(records: Iterable[object]) -> bytes:
    """The records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read_records(*records: object) -> Transcript:
    """Read records as a file of JSON lines."""
    return read_chats(io.BytesIO(to_lines(records)))


def read_bytes(raw: bytes) -> Transcript:
    """Read the content of a file."""
    return read_chats(io.BytesIO(raw))


def write_records(path: Path, *records: object) -> str:
    """Write records as JSON lines; return the path."""
    path.write_bytes(to_lines(records))
    return str(path)


def contents(transcript: Transcript, session: str) -> list[tuple[str, Any]]:
    """The role and content of each turn of a session."""
    return [(turn.role, turn.content) for turn in transcript.sessions[session].turns]


def make_conversations(seed: int, count: int) -> list[dict[str, Any]]:
    """Generate conversations about functions, with sources, requirements and tests; many begin alike."""
    rng = random.Random(seed)
    conversations = []
    for number in range(count):
        name, step = rng.choice(("scale", "shift", "clip")), rng.randrange(1, 9)
        source = f"def {name}(x):\n    return x * {step}"
        opening = rng.choice(("Hello ☕", f"Please read\n```python\n{source}\n```"))
        turns = [("user", opening), ("assistant", "What do you need?")]
        for _ in range(rng.randrange(4)):
            turns += [
                ("user", f"More about {rng.random()}."),
                ("assistant", f"Noted: {rng.random()}.\n\nÜber."),
            ]
        turns += [("user", "Write requirements."), ("assistant", f"{name} shall return x times {step}.")]
        case = {"call": name, "args": [2], "expect": 2 * step}
        conversations.append(
            {
                "session_id": f"session-{number}",
                "user_id": f"user-{number % 7}",
                "timestamp": f"2026-03-{1 + number % 28:02}T12:00:00+00:00",
                "messages": [{"role": role, "content": text} for role, text in turns],
                "source_code": source if rng.random() < 0.7 else None,
                "requirements": f"{name} shall return x times {step}." if rng.random() < 0.7 else None,
                "tests": {"kind": "cases", "cases": [case]} if rng.random() < 0.5 else None,
            }
        )
    return conversations


def export_conversations(conversations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Export conversations as records of the OpenAI format; every second one has its texts as parts."""
    records = []
    for number, conversation in enumerate(conversations):
        messages = [
            {
                **message,
                "content": [{"type": "text", "text": message["content"]}]
                if number % 2
                else message["content"],
            }
            for message in conversation["messages"]
        ]
        metadata = {"source_code": conversation["source_code"]} if conversation["source_code"] else {}
        records.append(
            {
                "session_id": conversation["session_id"],
                "user": conversation["user_id"],
                "created_at": conversation["timestamp"],
                "messages": messages,
                "metadata": {**metadata, "team": number % 3},
                "requirements": conversation["requirements"],
                "tests": conversation["tests"],
            }
        )
    return records
