"""Which code of a message is the source that the requirements are about."""

from __future__ import annotations

import pytest

from iccm_assets.capture.extraction import Exchange, extract_exchange, extract_source
from iccm_assets_tests.factories.sources import ADD, FENCED_ADD, SOURCES, TESTS

ANSWER = {"role": "assistant", "content": "The function `add` shall return the sum of `a` and `b`."}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def file(path: str, text: str, action: str) -> dict[str, str]:
    return {"type": "file", "path": path, "text": text, "action": action}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_source_is_the_code_that_the_requirements_answer(kind: str) -> None:
    content, source = SOURCES[kind]
    exchange = extract_exchange([user(content), ANSWER], {})
    assert exchange == Exchange(source, ANSWER["content"], "" if source else "no source code")


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_in_parts_is_the_same(kind: str) -> None:
    content, source = SOURCES[kind]
    parts = [{"type": "text", "text": "Hello!"}, {"type": "text", "text": content}]
    if "message that is" not in kind:
        assert extract_source([user(parts), ANSWER], {}) == source


@pytest.mark.parametrize("action", ["attached", "read"])
def test_a_file_is_a_source(action: str) -> None:
    parts = [{"type": "text", "text": "Requirements for @add.py"}, file("src/add.py", f"{ADD}\n", action)]
    assert extract_source([user(parts), ANSWER], {}) == f"{ADD}\n"


def test_among_files_the_one_counts_that_defines_what_the_requirements_name() -> None:
    files = [
        file("src/sub.py", "def sub(a, b):\n    return a - b\n", "read"),
        file("src/add.py", f"{ADD}\n", "read"),
        file("tests/test_add.py", TESTS, "read"),
        file("README.md", "# add\n\ndef add(a, b): see add.py\n", "read"),
        file("main.py", "from add import add\n\n\ndef main():\n    print(add(1, 2))\n", "read"),
    ]
    messages = [user("Write the requirements."), {"role": "tool", "content": files}, ANSWER]
    assert extract_source(messages, {}) == f"{ADD}\n"


def test_among_files_the_mentioned_one_counts() -> None:
    files = [
        file(f"{name}.py", f"def {name}_it(x):\n    return x\n", "read") for name in ("one", "two", "three")
    ]
    answer = {"role": "assistant", "content": "It shall return its argument."}
    messages = [user("Requirements of two.py, please"), {"role": "tool", "content": files}, answer]
    assert extract_source(messages, {}) == "def two_it(x):\n    return x\n"


def test_the_suite_names_the_source() -> None:
    content = f"{FENCED_ADD}\n```python\ndef sub(a, b):\n    return a - b\n```"
    messages = [user(content), {"role": "assistant", "content": "It shall return a number."}]
    cases = {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}
    assert extract_source(messages, {}, cases) == ADD
    assert extract_source(messages, {}, {"kind": "pytest", "files": {"test_add.py": TESTS}}) == ADD
    assert extract_source(messages, {}) == "def sub(a, b):\n    return a - b"


def test_the_suite_names_a_class_by_new() -> None:
    box = "class Box:\n    def put(self, x):\n        self.x = x"
    content = f"```python\n{box}\n```\n```python\nclass Bag:\n    pass\n```"
    suite = {"kind": "cases", "cases": [{"new": "Box", "steps": [{"call": "put", "args": [1]}]}]}
    messages = [user(content), {"role": "assistant", "content": "It shall keep things."}]
    assert "class Box" in (extract_source(messages, {}, suite) or "")
    assert "class Bag" in (extract_source(messages, {}) or "")


@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool", "tool_call_id": "t1", "content": ADD},
        {"role": "tool", "tool_call_id": "t1", "content": [{"type": "text", "text": ADD}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": ADD}]},
        {"role": "tool", "tool_call_id": "t1", "content": "     1→def add(a, b):\n     2→    return a + b"},
        {"role": "function", "name": "read_file", "content": ADD},
    ],
)
def test_the_result_of_a_tool_is_a_source(result: dict[str, object]) -> None:
    call = {
        "id": "t1",
        "type": "function",
        "function": {"name": "read_file", "arguments": '{"path": "add.py"}'},
    }
    messages = [
        user("Write requirements for add.py"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        result,
        ANSWER,
    ]
    assert extract_source(messages, {}) == ADD


def test_what_the_user_shows_counts_more_than_what_a_tool_read() -> None:
    read = {"role": "tool", "content": "def add(a, b, c):\n    return a + b + c"}
    assert extract_source([user(FENCED_ADD), read, ANSWER], {}) == ADD


@pytest.mark.parametrize("flag", ["isCompactSummary", "isMeta"])
def test_a_flagged_message_is_not_the_users(flag: str) -> None:
    summary = user("The code was\n```python\ndef add(x):\n    return x\n```") | {flag: True}
    assert extract_source([user(FENCED_ADD), summary, ANSWER], {}) == ADD


@pytest.mark.parametrize("role", ["user", "human", "Human", "USER"])
@pytest.mark.parametrize("answerer", ["assistant", "ai", "gpt", "model"])
def test_roles_of_other_formats_are_read(role: str, answerer: str) -> None:
    messages = [{"role": role, "content": FENCED_ADD}, {"role": answerer, "content": ANSWER["content"]}]
    assert extract_exchange(messages, {}) == Exchange(ADD, str(ANSWER["content"]))
