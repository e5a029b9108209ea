"""POST /v1/conversations takes what chat programs store, and says which example it holds."""

from __future__ import annotations

import hashlib
import itertools

import pytest

from iccm_assets.sandbox.source_files import join_files
from iccm_assets_tests.factories.gateways import SOURCE, SUITE, eventually, rows
from iccm_assets_tests.factories.programs import CART, FILES
from iccm_assets_tests.factories.requirement_forms import FENCED_FORMS, OTHER_ANSWERS, REQUIREMENT_FORMS
from iccm_assets_tests.factories.sources import ADD, FENCED_ADD, SOURCES

SUB = "def sub(a, b):\n    return a - b\n"
ADD_ANSWER = "The function `add` shall take `a` and `b`. It shall return `a` plus `b`."
SUB_ANSWER = "The function `sub` shall take `a` and `b`. It shall return `a` minus `b`."
SUB_SUITE = {
    "kind": "cases",
    "cases": [{"call": "sub", "args": [1, 2], "expect": -1}, {"call": "sub", "args": [5, 2], "expect": 3}],
}
REQUIREMENTS = "select * from iccm.requirements where session_id = :s order by kind, id"
session_numbers = itertools.count()


@pytest.fixture
def session() -> str:
    return f"completed-{next(session_numbers)}"


def talk(*texts: object, roles: tuple[str, str] = ("user", "assistant")) -> list[dict[str, object]]:
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def post(served, session: str, messages: list[dict[str, object]], **more: object) -> dict[str, object]:
    response = served.client.post(
        "/v1/conversations", json={"session_id": session, "messages": messages, **more}
    )
    assert response.status_code == 200, response.text
    return response.json()


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def test_of_two_modules_the_source_goes_with_the_requirements_and_the_tests(served, engine, session) -> None:
    messages = talk(FENCED_ADD, ADD_ANSWER, f"And this one:\n```python\n{SUB}```", SUB_ANSWER)
    reply = post(served, session, messages, tests=SUB_SUITE)
    assert reply == {
        "conversation_id": reply["conversation_id"],
        "source_code": SUB.rstrip("\n"),
        "requirements": SUB_ANSWER,
        "suite": {"origin": "attached", "status": None, "reason": "it is measured before the first score"},
        "reason": "",
    }
    [accepted] = rows(engine, REQUIREMENTS, s=session)
    assert (accepted.text, accepted.source_sha256) == (SUB_ANSWER, digest(SUB.rstrip("\n")))


@pytest.mark.parametrize("form", REQUIREMENT_FORMS)
def test_requirements_of_every_form_are_stored(served, session, form: str) -> None:
    reply = post(served, session, talk(FENCED_ADD, REQUIREMENT_FORMS[form]))
    assert (reply["source_code"], reply["reason"]) == (ADD, "")
    assert reply["requirements"] == REQUIREMENT_FORMS[form].strip('"`')


@pytest.mark.parametrize("language", FENCED_FORMS)
def test_requirements_in_a_fence_are_stored(served, session, language: str) -> None:
    content = FENCED_FORMS[language]
    reply = post(served, session, talk(FENCED_ADD, f"Here:\n\n```{language}\n{content}\n```"))
    assert (reply["source_code"], reply["requirements"], reply["reason"]) == (ADD, content, "")


@pytest.mark.parametrize("kind", OTHER_ANSWERS)
def test_other_answers_are_refused_with_the_reason(served, session, kind: str) -> None:
    reply = post(served, session, talk(FENCED_ADD, OTHER_ANSWERS[kind]))
    assert (reply["source_code"], reply["requirements"]) == (ADD, None)
    assert str(reply["reason"]).startswith("no requirements (")


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_of_every_kind_are_stored(served, session, kind: str) -> None:
    content, source = SOURCES[kind]
    reply = post(served, session, talk(content, "The function `add` shall return the sum of `a` and `b`."))
    assert (reply["source_code"], reply["reason"]) == (source, "" if source else "no source code")


def test_content_may_be_null_or_missing_or_parts(served, engine, session) -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "read_file", "arguments": '{"path": "add.py"}'},
    }
    messages = [
        {"role": "system", "content": "You write requirements."},
        {"role": "user", "content": [{"type": "text", "text": "Requirements for add.py"}, "please"]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": ADD},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": ADD_ANSWER}]},
    ]
    reply = post(served, session, messages)
    assert (reply["source_code"], reply["requirements"], reply["reason"]) == (ADD, ADD_ANSWER, "")
    [row] = rows(engine, "select content from iccm.conversations where session_id = :s", s=session)
    assert row.content[2]["tool_calls"] == [call]
    assert row.content[1]["content"] == messages[1]["content"]


@pytest.mark.parametrize("roles", [("human", "ai"), ("human", "gpt"), ("user", "model"), ("Human", "AI")])
def test_roles_of_other_programs_are_read(served, session, roles: tuple[str, str]) -> None:
    reply = post(served, session, talk(FENCED_ADD, ADD_ANSWER, roles=roles))
    assert (reply["source_code"], reply["requirements"]) == (ADD, ADD_ANSWER)


@pytest.mark.parametrize("content", [3, {"text": "x"}, [3], True])
def test_other_content_is_refused(served, session, content: object) -> None:
    body = {"session_id": session, "messages": [{"role": "user", "content": content}]}
    assert served.client.post("/v1/conversations", json=body).status_code == 422


def test_a_session_that_holds_nothing_is_stored_and_says_so(served, session) -> None:
    reply = post(served, session, talk("Hello", "Hi."))
    assert (reply["source_code"], reply["requirements"]) == (None, None)
    assert reply["reason"] == "no source code, no requirements (it does not say what software has to do)"
    assert reply["suite"] == {"origin": None, "status": "none", "reason": "no tests came with the session"}


def test_given_requirements_are_accepted_in_any_words(served, session) -> None:
    reply = post(served, session, talk(FENCED_ADD, "Hi."), requirements="adds two numbers")
    assert (reply["source_code"], reply["requirements"]) == (ADD, "adds two numbers")


def ask(served, session: str, source: str, request: str) -> str:
    return served.request(session, source_code=source, request_id=request).json()["requirements"]


def test_each_response_keeps_the_source_of_its_own_request(served, engine, session) -> None:
    first = ask(served, session, SOURCE, f"{session}-1")
    second = ask(served, session, SUB, f"{session}-2")
    eventually(lambda: len(rows(engine, REQUIREMENTS, s=session)) == 3)
    messages = talk(f"```python\n{SUB}```", second, "fine")
    reply = post(served, session, messages, tests=SUB_SUITE, source_code=SUB)
    assert (reply["source_code"], reply["requirements"]) == (SUB, second)
    accepted, earlier, later = rows(engine, REQUIREMENTS, s=session)
    assert (accepted.source_sha256, accepted.text) == (digest(SUB), second)
    assert (earlier.text, earlier.source_sha256, earlier.test_suite) == (first, digest(SOURCE), None)
    assert (later.text, later.source_sha256, later.test_suite) == (second, digest(SUB), SUB_SUITE)
    # The first source is nowhere in the messages: it is kept, so that its response can be scored.
    [row] = rows(engine, "select metadata from iccm.conversations where session_id = :s", s=session)
    assert row.metadata["request_sources"] == [SOURCE]


def test_accepting_an_earlier_response_goes_with_the_earlier_source(served, engine, session) -> None:
    first = ask(served, session, SOURCE, f"{session}-1")
    ask(served, session, SUB, f"{session}-2")
    eventually(lambda: len(rows(engine, REQUIREMENTS, s=session)) == 3)
    reply = post(served, session, talk("Thanks, I take the first one."), requirements=first)
    assert (reply["source_code"], reply["requirements"]) == (SOURCE, first)


def test_own_requirements_go_with_the_source_that_they_name(served, engine, session) -> None:
    ask(served, session, SOURCE, f"{session}-1")
    ask(served, session, SUB, f"{session}-2")
    eventually(lambda: len(rows(engine, REQUIREMENTS, s=session)) == 3)
    own = "The function `add` must return the sum of its arguments."
    assert post(served, session, talk("Thanks."), requirements=own)["source_code"] == SOURCE
    own = "The function `sub` must return the difference of its arguments."
    assert post(served, session, talk("Thanks."), requirements=own)["source_code"] == SUB


def test_a_response_that_arrives_after_the_completion_keeps_its_source(served, engine, session) -> None:
    post(served, session, talk(FENCED_ADD, ADD_ANSWER))
    ask(served, session, SUB, f"{session}-1")
    eventually(lambda: len(rows(engine, REQUIREMENTS, s=session)) == 2)
    [row] = rows(engine, "select metadata from iccm.conversations where session_id = :s", s=session)
    assert row.metadata["request_sources"] == [SUB]
    again = post(served, session, talk(FENCED_ADD, ADD_ANSWER))
    [row] = rows(engine, "select metadata from iccm.conversations where session_id = :s", s=session)
    assert row.metadata["request_sources"] == [SUB]
    assert again["source_code"] == ADD


def test_several_files_are_one_source(served, engine, session) -> None:
    program = join_files(FILES, CART)
    reply = served.client.post(
        "/v1/requirements",
        json={"session_id": session, "source_code": CART, "source_files": FILES, "tests": SUITE},
    )
    assert reply.status_code == 200, reply.text
    stored = eventually(lambda: rows(engine, REQUIREMENTS, s=session))
    assert {row.source_sha256 for row in stored} == {digest(program)}
    for more in (
        {"source_code": CART, "source_files": FILES},
        {"source_code": CART, "metadata": {"source_files": FILES}},
        {"metadata": {"source_code": CART, "source_files": FILES}},
    ):
        kept = post(served, session, talk("Please.", ADD_ANSWER), requirements=ADD_ANSWER, **more)
        assert kept["source_code"] == program and kept["requirements"] == ADD_ANSWER
    [row] = rows(engine, "select metadata from iccm.conversations where session_id = :s", s=session)
    assert row.metadata["source_code"] == program and "source_files" not in row.metadata


@pytest.mark.parametrize(
    "files",
    [
        {"../a.py": "x = 1"},
        {"a.txt": "x"},
        {"a.py": 3},
        {"": ""},
        {f"m{n}.py": "" for n in range(101)},
        ["a.py"],
    ],
)
def test_files_that_are_no_program_are_refused(served, session, files) -> None:
    body = {"session_id": session, "source_code": "x = 1\n", "source_files": files}
    assert served.client.post("/v1/requirements", json=body).status_code == 422
    messages = talk("Please.", ADD_ANSWER)
    assert served.client.post("/v1/conversations", json={**body, "messages": messages}).status_code == 422
    if isinstance(files, dict):
        body = {"session_id": session, "messages": messages, "metadata": {"source_files": files}}
        response = served.client.post("/v1/conversations", json=body)
        assert response.status_code == 422 and "file" in response.json()["detail"]
