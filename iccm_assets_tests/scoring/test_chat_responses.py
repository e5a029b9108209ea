"""Which responses of a chat endpoint are answers, and which requests are worth a retry."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.scoring.answer_code import extract_code
from iccm_assets.scoring.chat_responses import ChatAnswer, InvalidResponse, read_answer
from iccm_assets.scoring.endpoint_limits import (
    CircuitBreaker,
    RateLimiter,
    parse_retry_after,
    retry_delay,
)
from iccm_assets.settings import EndpointSettings

CODE = "def f():\n    return 1\n"


def fenced(code: str, tag: str = "python") -> str:
    return f"```{tag}\n{code.rstrip()}\n```\n"


def part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": text}


def completion(content: Any, finish: Any = "stop", **message: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize(
    "content",
    [
        fenced(CODE),
        fenced(CODE, ""),
        f"Sure!\n\n{fenced(CODE, 'py')}Hope that helps.",
        f"~~~python\n{CODE}~~~",
        f"````python\n{CODE}````",
        f"<think>perhaps\n{fenced('def g(): pass')}</think>\n{fenced(CODE)}",
        f"{fenced(CODE)}Use it:\n{fenced('print(f())')}",
        f"{fenced('pip install nothing', 'sh')}{fenced(CODE)}",
        fenced(CODE) + fenced(CODE),
    ],
)
def test_the_only_implementation_is_extracted_from_any_surroundings(content: str) -> None:
    assert extract_code(ChatAnswer(content, ended=True)) == CODE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("I would rather not.", "no code block in the answer"),
        (CODE, "no code block in the answer"),
        (f"```python\n{CODE}", "stops inside a code block"),
        (fenced(CODE) + "```python\ndef g(", "stops inside a code block"),
        (fenced(CODE) + fenced("def f():\n    return 2\n"), "2 different implementations"),
        (fenced("First, look at the input.\n"), "no code block is Python"),
        (fenced("def f(:\n"), "no code block is Python"),
        (fenced("def f():\n    return '\x00'\n"), "no code block is Python"),
        (fenced("def f():\n    return '\ud800'\n"), "no code block is Python"),
        (fenced("f = " + "(" * 5000), "no code block is Python"),
        (fenced("f = " + "-" * 100_000 + "1"), "no code block is Python"),
        (fenced("TODO\n"), "no code block is Python"),
        (fenced("fn main() {}\n", "rust"), "no code block is Python"),
        ("<think>" + fenced(CODE), "stops inside the model's reasoning"),
    ],
)
def test_an_answer_without_exactly_one_implementation_is_rejected(content: str, words: str) -> None:
    with pytest.raises(InvalidResponse, match=words) as raised:
        extract_code(ChatAnswer(content, ended=False))
    assert raised.value.endpoint_works and raised.value.max_retries == 1


@pytest.mark.parametrize(
    ("body", "words", "endpoint_works", "retries"),
    [
        (b"", "not JSON", False, None),
        (b"<!doctype html>", "not JSON", False, None),
        (b"\xff\xfe{}", "not JSON", False, None),
        (completion("x")[:30], "not JSON", False, None),
        (b"[" * 100_000, "not JSON", False, None),
        (b"null", "not a chat completion", False, None),
        (b'{"choices": []}', "not a chat completion", False, None),
        (b'{"choices": {"0": 1}}', "not a chat completion", False, None),
        (b'{"choices": [{"message": "hi"}]}', "not a chat completion", False, None),
        (b'{"choices": ' + b"9" * 5000 + b"}", "not JSON", False, None),
        (b'{"error": {"message": "overloaded"}}', "not a chat completion", False, None),
        (completion(fenced(CODE), "length"), "finish_reason 'length'", True, 0),
        (completion(fenced(CODE), "content_filter"), "finish_reason 'content_filter'", True, 0),
        (completion(None, "tool_calls"), "finish_reason 'tool_calls'", True, 0),
        (completion(fenced(CODE), "function_call"), "tool calls, finish_reason 'function_call'", True, 0),
        (b'{"choices": [{"finish_reason": "content_filter"}]}', "not finished: filtered", True, 0),
        (completion(None, refusal="I will not"), "refused: I will not", True, 0),
        (completion(""), "the answer is empty", True, 1),
        (completion(None), "the answer is empty", True, 1),
        (completion("\u200b\ufeff"), "the answer is empty", True, 1),
        (completion([]), "the answer is empty", True, 1),
        (completion([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]), "empty", True, 1),
        (completion([{"type": "refusal", "refusal": "I cannot"}]), "refused: I cannot", True, 0),
        (completion(None, reasoning_content=fenced(CODE)), "empty, there is only reasoning", True, 1),
        (completion(None, tool_calls=[{"id": "1"}]), "a tool call without text", True, 1),
    ],
)
def test_a_response_that_is_not_a_finished_completion_says_why(
    body: bytes, words: str, endpoint_works: bool, retries: int | None
) -> None:
    with pytest.raises(InvalidResponse, match=words) as raised:
        read_answer(body)
    assert (raised.value.endpoint_works, raised.value.max_retries) == (endpoint_works, retries)


FINISHED = ["stop", "eos", "eos_token", "end_turn", "stop_sequence", "STOP", "COMPLETE", "FINISH_REASON_STOP"]
UNKNOWN = ["", None, "no_such_word", "load", ["stop"], 0, {}, False]


@pytest.mark.parametrize("reason", FINISHED + UNKNOWN)
def test_any_other_finish_reason_is_finished_given_a_closed_block(reason: Any) -> None:
    assert extract_code(read_answer(completion(fenced(CODE), reason))) == CODE


def test_the_upstream_servers_own_word_counts_where_there_is_no_other() -> None:
    choice = {
        "message": {"content": fenced(CODE)},
        "finish_reason": None,
        "native_finish_reason": "MAX_TOKENS",
    }
    with pytest.raises(InvalidResponse, match="not finished: cut"):
        read_answer(json.dumps({"choices": [choice]}).encode())


def test_without_a_finish_reason_and_a_fence_an_answer_may_be_cut() -> None:
    assert extract_code(read_answer(completion(CODE, "eos"))).strip() == CODE.strip()
    for reason in UNKNOWN:
        with pytest.raises(InvalidResponse, match="no code block"):
            extract_code(read_answer(completion(CODE, reason)))


@pytest.mark.parametrize(
    ("reason", "words", "endpoint_works", "retries"),
    [
        *((reason, "not finished: cut", True, 0) for reason in (
            "length", "max_tokens", "MAX_TOKENS", "model_length", "token_limit", "ERROR_LIMIT", "time_limit",
            "model_context_window_exceeded", "FINISH_REASON_MAX_TOKENS", "limit", "max_output_tokens",
        )),
        *((reason, "not finished: filtered", True, 0) for reason in (
            "content_filter", "SAFETY", "RECITATION", "PROHIBITED_CONTENT", "refusal", "sensitive",
            "ERROR_TOXIC", "guardrail_intervened", "content_filtered",
        )),
        *((reason, "not finished: tool calls", True, 0) for reason in (
            "tool_calls", "tool_use", "function_call", "MALFORMED_FUNCTION_CALL",
        )),
        *((reason, "the model failed", False, None) for reason in (
            "error", "ERROR", "abort", "network_error", "insufficient_system_resource",
            "cancelled", "timeout",
        )),
    ],
)  # fmt: skip
def test_a_cut_filtered_or_failed_answer_is_none_even_with_a_closed_block(
    reason: str, words: str, endpoint_works: bool, retries: int | None
) -> None:
    with pytest.raises(InvalidResponse, match=words) as raised:
        read_answer(completion(fenced(CODE), reason))
    assert (raised.value.endpoint_works, raised.value.max_retries) == (endpoint_works, retries)


def test_an_error_inside_of_a_choice_is_a_passing_failure_of_the_endpoint() -> None:
    choice = {"error": {"code": 502, "message": "upstream"}, "message": {"content": fenced(CODE)}}
    with pytest.raises(InvalidResponse, match="the model failed: 502: upstream") as raised:
        read_answer(json.dumps({"choices": [choice]}).encode())
    assert (raised.value.endpoint_works, raised.value.max_retries) == (False, None)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": fenced(CODE)}],
        [{"type": "output_text", "text": fenced(CODE)}],
        [{"text": fenced(CODE)}],
        [fenced(CODE)],
        [{"type": "thinking", "thinking": "hm", "text": fenced("def g(): 0")}, part(fenced(CODE))],
        [part(fenced("def g(): pass"), "reasoning"), part(fenced(CODE))],
        [part("Sure:"), part(fenced(CODE).strip()), part("Bye")],
        [part("```python\ndef f():\n    ret"), part("urn 1\n```")],
        [part("```"), part(f"python\n{CODE}```")],
        [{"type": "text", "text": {"value": fenced(CODE)}}, {"type": "image_url", "image_url": {}}, None, 3],
        {"type": "text", "text": fenced(CODE)},
    ],
)  # fmt: skip
def test_content_may_be_a_list_of_parts(content: Any) -> None:
    assert extract_code(read_answer(completion(content))) == CODE


def test_a_byte_order_mark_and_the_shape_of_legacy_completions_are_read() -> None:
    assert extract_code(read_answer(b"\xef\xbb\xbf" + completion(fenced(CODE)))) == CODE
    legacy = {"choices": [{"text": fenced(CODE), "finish_reason": "stop"}]}
    assert extract_code(read_answer(json.dumps(legacy).encode())) == CODE
    delta = {"choices": [{"delta": {"content": fenced(CODE)}, "finish_reason": "stop"}]}
    assert extract_code(read_answer(json.dumps(delta).encode())) == CODE
    both = {"choices": [{"text": fenced(CODE), "message": {"content": None}, "finish_reason": "stop"}]}
    assert extract_code(read_answer(json.dumps(both).encode())) == CODE


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: completion(text)))
def test_every_response_is_code_or_an_invalid_response(body: bytes) -> None:
    try:
        assert "def" in (code := extract_code(read_answer(body))) or "class" in code or "lambda" in code
    except InvalidResponse as problem:
        assert problem.reason


def test_a_retry_after_is_followed_when_the_deadline_allows_it() -> None:
    busy = InvalidResponse("HTTP 429", retry_after_seconds=7)
    assert retry_delay(busy, 0, remaining_seconds=10, max_retries=2, jitter=0) == (7, "HTTP 429")
    assert retry_delay(busy, 0, remaining_seconds=5, max_retries=2, jitter=0) == (
        None,
        "HTTP 429 (retry after 7 s, but 5 s of the deadline remain)",
    )


def test_waits_double_and_end_with_the_retries() -> None:
    problem = InvalidResponse("HTTP 500")
    waits = [retry_delay(problem, attempt, 100, 6, jitter=0)[0] for attempt in range(7)]
    assert waits == [0.5, 1, 2, 4, 8, 8, None]
    assert retry_delay(problem, 0, 100, 6, jitter=1)[0] == 0.375
    assert retry_delay(InvalidResponse("no", max_retries=1), 1, 100, 6, 0) == (None, "no (2 attempts)")
    assert retry_delay(InvalidResponse("no", max_retries=0), 0, 100, 6, 0) == (None, "no")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("Thu, 99 Jan 1970 00:02:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, lambda: 100.0) == seconds


def test_requests_are_spaced_evenly_and_a_retry_after_moves_all_of_them() -> None:
    limiter = RateLimiter()
    assert [limiter.reserve_slot(100.0, 30) for _ in range(3)] == [0, 2, 4]
    limiter.next_slot_at = 150.0
    assert limiter.reserve_slot(100.0, 0) == 50


def test_a_dead_member_is_skipped_until_a_request_succeeds() -> None:
    limits = EndpointSettings(circuit_breaker_failures=3, circuit_breaker_cooldown_seconds=60)
    breaker = CircuitBreaker()
    for _ in range(3):
        assert not breaker.rejection_reason(0)
        breaker.record_result(InvalidResponse("ConnectError"), 0, limits)
    assert breaker.rejection_reason(59) == "skipped after 3 consecutive failures, the last: ConnectError"
    assert not breaker.rejection_reason(60)
    breaker.record_result(InvalidResponse("ConnectError"), 60, limits)
    assert breaker.rejection_reason(119)
    breaker.record_result(InvalidResponse("prose", endpoint_works=True), 120, limits)
    assert not breaker.rejection_reason(120) and breaker.failures == 0
