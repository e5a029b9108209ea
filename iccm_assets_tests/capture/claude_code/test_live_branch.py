"""Which lines of a transcript are the conversation: rewinds, compactions, broken parents, parallel tools."""

from __future__ import annotations

import io
import json
import random

import pytest

from iccm_assets.capture.claude_code.transcripts import read_transcript
from iccm_assets_tests.factories.growth import assert_linear, cpu_seconds
from iccm_assets_tests.factories.transcripts import (
    ADD,
    ADD_REQUIREMENTS,
    SUB,
    SUB_REQUIREMENTS,
    TranscriptBuilder,
    ask,
)

pytestmark = pytest.mark.usefixtures("frozen_heap")

SUMMARY = (
    "This session is being continued from a previous conversation that ran out of context.\n```python\nx\n```"
)


def hello() -> TranscriptBuilder:
    transcript = TranscriptBuilder()
    transcript.prompt("Hello")
    transcript.answer("Hi.")
    return transcript


def test_a_prompt_that_was_edited_is_left_out_with_its_answers():
    transcript = hello()
    start = transcript.last
    transcript.prompt(ask(ADD))
    transcript.answer(ADD_REQUIREMENTS)
    transcript.prompt(ask(SUB), parent=start)
    transcript.answer(SUB_REQUIREMENTS)
    assert transcript.texts() == ["Hello", "Hi.", ask(SUB), SUB_REQUIREMENTS]
    assert transcript.read().skipped == {"rewound": 2}
    assert (transcript.exchange().source, transcript.exchange().requirements) == (SUB, SUB_REQUIREMENTS)


def test_a_prompt_that_was_edited_twice_leaves_the_last_version():
    transcript = hello()
    start = transcript.last
    for number in range(3):
        transcript.prompt(f"version {number}", parent=start)
        transcript.answer(f"answer {number}")
    assert transcript.texts() == ["Hello", "Hi.", "version 2", "answer 2"]


def test_the_first_prompt_may_be_edited_too():
    transcript = TranscriptBuilder()
    transcript.prompt(ask(ADD))
    transcript.answer(ADD_REQUIREMENTS)
    transcript.prompt(ask(SUB), parent=None)
    transcript.answer(SUB_REQUIREMENTS)
    assert transcript.texts() == [ask(SUB), SUB_REQUIREMENTS]


def test_a_return_to_an_older_branch_revives_it():
    transcript = hello()
    start = transcript.last
    transcript.prompt("first")
    first = transcript.answer("first answer")
    transcript.prompt("second", parent=start)
    transcript.answer("second answer")
    transcript.prompt("on with the first", parent=first)
    assert transcript.texts() == ["Hello", "Hi.", "first", "first answer", "on with the first"]


def test_a_prompt_that_was_edited_after_a_tool_call_is_left_out_with_the_calls():
    transcript = hello()
    start = transcript.last
    transcript.prompt("dead")
    transcript.use("Write", {"file_path": "requirements.md", "content": ADD_REQUIREMENTS})
    transcript.answer("dead answer")
    transcript.prompt("live", parent=start)
    transcript.answer("live answer")
    assert transcript.texts() == ["Hello", "Hi.", "live", "live answer"] and transcript.files() == []


def test_messages_of_a_subagent_are_left_out():
    transcript = hello()
    start = transcript.last
    transcript.prompt(ask(ADD), parent=None, isSidechain=True)
    transcript.answer(ADD_REQUIREMENTS, isSidechain=True)
    transcript.prompt("thanks", parent=start)
    assert transcript.texts() == ["Hello", "Hi.", "thanks"]
    assert transcript.read().skipped == {"sidechain": 2}


@pytest.mark.parametrize("logical", [True, False])
@pytest.mark.parametrize("flagged", [True, False])
def test_a_compaction_continues_the_conversation(logical, flagged):
    transcript = TranscriptBuilder()
    transcript.prompt(ask(ADD))
    last = transcript.answer("Let me think.")
    parents = {"logicalParentUuid": last} if logical else {}
    transcript.add("system", parent=None, subtype="compact_boundary", content="Compacted", **parents)
    transcript.prompt(SUMMARY, **({"isCompactSummary": True} if flagged else {}))
    transcript.answer(ADD_REQUIREMENTS)
    assert (transcript.exchange().source, transcript.exchange().requirements) == (ADD, ADD_REQUIREMENTS)
    assert transcript.texts() == [ask(ADD), "Let me think.", ADD_REQUIREMENTS]


def test_a_summary_without_a_parent_continues_the_conversation():
    transcript = TranscriptBuilder()
    transcript.prompt(ask(ADD))
    transcript.answer("Let me think.")
    transcript.prompt(SUMMARY, parent=None)
    transcript.answer(ADD_REQUIREMENTS)
    assert (transcript.exchange().source, transcript.exchange().requirements) == (ADD, ADD_REQUIREMENTS)


def test_a_summary_with_words_after_it_continues_the_conversation():
    transcript = TranscriptBuilder()
    transcript.prompt(ask(ADD))
    transcript.answer("Let me think.")
    end = "Please continue the conversation from where we left it off."
    transcript.prompt(f"{SUMMARY}\n{end}\nNow write them.", parent=None)
    transcript.answer(ADD_REQUIREMENTS)
    assert (transcript.exchange().source, transcript.exchange().requirements) == (ADD, ADD_REQUIREMENTS)


def test_a_compaction_after_a_rewind_continues_the_live_branch():
    transcript = hello()
    start = transcript.last
    transcript.prompt("dead")
    transcript.prompt("live", parent=start)
    live = transcript.answer("live answer")
    transcript.add("system", parent=None, logicalParentUuid=live, subtype="compact_boundary")
    transcript.prompt(SUMMARY, isCompactSummary=True)
    transcript.prompt("more")
    assert transcript.texts() == ["Hello", "Hi.", "live", "live answer", "more"]


def test_a_compaction_that_moves_its_last_message_below_itself_loses_nothing():
    transcript = hello()
    transcript.prompt("kept")
    kept = transcript.last
    boundary = transcript.add("system", parent=None, logicalParentUuid=kept, subtype="compact_boundary")
    summary = transcript.prompt(SUMMARY, isCompactSummary=True, parent=boundary)
    moved = json.loads(transcript.lines[2])
    transcript.lines[2] = json.dumps({**moved, "parentUuid": summary})
    transcript.answer("after", parent=kept)
    assert sorted(transcript.texts()) == ["Hello", "Hi.", "after", "kept"]


@pytest.mark.parametrize("parent", ["unknown", "self"])
def test_a_line_with_a_broken_parent_follows_the_line_above_it(parent):
    transcript = hello()
    transcript.prompt(ask(ADD), parent="s-3" if parent == "self" else "unknown")
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.texts() == ["Hello", "Hi.", ask(ADD), ADD_REQUIREMENTS]


def test_a_line_that_cannot_be_read_does_not_hide_what_is_above_it():
    transcript = hello()
    transcript.prompt(ask(ADD))
    transcript.lines[1] = transcript.lines[1][:50]
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.texts() == ["Hello", ask(ADD), ADD_REQUIREMENTS]
    assert transcript.read().malformed == {"not_json": 1}


def test_both_versions_of_an_edited_prompt_below_an_unreadable_line_are_not_read():
    transcript = hello()
    start = transcript.last
    transcript.prompt("dead", parent=start)
    transcript.answer("dead answer")
    transcript.prompt("live", parent=start)
    transcript.lines[1] = "{"
    assert transcript.texts() == ["Hello", "live"]


def test_a_cycle_of_parents_loses_nothing():
    transcript = TranscriptBuilder()
    transcript.prompt("one", parent="s-3")
    transcript.answer("two", parent="s-1")
    transcript.prompt("three", parent="s-2")
    assert sorted(transcript.texts()) == ["one", "three", "two"]


def test_a_child_that_is_written_before_its_parent_comes_after_it():
    transcript = hello()
    start = transcript.last
    transcript.answer("answer", parent="s-4")
    transcript.prompt("question", parent=start)
    assert transcript.texts() == ["Hello", "Hi.", "question", "answer"]


def test_lines_without_ids_are_read_one_after_the_other():
    transcript = TranscriptBuilder()
    for text in ("one", "two", "two"):
        transcript.raw({"type": "user", "sessionId": "s", "message": {"role": "user", "content": text}})
    assert transcript.texts() == ["one", "two", "two"]


def test_parents_that_are_all_missing_say_nothing():
    transcript = TranscriptBuilder()
    transcript.prompt("one", parent=None)
    transcript.answer("two", parent=None)
    transcript.prompt("three", parent=None)
    assert transcript.texts() == ["one", "two", "three"]


def test_results_of_parallel_tools_belong_to_the_branch():
    transcript = hello()
    first = transcript.call("Bash", {"command": "ls"}, id="m")
    first_line = transcript.last
    second = transcript.call("Bash", {"command": "pwd"}, id="m")
    second_line = transcript.last
    transcript.result(second, "pwd result", parent=second_line)
    side = transcript.result(first, "ls result", parent=first_line)
    transcript.answer("done", parent=side)
    texts = transcript.texts()
    assert texts[-1] == "done" and len(texts) == 6
    assert transcript.read().skipped == {}


def test_a_late_result_at_the_end_does_not_hide_the_answer():
    transcript = hello()
    tool = transcript.call("Bash", {"command": "ls"}, id="m")
    line = transcript.last
    transcript.answer("meanwhile", id="m")
    transcript.result(tool, parent=line)
    assert any("meanwhile" in text for text in transcript.texts()) and transcript.read().skipped == {}


def test_notes_between_messages_are_part_of_the_chain():
    transcript = hello()
    transcript.add("progress", data={})
    transcript.add("system", subtype="turn_duration")
    transcript.prompt("go on")
    assert transcript.texts() == ["Hello", "Hi.", "go on"]


def test_a_line_that_is_written_twice_counts_once():
    transcript = hello()
    transcript.lines += transcript.lines
    assert transcript.texts() == ["Hello", "Hi."] and transcript.read().skipped == {"repeated": 2}


def test_history_that_is_appended_again_without_parents_does_not_cut_the_branch():
    transcript = hello()
    transcript.prompt("question")
    transcript.lines += [json.dumps({**json.loads(line), "parentUuid": None}) for line in transcript.lines]
    transcript.answer("answer")
    assert transcript.texts() == ["Hello", "Hi.", "question", "answer"]


@pytest.mark.parametrize("identity", [{"id": "msg_local"}, {"id": "msg_local", "requestId": "r"}])
def test_answers_with_one_id_stay_apart_if_a_prompt_is_between_them(identity):
    transcript = TranscriptBuilder()
    transcript.prompt(ask(ADD))
    transcript.answer("Which style?", **identity)
    transcript.prompt("Short")
    transcript.answer(ADD_REQUIREMENTS, **identity)
    assert transcript.texts() == [ask(ADD), "Which style?", "Short", ADD_REQUIREMENTS]


def test_answers_with_one_id_stay_apart_if_a_result_is_between_them():
    transcript = hello()
    transcript.result(transcript.call("Bash", {"command": "ls"}, id="msg_local"), "files")
    transcript.answer("done", id="msg_local")
    assert transcript.texts()[-1] == "done" and len(transcript.texts()) == 5


def test_answers_with_one_id_of_two_requests_stay_apart():
    transcript = hello()
    transcript.answer("one", id="m", requestId="r1")
    transcript.answer("two", id="m", requestId="r2")
    assert transcript.texts() == ["Hello", "Hi.", "one", "two"]


def test_the_lines_of_one_answer_are_one_message():
    transcript = hello()
    transcript.answer([{"type": "thinking", "thinking": "hm"}], id="m", requestId="r")
    transcript.answer("The function", id="m", requestId="r")
    transcript.answer("The function add", id="m", requestId="r")
    turns = transcript.read().sessions["s"].turns
    assert [block["type"] for block in turns[-1].content] == ["thinking", "text"]
    assert turns[-1].content[-1]["text"] == "The function add" and len(turns) == 3


def test_a_session_that_continues_another_in_the_same_file_inherits_its_turns():
    first = hello()
    second = TranscriptBuilder("t")
    second.prompt("later", parent=first.last)
    first.lines += second.lines
    sessions = first.read().sessions
    assert [turn.content for turn in sessions["t"].turns] == ["later"]
    assert len(sessions["t"].inherited) == 2 and sessions["t"].parent == "s"
    assert len(sessions["s"].turns) == 2


def hostile(count: int, shape: str) -> bytes:
    """A file of many lines in a shape that invites repeated work."""
    draw = random.Random(5)
    transcript = TranscriptBuilder()
    for number in range(count):
        parents = {
            "chain": transcript.last,
            "star": "s-1",
            "cycle": f"s-{number + 2}",
            "random": f"s-{draw.randrange(count)}",
            "unknown": f"x{number}",
        }
        if shape == "sessions":
            transcript.session = f"s{number}"
        parent = parents.get(shape, transcript.last)
        if shape == "one answer":
            transcript.answer(f"text {number}", id="m")
        else:
            (transcript.prompt if number % 2 else transcript.answer)(f"text {number}", parent=parent)
        if shape == "queue":
            transcript.queue("enqueue", f"queued {number % 7}")
            transcript.queue("dequeue")
    return transcript.to_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", ["chain", "star", "cycle", "random", "unknown", "sessions", "one answer", "queue"]
)
def test_reading_takes_linear_time(shape):
    def seconds(size: int) -> float:
        raw = hostile(size, shape)
        return cpu_seconds(lambda: read_transcript(io.BytesIO(raw)))

    assert_linear(seconds, 1500)
