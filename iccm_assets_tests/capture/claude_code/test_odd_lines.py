"""No line, however odd, stops the import of a transcript."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from iccm_assets.capture.claude_code.file_limits import limit_files
from iccm_assets.capture.claude_code.session_state import merge_session
from iccm_assets.capture.claude_code.transcripts import read_transcript
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, TranscriptBuilder, ask

ODD_VALUES = (
    None,
    1,
    True,
    [],
    {},
    "",
    "x",
    ["a"],
    [["b"]],
    {"type": []},
    [None],
    [{"type": "text", "text": 1}],
)


def every_kind_of_line() -> list[Any]:
    transcript = TranscriptBuilder()
    transcript.prompt(ask(ADD))
    transcript.attach_file("a.py", ADD)
    file = {"filePath": "a", "content": "x", "numLines": 1, "startLine": 1, "totalLines": 1}
    transcript.use("Read", {"file_path": "a.py"}, "1\tx\n2\ty", details={"type": "text", "file": file})
    transcript.use("Write", {"file_path": "r.md", "content": "c"})
    transcript.use(
        "Edit", {"file_path": "r.md", "old_string": "c", "new_string": "d"}, details={"originalFile": "c"}
    )
    transcript.use("MultiEdit", {"file_path": "r.md", "edits": [{"old_string": "d", "new_string": "e"}]})
    transcript.use("ExitPlanMode", {}, details={"plan": "q"})
    transcript.use("Bash", {"command": "cat a"})
    transcript.queue("enqueue", "q")
    transcript.queue("remove", "q", reason="absorbed_mid_turn")
    transcript.attach(type="queued_command", prompt=[{"type": "text", "text": "q"}], origin={"kind": "human"})
    transcript.add("system", subtype="compact_boundary", parent=None, logicalParentUuid=transcript.last)
    transcript.prompt("summary", isCompactSummary=True)
    transcript.answer(ADD_REQUIREMENTS, requestId="r")
    fork = transcript.fork("fork")
    fork.prompt("more")
    return [json.loads(line) for line in (*transcript.lines, *fork.lines)]


def positions(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value, with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from positions(item)


@pytest.mark.parametrize("seed", range(4))
def test_lines_with_values_of_any_type_are_read_or_counted(seed):
    draw = random.Random(seed)
    original = json.dumps(every_kind_of_line())
    for _ in range(120):
        lines = json.loads(original)
        for _ in range(draw.choice([1, 3, 20])):
            container, key = draw.choice(list(positions(lines)))
            container[key] = json.loads(json.dumps(draw.choice(ODD_VALUES)))
        raw = "\n".join(json.dumps(line) for line in lines).encode()
        transcript = read_transcript(io.BytesIO(raw), name="name")
        for session in transcript.sessions.values():
            state = merge_session(merge_session(None, session, {}), session, {"key": "other"})
            assert len(limit_files(state.turns, 10)) == len(state.turns)
            assert json.dumps(state.to_metadata())
