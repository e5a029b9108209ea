"""Codex rollouts become turns: whose words count, which tools touched files, and what is left out."""

from __future__ import annotations

import io
import json
import time

import pytest

from iccm_assets.capture.codex.rollouts import read_rollout
from iccm_assets.capture.codex.user_words import remove_inserted_text
from iccm_assets_tests.factories.codex_rollouts import ENVIRONMENT, RolloutBuilder
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, ask

TEST_FILE = "from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"


def talk(**options) -> RolloutBuilder:
    rollout = RolloutBuilder(**options)
    rollout.message("developer", "<permissions instructions>Filesystem sandboxing</permissions instructions>")
    rollout.message("user", "# AGENTS.md instructions for /w\n\n<INSTRUCTIONS>\nBe brief.\n</INSTRUCTIONS>")
    rollout.message("user", ENVIRONMENT)
    rollout.prompt(ask(ADD))
    rollout.reasoning("**Looking at the code**")
    rollout.reasoning(secret="gBBBB")
    rollout.answer(ADD_REQUIREMENTS)
    return rollout


def test_a_rollout_is_one_session_with_the_words_of_developer_and_assistant():
    rollout = talk(session="0199-a")
    rollout.line("turn_context", {"cwd": "/w", "model": "gpt-5-codex"})
    rollout.event("token_count", info=None)
    rollout.line("compacted", {"message": "summary", "replacement_history": []})
    read = rollout.read()
    assert list(read.sessions) == ["0199-a"]
    assert rollout.texts() == [ask(ADD), "<thinking>", ADD_REQUIREMENTS]
    assert [message["role"] for message in rollout.messages()] == ["user", "assistant", "assistant"]
    assert read.skipped == {
        "compacted": 1,
        "developer": 1,
        "event_msg": 3,
        "inserted": 2,
        "reasoning": 1,
        "session_meta": 1,
        "turn_context": 1,
    }
    assert (rollout.exchange().source, rollout.exchange().requirements) == (ADD, ADD_REQUIREMENTS)
    assert read.sessions["0199-a"].turns[0].timestamp.isoformat() == "2026-11-20T10:05:00+00:00"


def test_the_older_form_without_payload_is_read():
    rollout = talk(session="old", flat=True)
    rollout.raw({"record_type": "state"})
    read = rollout.read()
    assert list(read.sessions) == ["old"] and read.malformed == {} and read.skipped["state"] == 1
    assert rollout.exchange().requirements == ADD_REQUIREMENTS
    assert rollout.messages()[-1]["content"] == ADD_REQUIREMENTS
    assert read.sessions["old"].turns[-1].timestamp.isoformat() == "2026-11-20T10:00:00+00:00"


def test_a_file_without_its_first_line_is_the_session_that_its_name_names():
    rollout = RolloutBuilder(meta=False)
    rollout.prompt("Hello")
    name = "rollout-2025-05-07T17-24-21-5973b6c0-94b8-487b-a530-2aeb6098ae0e"
    assert list(rollout.read(name).sessions) == ["5973b6c0-94b8-487b-a530-2aeb6098ae0e"]
    assert list(rollout.read("notes").sessions) == ["notes"]
    assert rollout.read(None).malformed == {"no_session": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENVIRONMENT, ""),
        (f"{ENVIRONMENT}\nAdd a test.", "\nAdd a test."),
        ("<user_instructions>\nBe brief.\n</user_instructions>\n" + ENVIRONMENT, ""),
        ("<turn_aborted>\nThe user interrupted.", ""),
        ("# AGENTS.md instructions for /w\n\n<INSTRUCTIONS>\nx\n</INSTRUCTIONS>", ""),
        ("# AGENTS.md instructions for /w\n\nUse tabs.", ""),
        ("<user_shell_command>\n<command>ls</command>\n</user_shell_command>", ""),
        (
            "# Context from my IDE setup:\n\n## Open tabs:\n- a.py\n\n## My request for Codex:\nFix it.",
            "Fix it.",
        ),
        ("Why is <environment_context> in here?", "Why is <environment_context> in here?"),
        ("# AGENTS.md needs a rule", "# AGENTS.md needs a rule"),
    ],
)
def test_what_the_program_inserts_is_not_the_developers_words(text, words):
    assert remove_inserted_text(text) == words


def test_images_are_counted_and_the_words_beside_them_stay():
    rollout = RolloutBuilder()
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    rollout.message("user", "Look", parts=[image, image])
    rollout.message("user", parts=[image])
    assert rollout.texts() == ["Look"] and rollout.read().skipped["image"] == 3
    assert "AAAA" not in json.dumps(rollout.messages())


def test_files_of_a_patch_are_written_files():
    rollout = RolloutBuilder()
    rollout.prompt(f"Write tests for\n```python\n{ADD}\n```")
    added = "\n".join(f"+{line}" for line in TEST_FILE.splitlines())
    rollout.patch(f"*** Add File: tests/test_calc.py\n{added}\n*** Add File: docs/spec.md\n+It shall add.")
    assert rollout.files() == [
        ("written", "tests/test_calc.py", TEST_FILE),
        ("written", "docs/spec.md", "It shall add.\n"),
    ]
    rollout.patch(
        "*** Update File: tests/test_calc.py\n@@ def test_add():\n def test_add():\n"
        "-    assert add(1, 2) == 3\n+    assert add(2, 2) == 4"
    )
    changed = TEST_FILE.replace("add(1, 2) == 3", "add(2, 2) == 4")
    assert rollout.files()[-1] == ("written", "tests/test_calc.py", changed)


@pytest.mark.parametrize(
    "run",
    [
        lambda rollout: rollout.patch("*** Add File: a.py\n+x = 1", code=1),
        lambda rollout: rollout.call("shell_command", {"command": "cat > a.py <<'E'\nx = 1\nE\n"}, FAILED),
        lambda rollout: rollout.shell("cat a.py", "cat: a.py: No such file", code=1),
    ],
)
def test_a_call_that_failed_has_no_file(run):
    rollout = RolloutBuilder()
    rollout.prompt("Hello")
    run(rollout)
    assert rollout.files() == []


FAILED = "Exit code: 1\nWall time: 0 seconds\nOutput:\npermission denied"
DONE = "Chunk ID: 5f\nWall time: 0.1 seconds\nProcess exited with code 0\nOutput:\nx = 1\n"


@pytest.mark.parametrize(
    ("run", "file"),
    [
        (lambda rollout: rollout.shell("cat a.py", "x = 1\n"), ("read", "a.py", "x = 1\n")),
        (
            lambda rollout: rollout.call("exec_command", {"cmd": "sed -n '1,200p' a.py"}, DONE),
            ("read", "a.py", "x = 1\n"),
        ),
        (
            lambda rollout: rollout.call("shell", {"command": ["cat", "a.py"]}, DONE),
            ("read", "a.py", "x = 1\n"),
        ),
        (
            lambda rollout: rollout.call(
                "shell",
                {"command": ["apply_patch", "*** Begin Patch\n*** Add File: a.py\n+x = 1\n*** End Patch"]},
            ),
            ("written", "a.py", "x = 1\n"),
        ),
        (
            lambda rollout: rollout.shell(
                "apply_patch <<'EOF'\n*** Begin Patch\n*** Add File: a.py\n+x = 1\n*** End Patch\nEOF"
            ),
            ("written", "a.py", "x = 1\n"),
        ),
        (
            lambda rollout: rollout.shell("cat > a.py <<'EOF'\nx = 1\nEOF"),
            ("written", "a.py", "x = 1\n"),
        ),
        (
            lambda rollout: rollout.call("mcp__fs__write_file", {"path": "a.py", "content": "x = 1"}),
            ("written", "a.py", "x = 1"),
        ),
    ],
)
def test_files_that_tools_show_or_write_are_parts(run, file):
    rollout = RolloutBuilder()
    rollout.prompt("Hello")
    run(rollout)
    assert rollout.files() == [file]


def test_a_shortened_output_is_no_file_and_the_beginning_of_one_cannot_be_edited():
    rollout = RolloutBuilder()
    rollout.prompt("Hello")
    rollout.shell("cat a.py", "x = 1\n[... omitted 12 of 340 lines ...]\ny = 2\n")
    assert rollout.files() == []
    rollout.shell("sed -n '1,2p' a.py", "x = 1\ny = 2\n")
    rollout.patch("*** Update File: a.py\n@@\n-x = 1\n+x = 2")
    assert rollout.files() == [("read", "a.py", "x = 1\ny = 2\n")]


def test_a_local_shell_call_is_a_call():
    rollout = RolloutBuilder()
    rollout.prompt("Hello")
    action = {"type": "exec", "command": ["bash", "-lc", "cat a.py"], "env": {}}
    rollout.item(type="local_shell_call", call_id="c", status="completed", action=action)
    rollout.item(type="function_call_output", call_id="c", output={"content": "x = 1\n", "success": True})
    assert rollout.files() == [("read", "a.py", "x = 1\n")]


def test_what_was_rolled_back_is_not_read():
    rollout = RolloutBuilder()
    for text in ("one", "two", "three"):
        rollout.prompt(text)
        rollout.answer(f"answer to {text}")
    rollout.event("thread_rolled_back", num_turns=2)
    rollout.prompt("four")
    assert rollout.texts() == ["one", "answer to one", "four"]
    session = rollout.read().sessions["s"]
    assert rollout.read().skipped["rewound"] == 4 and len(session.dead) == 4


@pytest.mark.parametrize("meta", [{"source": {"subagent": "review"}}, {"thread_source": "subagent"}])
def test_the_session_of_a_subagent_is_no_conversation(meta):
    rollout = talk(**meta)
    read = rollout.read()
    assert read.sessions == {} and read.skipped["sidechain"] > 3


def test_broken_lines_are_counted_and_the_rest_is_read():
    rollout = RolloutBuilder()
    rollout.prompt("Hello")
    for raw in (
        "{not json",
        "[1]",
        '{"a": 1}',
        json.dumps({"type": "response_item", "payload": {"type": "message", "role": 7, "content": []}}),
        json.dumps({"type": "response_item", "payload": {"type": "message", "role": "user", "content": 7}}),
        json.dumps({"type": "response_item", "payload": {"type": "function_call", "arguments": "{}"}}),
        json.dumps({"type": "response_item", "payload": {"type": ["message"]}}),
        "[" * 100_000,
        json.dumps({"messages": []}),
    ):
        rollout.raw(raw)
    rollout.answer("Hi.")
    raw = rollout.to_bytes() + b'{"timestamp": "2026", "payload": "\xff"}\n' + rollout.to_bytes()[:-40]
    read = read_rollout(io.BytesIO(raw), name="x")
    assert read.malformed == {
        "no_call": 2,
        "no_message": 4,
        "no_object": 2,
        "no_type": 4,
        "not_json": 3,
        "not_utf8": 1,
        "too_deep": 2,
    }
    assert read.foreign == {"OpenAI messages file": 2}
    assert [turn.content for turn in read.sessions["s"].turns] == ["Hello", "Hi.", "Hello"]


@pytest.mark.parametrize(
    "change",
    [lambda raw: raw.replace(b"\n", b"\r\n"), lambda raw: b"\xef\xbb\xbf" + raw, lambda raw: raw[:-1]],
)
def test_line_ends_marks_and_a_missing_last_line_end_are_accepted(change):
    raw = change(talk().to_bytes())
    assert [turn.role for turn in read_rollout(io.BytesIO(raw)).sessions["s"].turns].count("assistant") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", ["<skill></skill>", "<skill>", "# Context from my IDE setup\n## My request", "\n"]
)
def test_removing_inserted_text_takes_time_in_proportion_to_its_length(unit):
    def measure(count: int) -> float:
        start = time.process_time()
        remove_inserted_text(unit * count)
        return time.process_time() - start

    assert measure(200_000) < 30 * max(measure(20_000), 0.01)
