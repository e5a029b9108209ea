"""Prompts that are typed while the assistant works count once, in the place where they were sent."""

from __future__ import annotations

import pytest

from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, TranscriptBuilder, ask

PROMPT = ask(ADD)


def working() -> tuple[TranscriptBuilder, str]:
    """A session whose assistant runs a tool; the id of the tool call."""
    transcript = TranscriptBuilder()
    transcript.prompt("Please look at the repository first.")
    return transcript, transcript.call("Bash", {"command": "ls"})


def attach(transcript: TranscriptBuilder, prompt: object = PROMPT, **values: object) -> None:
    transcript.attach(type="queued_command", prompt=prompt, **{"commandMode": "prompt", **values})


def prompts(transcript: TranscriptBuilder) -> int:
    return sum(PROMPT in text for text in transcript.texts())


@pytest.mark.parametrize("prompt", [PROMPT, [{"type": "text", "text": PROMPT}]])
@pytest.mark.parametrize("removal", ["before", "after", "none"])
def test_a_prompt_that_was_sent_in_the_running_turn_is_read(prompt, removal):
    transcript, tool = working()
    transcript.queue("enqueue", PROMPT)
    transcript.result(tool, "add.py")
    if removal == "before":
        transcript.queue("remove", PROMPT)
    attach(transcript, prompt)
    if removal == "after":
        transcript.queue("remove", PROMPT, reason="absorbed_mid_turn")
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.texts()[-2:] == [PROMPT, ADD_REQUIREMENTS] and prompts(transcript) == 1
    assert transcript.exchange().source == ADD


def test_a_prompt_that_was_absorbed_without_an_attachment_is_read():
    transcript, tool = working()
    transcript.queue("enqueue", PROMPT)
    transcript.result(tool, "add.py")
    transcript.queue("remove", PROMPT, reason="absorbed_mid_turn")
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.texts()[-2:] == [PROMPT, ADD_REQUIREMENTS] and prompts(transcript) == 1


@pytest.mark.parametrize("content", [None, PROMPT])
def test_a_prompt_that_was_sent_as_a_message_of_its_own_counts_once(content):
    transcript, tool = working()
    transcript.queue("enqueue", PROMPT)
    transcript.result(tool, "add.py")
    transcript.answer("There is one file.")
    transcript.queue("dequeue", content)
    transcript.prompt(PROMPT)
    transcript.answer(ADD_REQUIREMENTS)
    assert prompts(transcript) == 1 and transcript.texts()[-3] == "There is one file."


@pytest.mark.parametrize("attached_first", [True, False])
def test_a_prompt_in_both_kinds_of_line_counts_once(attached_first):
    transcript, tool = working()
    transcript.queue("enqueue", PROMPT)
    transcript.result(tool, "add.py")
    for attached in (attached_first, not attached_first):
        if attached:
            attach(transcript)
        else:
            transcript.prompt(PROMPT)
    transcript.answer(ADD_REQUIREMENTS)
    assert prompts(transcript) == 1 and transcript.texts()[-1] == ADD_REQUIREMENTS


def test_a_prompt_that_is_still_queued_is_read_where_it_was_typed():
    transcript, tool = working()
    transcript.result(tool, "add.py")
    transcript.queue("enqueue", PROMPT)
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.texts()[-2:] == [PROMPT, ADD_REQUIREMENTS]


@pytest.mark.parametrize(
    "operations", [[("remove", PROMPT)], [("remove", None)], [("popAll", None)], [("dequeue", None)]]
)
def test_a_prompt_that_was_removed_or_never_sent_is_not_read(operations):
    transcript, tool = working()
    transcript.queue("enqueue", PROMPT)
    for operation in operations:
        transcript.queue(*operation)
    transcript.result(tool, "add.py")
    transcript.answer("Done.")
    assert prompts(transcript) == 0


def test_a_prompt_that_was_taken_back_and_queued_again_can_be_removed_again():
    transcript, tool = working()
    for operation, content in (
        ("enqueue", PROMPT),
        ("popAll", None),
        ("enqueue", PROMPT),
        ("remove", PROMPT),
    ):
        transcript.queue(operation, content)
    transcript.result(tool, "add.py")
    assert prompts(transcript) == 0


def test_the_other_prompts_stay_in_the_queue_when_one_is_taken_out():
    transcript, tool = working()
    transcript.queue("enqueue", "first")
    transcript.queue("enqueue", "second")
    transcript.queue("enqueue", "third")
    transcript.queue("dequeue")
    transcript.queue("remove", "third")
    transcript.result(tool, "add.py")
    assert "second" in transcript.texts() and not {"first", "third"} & set(transcript.texts())


def test_the_same_words_twice_are_two_prompts():
    transcript, tool = working()
    attach(transcript, "continue")
    transcript.result(tool, "add.py")
    transcript.answer("Part one.")
    transcript.prompt("continue")
    assert transcript.texts().count("continue") == 2


def test_a_prompt_that_was_sent_and_then_edited_is_not_read():
    transcript, tool = working()
    transcript.result(tool, "add.py")
    start = transcript.answer("There is one file.")
    transcript.queue("enqueue", PROMPT)
    transcript.queue("dequeue")
    transcript.prompt(PROMPT)
    transcript.answer(ADD_REQUIREMENTS)
    transcript.prompt("Something else", parent=start)
    assert prompts(transcript) == 0 and transcript.texts()[-1] == "Something else"


def test_an_attachment_of_an_edited_prompt_is_not_read():
    transcript, tool = working()
    transcript.result(tool, "add.py")
    start = transcript.answer("There is one file.")
    transcript.prompt("dead")
    attach(transcript)
    transcript.answer(ADD_REQUIREMENTS)
    transcript.prompt("live", parent=start)
    assert prompts(transcript) == 0


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("<task-notification>a task ended</task-notification>", {}),
        ("a task ended", {"commandMode": "task-notification"}),
        ("from a colleague", {"origin": {"kind": "peer"}}),
        ("a reminder", {"isMeta": True}),
        ("  ", {}),
        (None, {}),
    ],
)
def test_what_a_program_queued_is_not_a_prompt(prompt, values):
    transcript, tool = working()
    transcript.result(tool, "add.py")
    attach(transcript, prompt, **values)
    assert len(transcript.texts()) == 3


def test_an_attachment_without_ids_follows_the_line_above_it():
    transcript, tool = working()
    transcript.result(tool, "add.py")
    attachment = {"type": "queued_command", "prompt": PROMPT, "commandMode": "prompt"}
    transcript.raw({"type": "attachment", "sessionId": "s", "attachment": attachment})
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.texts()[-2:] == [PROMPT, ADD_REQUIREMENTS]


def test_an_attachment_beside_the_chain_is_read():
    transcript, tool = working()
    line = transcript.result(tool, "add.py")
    attach(transcript)
    transcript.answer(ADD_REQUIREMENTS, parent=line)
    assert transcript.texts()[-2:] == [PROMPT, ADD_REQUIREMENTS]
