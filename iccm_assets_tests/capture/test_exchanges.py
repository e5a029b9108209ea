"""A session holds exchanges; the last accepted one is the example."""

# ruff: noqa: E501 (a sample per line is easier to compare than a wrapped text)
from __future__ import annotations

import hashlib
import json

import pytest

from iccm_assets.capture.extraction import (
    Exchange,
    extract_exchange,
    extract_exchanges,
    extract_requirements,
    extract_source,
    find_source,
)
from iccm_assets_tests.factories.exchanges import (
    ADD_ANSWER,
    FENCED_SUB,
    SUB,
    SUB_ANSWER,
    TWO_MODULES,
    talk,
)
from iccm_assets_tests.factories.sources import ADD, FENCED_ADD

NUMBERED = "1. `add` shall take `a` and `b`.\n2. `add` shall return `a` plus `b`.\n3. `add` shall not print."


def test_of_two_modules_the_last_source_goes_with_its_own_requirements() -> None:
    assert extract_exchange(TWO_MODULES, {}) == Exchange(SUB, SUB_ANSWER)
    assert extract_exchanges(TWO_MODULES, {}) == [Exchange(ADD, ADD_ANSWER), Exchange(SUB, SUB_ANSWER)]
    assert (extract_source(TWO_MODULES, {}), extract_requirements(TWO_MODULES, {})) == (SUB, SUB_ANSWER)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (f"```python\n{SUB}\n```", "It shall return a minus b."),
        (f"Now unfenced:\n\n{SUB}", "It must return a minus b."),
        (f"<code>{SUB}</code>", "- takes a and b\n- shall return a minus b"),
        ([{"type": "text", "text": "this"}, {"type": "file", "path": "sub.py", "text": SUB, "action": "attached"}], SUB_ANSWER),
    ],
)  # fmt: skip
def test_new_code_begins_a_new_exchange_in_every_form(question: object, answer: str) -> None:
    messages = talk(FENCED_ADD, ADD_ANSWER, question, answer)
    assert extract_exchange(messages, {}) == Exchange(SUB, answer)


def test_three_modules_are_three_exchanges() -> None:
    mul, mul_answer = "def mul(a, b):\n    return a * b", "The function mul must return a times b."
    messages = [*TWO_MODULES, *talk(f"```python\n{mul}\n```", mul_answer, "Thanks!", "You are welcome.")]
    assert extract_exchanges(messages, {}) == [
        Exchange(ADD, ADD_ANSWER),
        Exchange(SUB, SUB_ANSWER),
        Exchange(mul, mul_answer),
    ]


@pytest.mark.parametrize(
    "follow_up",
    [
        "shorter, please",
        "No. Please mention both arguments.",
        "It prints\n```\n3\n```\nfor 1 and 2. Is that in it?",
        "I call it like this:\n```python\nprint(add(1, 2))\n```",
        "What about this line?\n```python\n    return a + b\n```",
        "The tests are\n```python\ndef test_add():\n    assert add(1, 2) == 3\n```",
        f"Once more, the same code:\n{FENCED_ADD}",
        '```json\n{"a": 1}\n```',
        "```bash\npytest -q\n```",
    ],
)
def test_a_follow_up_without_new_code_belongs_to_the_previous_source(follow_up: str) -> None:
    shorter = "add shall return a + b."
    messages = talk(FENCED_ADD, ADD_ANSWER, follow_up, shorter)
    assert extract_exchanges(messages, {}) == [Exchange(ADD, shorter)]


def test_a_follow_up_with_a_caller_still_is_about_the_function_that_is_named() -> None:
    caller = "Callers use it so:\n```python\ndef total(xs):\n    return add(xs[0], xs[1])\n```"
    answer = "The function `add` shall return the sum of two numbers."
    assert extract_exchange(talk(FENCED_ADD, ADD_ANSWER, caller, answer), {}) == Exchange(ADD, answer)


def test_a_changed_version_of_the_code_is_a_new_source() -> None:
    version = "def add(a, b, c=0):\n    return a + b + c"
    answer = "The function `add` shall return the sum of three numbers."
    messages = talk(FENCED_ADD, ADD_ANSWER, f"I changed it:\n```python\n{version}\n```", answer)
    assert extract_exchange(messages, {}) == Exchange(version, answer)


def test_a_follow_up_in_the_second_exchange_belongs_to_the_second_source() -> None:
    messages = [*TWO_MODULES, *talk("shorter, please", "sub shall return a - b.")]
    assert extract_exchange(messages, {}) == Exchange(SUB, "sub shall return a - b.")


@pytest.mark.parametrize(
    ("request_text", "answer", "number", "text"),
    [
        ("Make 2 exact.", "Requirement 2 now reads: `add` shall return the exact sum.", 2, "`add` shall return the exact sum."),
        ("Make it exact.", "2. `add` shall return the exact sum.", 2, "`add` shall return the exact sum."),
        ("Print, please.", "Updated item 3: `add` shall print the sum.", 3, "`add` shall print the sum."),
        ("Why not floats?", "Sure:\n\n> 1. `add` shall take two floats.\n\nThe rest stays.", 1, "`add` shall take two floats."),
        ("Floats in requirement 1", "1. `add` shall take two floats.", 1, "`add` shall take two floats."),
        ("Please print", "The third requirement becomes:\n\n`add` shall print the sum.", 3, "`add` shall print the sum."),
        ("Make 2 exact.", "I changed requirement 2 to \"`add` must return the exact sum.\"", 2, "`add` must return the exact sum."),
        ("Make requirement 2 exact.", "`add` shall return the exact sum.", 2, "`add` shall return the exact sum."),
        ("Make 2 exact.", "```text\n2. `add` shall return the exact sum.\n```", 2, "`add` shall return the exact sum."),
        ("Make 2 exact.", "**2.** `add` shall return the exact sum.", 2, "`add` shall return the exact sum."),
        ("And log it.", "4. `add` shall log the sum.", 4, "`add` shall log the sum."),
        ("Mach 2 genau.", "Anforderung 2 lautet jetzt: `add` muss die genaue Summe liefern.", 2, "`add` muss die genaue Summe liefern."),
    ],
)  # fmt: skip
def test_an_answer_that_gives_only_the_changed_item_is_merged(
    request_text: str, answer: str, number: int, text: str
) -> None:
    lines = NUMBERED.split("\n")
    lines[number - 1 :] = [f"{number}. {text}", *lines[number:]]
    accepted = extract_requirements(talk(FENCED_ADD, NUMBERED, request_text, answer), {})
    assert accepted == "\n".join(lines)


@pytest.mark.parametrize(
    "answer",
    [
        "Point 2 now reads: `add` shall return b.",
        "I've updated point 2: `add` shall return b.",
        "Here's the new number 2:\n`add` shall return b.",
        'R2 now reads "`add` shall return b."',
        "#2: `add` shall return b.",
        "2) `add` shall return b.",
        "- 2. `add` shall return b.",
        "Changed:\n\n```markdown\n2. `add` shall return b.\n```",
        "Requirement 2 → `add` shall return b.",
        "Requirement 2 (changed): `add` shall return b.",
        "Only requirement 2 changes: `add` shall return b.",
        "For requirement 2, use: `add` shall return b.",
        "Replace requirement 2 with: `add` shall return b.",
        "Requirement 2 should now be: `add` shall return b.",
        "Requirement 2 must read: `add` shall return b.",
        "The second one is now `add` shall return b.",
        "要件2を次のように変更しました：`add` shall return b.",
        "L'exigence 2 devient : `add` shall return b.",
        "El requisito 2 queda así: `add` shall return b.",
    ],
)
def test_a_changed_item_is_merged_however_it_is_announced(answer: str) -> None:
    lines = NUMBERED.split("\n")
    accepted = extract_requirements(talk(FENCED_ADD, NUMBERED, "Please change it.", answer), {})
    assert accepted == "\n".join([lines[0], "2. `add` shall return b.", lines[2]])


@pytest.mark.parametrize(
    ("request_text", "answer"),
    [
        ("No, the first item!", "`pop` shall return the first item. The first item is removed."),
        ("It must handle number 2.", "`pop` shall return a list of 2 items."),
        ("Please", "Item 3 of the list is special: the function shall return it."),
        ("as IEEE, please", "3.1.1 The product shall take a.\n3.1.2 It shall return a."),
        ("Please", "When the first call is made, it shall return a new list:\n\n- a\n- b"),
        ("the first requirement only", "1. `add` shall take `a`.\n2. `add` shall return `a`."),
    ],
)
def test_a_text_that_mentions_items_of_its_own_is_a_whole_text(request_text: str, answer: str) -> None:
    assert extract_requirements(talk(FENCED_ADD, NUMBERED, request_text, answer), {}) == answer


@pytest.mark.parametrize(
    "answer",
    ["2. is there because callers rely on it.", "Requirement 2: why should it print?", "OK, 2 is fine."],
)
def test_talk_about_an_item_changes_nothing(answer: str) -> None:
    assert extract_requirements(talk(FENCED_ADD, NUMBERED, "What about 2?", answer), {}) == NUMBERED


def test_several_items_are_merged_and_removed() -> None:
    answer = "I removed requirement 3, and requirement 1 now reads: `add` shall take numbers."
    accepted = extract_requirements(talk(FENCED_ADD, NUMBERED, "Please", answer), {})
    assert accepted == "1. `add` shall take numbers.\n2. `add` shall return `a` plus `b`."
    both = "Here are the changed ones:\n1. `add` shall take numbers.\n3. `add` shall print."
    accepted = extract_requirements(talk(FENCED_ADD, NUMBERED, "Please", both), {})
    assert (
        accepted == "1. `add` shall take numbers.\n2. `add` shall return `a` plus `b`.\n3. `add` shall print."
    )


@pytest.mark.parametrize(
    ("before", "answer", "after"),
    [
        ("REQ-001: takes two numbers.\nREQ-002: returns a sum.", "REQ-002: returns their sum.", "REQ-001: takes two numbers.\nREQ-002: returns their sum."),
        ("**R1**: It shall take a.\n**R2**: It shall add.", "Requirement 2 now reads: It shall add a.", "**R1**: It shall take a.\n**R2**: It shall add a."),
        ("- It shall take a.\n- It shall add.", "Requirement 2 now reads: It shall add a.", "- It shall take a.\n- It shall add a."),
        ("It shall take a. It shall add.", "Requirement 2 now reads: It shall add a.", "It shall take a. It shall add a."),
        ("| ID | Requirement |\n|---|---|\n| R1 | It shall add. |", "| R1 | It shall add a and b. |", "| ID | Requirement |\n|---|---|\n| R1 | It shall add a and b. |"),
    ],
)  # fmt: skip
def test_items_are_merged_into_every_form(before: str, answer: str, after: str) -> None:
    follow_up = "Please change R1." if "| R1" in answer else "Please change it."
    assert extract_requirements(talk(FENCED_ADD, before, follow_up, answer), {}) == after


@pytest.mark.parametrize(
    "explanation",
    [
        "Requirement 1 says that it shall take two numbers because the code has two parameters.",
        "Item 2 means that `add` must not return text.",
        "By requirement 3 I mean that the function must never print anything.",
        "I wrote that the function shall not print, since the code has no print.",
        "Yes, `add` must return a number.",
        "Should `add` also round?",
        "That should be all.",
    ],
)
def test_an_answer_that_explains_does_not_replace_the_accepted_text(explanation: str) -> None:
    messages = talk(FENCED_ADD, NUMBERED, "Why?", explanation)
    assert extract_exchange(messages, {}) == Exchange(ADD, NUMBERED)


def test_a_rewritten_text_replaces_the_former() -> None:
    rewritten = "1. `add` must take numbers.\n2. `add` must return their sum."
    assert extract_requirements(talk(FENCED_ADD, NUMBERED, "must, please", rewritten), {}) == rewritten


def test_new_code_takes_no_item_of_the_former_text() -> None:
    answer = "2. `sub` shall return the difference."
    assert extract_exchange(talk(FENCED_ADD, NUMBERED, FENCED_SUB, answer), {}) == Exchange(SUB, answer)


def test_metadata_completes_the_exchange_that_it_belongs_to() -> None:
    assert extract_exchange(TWO_MODULES, {"source_code": ADD}) == Exchange(ADD, ADD_ANSWER)
    assert extract_exchange(TWO_MODULES, {"requirements": ADD_ANSWER}) == Exchange(ADD, ADD_ANSWER)
    assert extract_exchange(TWO_MODULES, {"source_code": SUB}) == Exchange(SUB, SUB_ANSWER)
    own = "The function `add` must return a number."
    assert extract_exchange(TWO_MODULES, {"requirements": own}) == Exchange(ADD, own)
    assert extract_exchange(TWO_MODULES, {"source_code": "x = 1\n"}) == Exchange("x = 1\n", SUB_ANSWER)


def test_accepted_requirements_of_code_without_an_answer_go_with_this_code() -> None:
    messages = talk(FENCED_ADD, ADD_ANSWER, FENCED_SUB, "One moment.", "I wrote them myself.")
    own = "The function `sub` must return the difference."
    assert extract_exchange(messages, {"requirements": own}) == Exchange(SUB, own)


def test_a_given_source_without_an_answer_has_no_requirements() -> None:
    messages = talk(f"{ADD}\n", ADD_ANSWER, f"{SUB}\n", "")
    exchange = extract_exchange(messages, {"source_code": f"{SUB}\n"})
    assert (exchange.source, exchange.requirements) == (f"{SUB}\n", None)
    assert exchange.reason.startswith("no requirements")


def test_sources_that_a_gateway_recorded_go_with_their_own_answers() -> None:
    messages = talk(f"{ADD}\n", ADD_ANSWER, f"{SUB}\n", SUB_ANSWER)
    assert extract_exchange(messages, {"source_code": f"{SUB}\n"}) == Exchange(f"{SUB}\n", SUB_ANSWER)
    assert extract_exchanges(messages, {}) == [
        Exchange(f"{ADD}\n", ADD_ANSWER),
        Exchange(f"{SUB}\n", SUB_ANSWER),
    ]


def test_without_requirements_the_source_is_that_of_the_open_question() -> None:
    exchange = extract_exchange(talk(FENCED_ADD, "Do you want a list?"), {})
    assert (exchange.source, exchange.requirements) == (ADD, None)
    assert "question" in exchange.reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no source code, no requirements (there is no answer)"),
        (talk("Hello", "Hi."), "no source code, no requirements (it does not say what software has to do)"),
        (talk(FENCED_ADD), "no requirements (there is no answer)"),
        (talk(FENCED_ADD, FENCED_ADD), "no requirements (it is code only)"),
        (talk("add, please", ADD_ANSWER), "no source code"),
    ],
)
def test_the_reason_says_what_is_missing(messages: list[object], reason: str) -> None:
    assert extract_exchange(messages, {}).reason == reason


def test_a_document_written_by_a_tool_is_the_answer() -> None:
    document = "# Requirements\n\n1. The function add shall return the sum of a and b.\n"
    written = {"type": "file", "path": "requirements.md", "text": document, "action": "written"}
    messages = [
        *talk(f"{FENCED_ADD}\nSave the requirements in requirements.md"),
        {"role": "assistant", "content": [written]},
        {"role": "tool", "content": "File created successfully"},
        {"role": "assistant", "content": "I saved the requirements to requirements.md."},
    ]
    assert extract_exchange(messages, {}) == Exchange(ADD, document.strip())


@pytest.mark.parametrize(
    "call",
    [
        {"tool_calls": [{"id": "1", "function": {"name": "write_file", "arguments": json.dumps({"path": "req.md", "content": ADD_ANSWER})}}]},
        {"content": [{"type": "tool_use", "id": "1", "name": "Write", "input": {"file_path": "req.md", "content": ADD_ANSWER}}]},
        {"content": [{"type": "tool_use", "id": "1", "name": "ExitPlanMode", "input": {"plan": ADD_ANSWER}}]},
    ],
)  # fmt: skip
def test_a_document_in_a_tool_call_is_the_answer(call: dict[str, object]) -> None:
    messages = [*talk(FENCED_ADD), {"role": "assistant", "content": None, **call}]
    assert extract_exchange(messages, {}) == Exchange(ADD, ADD_ANSWER)


def test_code_that_a_tool_writes_is_neither_source_nor_requirements() -> None:
    code = {"type": "file", "path": "sub.py", "text": f"{SUB}\n# it shall work\n", "action": "written"}
    messages = [*talk(FENCED_ADD), {"role": "assistant", "content": [code]}]
    assert extract_exchange(messages, {}).requirements is None
    assert extract_source(messages, {}) == ADD


def test_reasoning_before_an_answer_is_no_answer() -> None:
    messages = talk(FENCED_ADD, "<think>It shall be short. It must name add.</think>\nWhich style?")
    assert extract_requirements(messages, {}) is None
    messages = talk(FENCED_ADD, f"<think>It shall be short.</think>\n{ADD_ANSWER}")
    assert extract_requirements(messages, {}) == ADD_ANSWER


def test_words_after_the_requirements_in_one_turn_do_not_replace_them() -> None:
    messages = [
        *talk(FENCED_ADD, NUMBERED),
        {"role": "assistant", "content": "Requirement 2 says that it shall return the sum."},
        {"role": "assistant", "content": "I hope this helps. The function should be fine."},
    ]
    assert extract_exchange(messages, {}) == Exchange(ADD, NUMBERED)


def test_the_source_of_every_requirements_row_is_found_by_its_digest() -> None:
    raw = "whatever language this is\n"
    messages = [*TWO_MODULES, *talk(raw, "It must work.")]
    for source in (ADD, SUB, raw, "given\n"):
        digest = hashlib.sha256(source.encode()).hexdigest()
        assert find_source(messages, {"source_code": "given\n"}, digest) == source
    assert find_source(messages, {}, "0" * 64) is None
    assert find_source(messages, {}, None) is None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (ADD, ADD_ANSWER),
        (FENCED_ADD, "It returns the sum."),
        (ADD, ""),
        (f"Why is this slow?\n\n{ADD}", "The function should return the sum sooner."),
        (f"Write down what it must do.\n\n{ADD}", "The function should return the sum sooner."),
    ],
)
def test_the_only_answer_about_a_given_source_is_read_as_in_a_longer_conversation(question, answer) -> None:
    metadata = {"source_code": ADD}
    system = {"role": "system", "content": "You write requirements."}
    alone = extract_exchange(talk(question, answer), metadata)
    assert alone == extract_exchange([system, *talk(question, answer)], metadata)
    assert alone.source == ADD
