"""Model servers: each outcome has its name, its status, and counts for the arm or not (G7, R4)."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import openai
import pytest

from iccm_assets.cli import doctor
from iccm_assets.cli.context import ensure_production_version
from iccm_assets.errors import ModelError
from iccm_assets.gateway.batching import GenerationError
from iccm_assets.gateway.completion_responses import CompletionStream, parse_completion
from iccm_assets.gateway.model_server_errors import (
    EmptyResponseError,
    FilteredResponseError,
    ModelNotServedError,
    PromptTooLongError,
    RateLimitedError,
    ServerAccessError,
    rejection_error,
)
from iccm_assets.gateway.openai_backend import OpenAiBackend
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.thinking_filter import ThinkingFilter, drop_thinking_marks
from iccm_assets.monitoring.serving_path import InProcessServingPath
from iccm_assets.rollout.queries import WINDOW_REQUESTS
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.chat_dialects import Reply, run_stub
from iccm_assets_tests.factories.completion_dialects import (
    TEXT,
    TOO_LONG,
    alternately,
    completes,
    error,
    streams,
)
from iccm_assets_tests.factories.gateways import (
    SOURCE,
    database_url,
    eventually,
    gateway,
    rollout,
    rows,
)

KEY = "sk-test-of-the-gateway-0123456789"
LIMITED = error(429, "Rate limit reached", Retry_After="7200")


def outcome(dialect, native, in_openai, code, status, words, booked):
    return SimpleNamespace(**locals())


# What the server answers, what clients get, and what is recorded.
OUTCOMES = {
    "empty": outcome(completes(""), 503, 503, "empty_answer", "error", "empty answer", True),
    "blank": outcome(completes(" \n\u200b"), 503, 503, "empty_answer", "error", "empty answer", True),
    "thinking": outcome(
        completes("<think>Sums are", "length"), 503, 503, "empty_answer", "error", "only thinking", True
    ),
    "reasoning field": outcome(
        completes(None, "length", reasoning_content="Sums"), 503, 503, "empty_answer", "error",
        "only thinking", True,
    ),
    "filtered": outcome(
        completes("", "content_filter"), 422, 400, "content_filter", "error", "finish_reason", True
    ),
    "limited": outcome(LIMITED, 503, 429, "rate_limit_exceeded", "rejected", "Rate limit reached", False),
    "overloaded": outcome(
        error(503, "busy", Retry_After="7200"), 503, 429, "rate_limit_exceeded", "rejected", "busy", False
    ),
    "too long": outcome(
        error(400, TOO_LONG), 422, 400, "context_length_exceeded", "rejected", "2048", False
    ),
    "unauthorized": outcome(
        error(401, f"Incorrect API key provided: {KEY}"), 503, 503, "model_server_access", "rejected",
        "check OPENAI_API_KEY", False,
    ),
    "out of credit": outcome(
        error(429, "You exceeded your quota", "insufficient_quota"), 503, 503, "model_server_access",
        "rejected", "check OPENAI_API_KEY", False,
    ),
    "not served": outcome(
        error(404, "The model `v1` does not exist."), 503, 503, "model_not_served", "error",
        "does not exist", True,
    ),
    "invalid": outcome(
        error(400, "temperature: not supported\nsecond line"), 503, 503, None, "error",
        "temperature: not supported", True,
    ),
    "error with 200": outcome(error(200, "engine died"), 503, 503, None, "error", "engine died", True),
    "no JSON": outcome(error(500, "boom"), 503, 503, None, "error", "HTTP 500", True),
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with run_stub({"v1": completes(TEXT), "v2": completes(TEXT)}) as stub:
        yield stub


@pytest.fixture(autouse=True)
def healthy(server):
    server.dialects.update(v1=completes(TEXT), v2=completes(TEXT))
    server.requests.clear()


@pytest.fixture(scope="module")
def variables(server):
    return {
        "ICCM_GATEWAY__BACKEND": "openai",
        "ICCM_GATEWAY__OPENAI_URLS": json.dumps({"*": f"{server.url}#{{version}}"}),
        "ICCM_GATEWAY__TIMEOUT_SECONDS": "8",
        "ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "3",
        "OPENAI_API_KEY": KEY,
    }


@pytest.fixture(scope="module")
def served(url, home, variables):
    """A gateway whose versions are on a model server; their directories do not exist."""
    with gateway(url, home, **variables) as running:
        yield running


@pytest.fixture
def canaried(fresh, tmp_path, variables):
    """The same with all traffic in the canary arm."""
    with gateway(database_url(fresh), tmp_path, **variables) as running:
        with fresh.begin() as conn:
            running.rollout_id = rollout(conn, 1.0)
        eventually(lambda: running.effective_weight() == 1.0)
        yield running


def make_client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)


def ask(running, session, **more):
    messages = [{"role": "user", "content": SOURCE}]
    return make_client(running).chat.completions.create(
        model="cet-d", messages=messages, metadata={"session_id": session}, **more
    )


def read(stream) -> str:
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


def stored(engine, session):
    query = "select assigned_arm, arm, status, error, rollout_id from iccm.requests where session_id = :id"
    return eventually(lambda: rows(engine, f"{query} order by created_at", id=session))


def count_window(engine, rollout_id):
    """The requests and errors of the canary arm that decide about a rollout."""
    values = {"rollout": rollout_id, "since": datetime(2000, 1, 1, tzinfo=UTC), "max_rows": 1000}
    with engine.connect() as conn:
        [counts] = [row for row in conn.execute(WINDOW_REQUESTS, values) if row.arm == "canary"]
    return counts.requests, counts.errors


# ---- what clients get ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_outcome_has_its_name_and_status_in_both_apis(served, server, engine, name):
    expected = OUTCOMES[name]
    server.dialects["v1"] = expected.dialect
    response = served.request(f"native {name}")
    assert (response.status_code, response.json().get("code")) == (expected.native, expected.code)
    is_retryable = expected.native == 503
    assert ("retry-after" in response.headers) == is_retryable
    for is_streamed in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            ask(served, f"{name} {is_streamed}", stream=is_streamed)
        assert (caught.value.status_code, caught.value.code) == (expected.in_openai, expected.code)
        assert ("retry-after" in caught.value.response.headers) == is_retryable
        assert KEY not in caught.value.message
    for session in (f"native {name}", f"{name} False", f"{name} True"):
        [(assigned, arm, status, words, _)] = stored(engine, session)
        assert (assigned, arm, status) == ("production", None, expected.status)
        assert expected.words in words and KEY not in words and "second line" not in words


def test_what_clients_read_says_what_to_do(served, server):
    server.dialects["v1"] = OUTCOMES["too long"].dialect
    detail = served.request().json()["detail"]
    assert detail == "the source is too long for the model, which reads 2048 tokens at most; send less code"
    with pytest.raises(openai.BadRequestError, match="too long for the model"):
        ask(served, "long")
    server.dialects["v1"] = LIMITED
    with pytest.raises(openai.RateLimitError) as caught:
        ask(served, "limited")
    assert caught.value.response.headers["retry-after"] == "60" and caught.value.type == "rate_limit_error"


def test_an_answer_that_stopped_at_the_limit_says_so(served, server, engine):
    server.dialects["v1"] = completes("The function `add` shall", "length")
    assert ask(served, "cut").choices[0].finish_reason == "length"
    chunks = list(ask(served, "cut stream", stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert served.request("cut native").status_code == 200
    for session in ("cut", "cut stream", "cut native"):
        [(_, _, status, words, _)] = stored(engine, session)
        assert status == "ok" and words.startswith("incomplete")


@pytest.mark.parametrize("prefix", ["<think>Add `a`.</think>\n\n", "\n<THINK>a\n</think></think> "])
def test_thinking_is_not_served_streamed_or_not(served, server, prefix):
    server.dialects["v1"] = completes(prefix + TEXT)
    assert served.request().json()["requirements"] == TEXT
    assert ask(served, "thinks").choices[0].message.content == TEXT
    assert read(ask(served, "thinks", stream=True)) == TEXT


def test_a_rate_limit_is_waited_for_within_the_deadline(served, server, engine):
    server.dialects["v1"] = alternately(error(429, "slow down", Retry_After="0.2"), completes(TEXT))
    server.requests.clear()
    assert served.request("waits").status_code == 200
    assert len(server.requests["v1"]) == 2
    assert read(ask(served, "waits stream", stream=True)) == TEXT
    assert [row[2:4] for row in stored(engine, "waits")] == [("ok", None)]
    server.dialects["v1"] = error(429, "slow down", Retry_After="0")
    server.requests.clear()
    assert served.request("limited still").status_code == 503
    assert len(server.requests["v1"]) == 4  # bounded
    [(_, _, status, words, _)] = stored(engine, "limited still")
    assert status == "rejected" and "4 attempts" in words


def test_after_the_first_token_a_failure_ends_the_stream(served, server, engine):
    server.dialects["v1"] = streams(
        {"choices": [{"text": "The function"}]}, {"error": {"message": "engine died"}}
    )
    received = []
    with pytest.raises(openai.APIError, match="model failed"):
        received.extend(ask(served, "torn", stream=True))
    assert received[-1].choices[0].delta.content == "The function"
    [(_, _, status, words, _)] = stored(engine, "torn")
    assert status == "error" and "engine died" in words
    server.dialects["v1"] = completes("The function", "content_filter")
    with pytest.raises(openai.APIError, match="content filter"):
        read(ask(served, "filtered late", stream=True))


def test_a_server_that_does_not_stream_is_passed_on_whole(served, server):
    server.dialects["v1"] = lambda request, earlier: completes(f"<think>a</think>{TEXT}")({}, earlier)
    assert read(ask(served, "whole", stream=True)) == TEXT


# ---- the canary arm ------------------------------------------------------------------------------


def test_production_answers_and_only_the_arms_own_faults_count(canaried, server, fresh):
    booked = 0
    for number, (name, expected) in enumerate(OUTCOMES.items()):
        is_streamed = number % 2 == 1
        server.dialects["v2"] = expected.dialect
        if is_streamed:
            assert read(ask(canaried, name, stream=True)) == TEXT
        else:
            assert canaried.request(name).json()["requirements"] == TEXT
        [(assigned, arm, status, words, rollout_id)] = stored(fresh, name)
        # A source that production can read is one that the candidate should read, too.
        if expected.booked or name == "too long":
            booked += 1
            assert (assigned, arm, status) == ("canary", "production", "fallback")
            assert rollout_id == canaried.rollout_id
        else:
            assert (assigned, arm, status, rollout_id) == ("production", "production", "ok", None)
        assert expected.words in words
    assert count_window(fresh, canaried.rollout_id) == (booked, booked)
    # What production cannot do either says nothing about the candidate.
    for name in ("too long", "limited", "unauthorized"):
        server.dialects.update(v1=OUTCOMES[name].dialect, v2=OUTCOMES[name].dialect)
        assert canaried.request(f"both {name}").status_code == OUTCOMES[name].native
        [(assigned, arm, status, words, rollout_id)] = stored(fresh, f"both {name}")
        assert (assigned, arm, status, rollout_id) == ("production", None, "rejected", None)
        assert words.startswith("canary: ") and "; production: " in words
    assert count_window(fresh, canaried.rollout_id) == (booked, booked)


# ---- loading -------------------------------------------------------------------------------------


def make_backend(url, model="{version}", **more):
    settings = load_settings(gateway={"backend": "openai", "openai_urls": {"*": f"{url}#{model}"}, **more})
    return OpenAiBackend(ModelLocation("v1", "/no/such/directory", "d"), settings)


@pytest.mark.parametrize(
    ("dialect", "words"),
    [
        (error(404, "no v1 here"), "model not found: HTTP 404: invalid_request_error: no v1 here"),
        (error(401, "bad key"), "check OPENAI_API_KEY"),
        (error(500, "boom"), "HTTP 500: invalid_request_error: boom"),
        (error(200, "engine died"), "engine died"),
        (LIMITED, "rate limit"),
    ],
)
def test_a_server_that_cannot_answer_is_a_model_error_with_its_words(server, dialect, words):
    server.dialects["v1"] = dialect
    with pytest.raises(ModelError, match=words):
        make_backend(server.url)


def test_a_model_that_is_not_there_is_named_with_those_that_are(server):
    with pytest.raises(ModelError, match="does not serve model v9; it serves v1, v2"):
        make_backend(server.url, model="v9")
    with pytest.raises(ModelError, match="cannot be reached: ConnectError"):
        make_backend("http://127.0.0.1:9/v1")


def test_a_model_without_an_answer_to_the_first_request_is_loaded(server):
    server.dialects["v1"] = completes("<think>", "length")
    backend = make_backend(server.url)
    with pytest.raises(EmptyResponseError):
        asyncio.run(backend.generate(SOURCE))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(gzip.compress(b"x" * 1000), 400, {"Content-Encoding": "gzip"}), "HTTP 400$"),
        (Reply(gzip.compress(b"x" * 1000), 200, {"Content-Encoding": "gzip"}), "not a completion"),
        (Reply(b"x" * (5 << 20), 500), "HTTP 500: xxx"),
        (Reply(b"x" * (5 << 20), 200), "larger than 4 MiB"),
        (Reply(b"", 302, {"Location": "/elsewhere"}), "HTTP 302$"),
    ],
)
def test_bodies_that_are_large_or_compressed_are_not_read(server, reply, words):
    backend = make_backend(server.url)
    server.dialects["v1"] = lambda request, earlier: reply
    with pytest.raises(GenerationError, match=words):
        asyncio.run(backend.generate(SOURCE))


def test_a_measurement_waits_for_a_rate_limit(server):
    backend = make_backend(server.url)
    server.requests.clear()
    server.dialects["v1"] = alternately(error(429, "slow"), completes(TEXT))
    assert [result.text for result in InProcessServingPath(backend, 4)([SOURCE])] == [TEXT]
    server.dialects["v1"] = error(400, TOO_LONG)
    [result] = InProcessServingPath(backend, 4)([SOURCE])
    assert result.text is None and "maximum context length" in result.error


def test_no_weights_are_needed_on_this_machine(server, engine, home):
    """`iccm serve` and `iccm doctor` do not look for the directory of a version that a server has."""
    urls = {"*": f"{server.url}#{{version}}"}
    settings = load_settings(
        home=home, database_url=database_url(engine), gateway={"backend": "openai", "openai_urls": urls}
    )
    assert ensure_production_version(settings) == "v1"
    assert next(doctor.check_production(settings)).detail == "v1 answers on its model server"
    server.dialects["v1"] = error(401, "bad key")
    check = next(doctor.check_production(settings))
    assert not check.ok and "check OPENAI_API_KEY" in check.detail
    with pytest.raises(ModelError):
        ensure_production_version(load_settings(home=home, database_url=database_url(engine)))


# ---- the pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("5", 5, 5), ("1e9", 60, 60), ("-3", 1, 1), ("nan", 1, 1), ("inf", 1, 1), ("soon", 1, 1),
        (None, 1, 1), ("0", 1, 1), ("Wed, 21 Oct 2015 07:28:00 GMT", 1, 1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60, 60), ("9" * 5000, 1, 1),
    ],
)  # fmt: skip
def test_a_wait_is_read_and_bounded(value, least, most):
    headers = {} if value is None else {"retry-after": value}
    problem = rejection_error(429, headers, b"")
    assert isinstance(problem, RateLimitedError)
    assert least <= problem.retry_after_seconds <= most


def test_a_wait_may_be_a_date():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 20 <= rejection_error(429, {"retry-after": date}, b"").retry_after_seconds <= 31


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "x", "code": "context_length_exceeded"}}, PromptTooLongError),
        (400, {"object": "error", "message": TOO_LONG, "code": 400}, PromptTooLongError),
        (400, {"error": {"message": "The prompt (5000) is longer than the maximum model length of 2048"}},
         PromptTooLongError),
        (400, {"error": {"message": "the request exceeds the available context size"}}, PromptTooLongError),
        (422, {"error": "`inputs` must have less than 1024 tokens. Given: 4000"}, PromptTooLongError),
        (413, "<html>Request Entity Too Large</html>", PromptTooLongError),
        (200, {"error": {"message": TOO_LONG, "code": 400}}, PromptTooLongError),
        (400, {"error": {"message": "x", "code": "content_filter"}}, FilteredResponseError),
        (403, {"error": {"message": "input was flagged by moderation"}}, FilteredResponseError),
        (403, {"detail": "Forbidden"}, ServerAccessError),
        (402, {"error": "pay"}, ServerAccessError),
        (400, {"error": {"message": "x", "code": "model_not_found"}}, ModelNotServedError),
        (404, "", ModelNotServedError),
        (503, "", GenerationError),
        (422, {"detail": [{"loc": ["body", "prompt"], "msg": "field required"}]}, GenerationError),
        (302, "", GenerationError),
        (400, "[" * 100_000, GenerationError),
    ],
)  # fmt: skip
def test_the_words_of_servers_are_understood(status, body, kind):
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    assert type(rejection_error(status, {}, content)) is kind


def test_the_words_of_a_server_are_short_and_hold_no_secret():
    message = f"key {KEY} and password=Tr0ub4dor&3 of ada@example.org " + "x" * 10_000
    words = str(rejection_error(400, {}, json.dumps({"error": {"message": message}}).encode(), KEY))
    assert KEY not in words and "ada@example.org" not in words and len(words) < 250
    hostile = json.dumps({"error": {"message": "a\x00b\ud800\nc", "code": {"x": 1}}}).encode()
    assert "\x00" not in str(rejection_error(500, {}, hostile))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>The b.", "The b."),
        ("<think>a</think>\n\n The b.\n", "The b.\n"),
        ("The `<think>` tag shall be '</think>'.", "The `<think>` tag shall be '</think>'."),
        ("The a.<think>b</think> The c.", "The a. The c."),
        ("[THINK]a[/THINK]The b.", "The b."),
        ("<thinking>a </think> b</thinking>The c.", "The c."),
        ("<think>a <think> b</think>The c.", "The c."),
        ("  The a < b [c]", "  The a < b [c]"),
        ("a <thin", "a <thin"),
        ("The a. <think>b", "The a. "),
        ("<think>a", ""),
        ("", ""),
    ],
)
def test_thinking_is_dropped_wherever_the_chunks_end(text, answer):
    assert drop_thinking_marks(text)[0] == answer
    for size in (1, 2, 3, 7):
        thinking = ThinkingFilter()
        pieces = [thinking.feed(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(pieces) + thinking.finish() == answer


def test_an_end_of_thinking_without_a_beginning_drops_what_was_not_passed_on():
    assert drop_thinking_marks("I add. </think>\nThe a.")[0] == "The a."
    thinking = ThinkingFilter()
    thinking.feed("I add. ")
    with pytest.raises(GenerationError, match="without a beginning"):
        thinking.feed("</think>The a.")


def test_thinking_takes_linear_time():
    def measure(count: int) -> float:
        started = time.process_time()
        for unit in ("<", "<thin", "<think>", "</think>", " ", "a"):
            thinking = ThinkingFilter()
            for _ in range(count):
                if unit != "</think>" or not thinking.has_thinking:
                    thinking.feed(unit)
            drop_thinking_marks(unit * count)
        return time.process_time() - started

    small = min(measure(1_000) for _ in range(3))
    assert measure(8_000) < 8 * 4 * max(small, 0.01)


def test_bodies_that_are_no_completions_are_errors():
    for body in (
        b"", b"[]", b"{}", b"{", b'{"choices": []}', b'{"choices": [{"text": 3}]}', b'{"error": "no"}',
        b'{"choices": [{"text": "a", "error": {"message": "died"}}]}', b"[" * 100_000,
        b'{"choices": [{"text": "a", "finish_reason": "abort"}]}', b'{"choices": [{}]}',
    ):  # fmt: skip
        with pytest.raises(GenerationError):
            parse_completion(body)
    assert parse_completion(b'{"choices": [{"text": "a", "finish_reason": null}], "error": null}').text == "a"
    stream = CompletionStream(lambda text, tokens: None)
    with pytest.raises(RateLimitedError):
        stream.read(b'data: {"error": {"message": "slow", "code": 429}}')
