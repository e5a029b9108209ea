import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.capture.extraction import (
    Exchange,
    extract_exchange,
    extract_exchanges,
    extract_requirements,
    extract_source,
)
from iccm_assets.capture.fences import code_blocks
from iccm_assets.capture.messages import parse_messages


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


ASK = user("What does this do?\n```python\ndef f(x):\n    return x + 1\n```\nThanks")
ANSWER = assistant("The function f shall return x plus one.")


def test_source_and_requirements_are_those_of_the_last_exchange():
    messages = [
        user("```python\nold = 1\n```"),
        assistant("Which file do you mean?"),
        user("```\nnoise\n```\nI mean\n```python\ndef f(x):\n    return x + 1\n```"),
        ANSWER,
        user("Now this: ```python\nlater = 2\n```\n```python\nlater = 2\n```"),
        assistant("It shall be 2."),
    ]
    assert extract_exchanges(messages, {}) == [
        Exchange("def f(x):\n    return x + 1", "The function f shall return x plus one."),
        Exchange("later = 2", "It shall be 2."),
    ]
    assert extract_exchange(messages, {}) == Exchange("later = 2", "It shall be 2.")


def test_metadata_has_precedence_and_is_used_unchanged():
    metadata = {"source_code": "  x = 1\n", "requirements": "It shall be so. "}
    assert extract_source([ASK, ANSWER], metadata) == "  x = 1\n"
    assert extract_requirements([ASK, ANSWER], metadata) == "It shall be so. "


@pytest.mark.parametrize("useless", ["", " \n", None, 3, ["x"]])
def test_metadata_without_text_is_as_if_absent(useless):
    metadata = {"source_code": useless, "requirements": useless}
    assert extract_source([ASK, ANSWER], metadata) == "def f(x):\n    return x + 1"
    assert extract_requirements([ASK, ANSWER], metadata) == "The function f shall return x plus one."


def test_the_requirements_are_the_last_assistant_message_with_shall_statements():
    messages = [
        ASK,
        ANSWER,
        user("No."),
        assistant("F SHALL return x + 1.\n"),
        user("It shall do."),
        assistant("Fine!"),
    ]
    assert extract_requirements(messages, {}) == "F SHALL return x + 1."


def test_shall_in_program_code_or_inside_a_word_is_no_statement():
    assert (
        extract_requirements(
            [assistant("Look:\n```python\n# it shall work\n```"), assistant("Too shallow.")], {}
        )
        is None
    )


def test_requirements_in_a_markdown_fence_are_extracted_from_it():
    answer = assistant("Here they are:\n```markdown\n1. f shall add one.\n```\nAnything else?")
    assert extract_requirements([ASK, answer], {}) == "1. f shall add one."
    assert extract_source([ASK, answer, user("```\nz\n```")], {}) == "def f(x):\n    return x + 1"


def test_blocks_are_read_and_tool_results_are_not_the_users_text():
    messages = [
        user([{"type": "text", "text": "```py\na = 1\n```"}, {"type": "image", "source": {}}]),
        user([{"type": "tool_result", "content": "```py\nb = 2\n```"}]),
        assistant(
            [{"type": "thinking", "thinking": "it shall be c"}, {"type": "tool_use", "input": {"x": "shall"}}]
        ),
        assistant([{"type": "text", "text": "a shall be 1."}, {"type": "text", "text": "It shall stay."}]),
    ]
    assert extract_source(messages, {}) == "a = 1"
    assert extract_requirements(messages, {}) == "a shall be 1.\nIt shall stay."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~~~js\na\n~~~", ["a"]),
        ("````\n```\ninner\n```\n````", ["```\ninner\n```"]),
        ("```python\nnever closed\n", ["never closed\n"]),
        ("```\r\nwindows\r\nlines\r\n```\r\n", ["windows\nlines"]),
        ("   ```\nindented\n  ```", ["indented"]),
        ("    ```\ncode by indentation, no fence\n    ```", []),
        ("inline ```x``` is no fence", []),
        ("```\n```", [""]),
        ("```a\n1\n```\n```b\n2\n```", ["1", "2"]),
    ],
)
def test_fences_follow_markdown(text, expected):
    assert [fence.content for fence in code_blocks(text)] == expected


def test_an_empty_block_is_no_source():
    assert extract_source([user("```\nx = 1\n```\n```\n\n```"), ANSWER], None) == "x = 1"
    assert extract_source([user("no code at all"), ANSWER], None) is None


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner)
    ),
)


@given(nonsense, nonsense)
def test_nonsense_never_raises(messages, metadata):
    assert isinstance(parse_messages(messages), list)
    assert extract_source(messages, metadata) is None or extract_source(messages, metadata).strip()
    assert (
        extract_requirements(messages, metadata) is None or extract_requirements(messages, metadata).strip()
    )


@pytest.mark.parametrize(
    "text", ["Shall I go on?", "We shall see.", 'Each has a "shall" now.', "What shall we do?"]
)
def test_talk_with_the_word_shall_is_no_statement(text):
    assert (
        extract_requirements([ASK, ANSWER, assistant(text)], {}) == "The function f shall return x plus one."
    )


def test_a_fence_under_a_list_item_loses_the_indentation_of_the_list():
    text = "1. This one:\n\n     ```python\n     def f():\n         return 1\n     ```\n2. thanks"
    assert [fence.content for fence in code_blocks(text)] == ["def f():\n    return 1"]


@pytest.mark.parametrize(
    "hostile", ["`" * 10**6, "```" + " " * 10**6 + "`", "```\n" * 250_000, "~`" * 500_000]
)
def test_hostile_fences_are_parsed_to_their_end(hostile):
    assert sum(len(fence.content) for fence in code_blocks(hostile)) <= len(hostile)
