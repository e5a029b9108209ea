"""The OpenAI-compatible API with its real clients: routed, streamed, pinned, refused (G8)."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import openai
import pytest

from iccm_assets.errors import ModelError
from iccm_assets.gateway.batching import DynamicBatcher, GenerationError
from iccm_assets.gateway.chat_completions import find_source
from iccm_assets.gateway.chat_schemas import ChatCompletionRequest, check_supported
from iccm_assets.gateway.completion_responses import CompletionStream, LineBuffer
from iccm_assets.gateway.openai_errors import UnsupportedRequestError
from iccm_assets.gateway.routing import assign_arm
from iccm_assets.models.generation import generate, load_model
from iccm_assets.models.token_streaming import BatchStreamer
from iccm_assets.settings import PACKAGED_MODEL
from iccm_assets_tests.factories.gateways import (
    SOURCE,
    database_url,
    eventually,
    gateway,
    rollout,
    rows,
    set_weight,
)

ANSWER = "The function `add` shall return the sum. ({})"


def ask(source: str = SOURCE) -> list[dict]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": source}]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def read_stream(stream) -> tuple[str, object]:
    """The text of a stream, and its last chunk."""
    chunks = list(stream)
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    return "".join(texts), chunks


# ---- one call ------------------------------------------------------------------------------------


def test_an_answer_is_that_of_the_native_api_and_has_one_row(served, client, engine):
    response = client.chat.completions.create(
        model="cet-d", messages=ask(), user="ada", metadata={"session_id": "chat-one", "team": "blue"}
    )
    [choice] = response.choices
    native = served.request("chat-native").json()
    assert choice.message.content == native["requirements"]
    assert (choice.finish_reason, response.model) == ("stop", "cet-d@v1")
    assert response.usage.to_dict() == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    query = "select session_id, assigned_arm, model_version, status, output_tokens from iccm.requests"
    stored = eventually(lambda: rows(engine, f"{query} where request_id = :id", id=response.id))
    assert stored == [("chat-one", "production", "v1", "ok", 12)]
    [content] = eventually(
        lambda: rows(engine, "select metadata from iccm.conversations where session_id = 'chat-one'")
    )
    assert content[0]["team"] == "blue" and "session_id" not in content[0]
    # The id of the answer is the request's: it can be rated.
    rated = served.client.post(
        "/v1/feedback", json={"request_id": response.id, "user_id": "ada", "rating": 1}
    )
    assert rated.status_code == 200


def test_a_stream_is_the_same_text_in_pieces_with_its_version_and_usage(client):
    whole = client.chat.completions.create(model="cet-d", messages=ask()).choices[0].message.content
    stream = client.chat.completions.create(
        model="cet-d", messages=ask(), stream=True, stream_options={"include_usage": True}
    )
    text, chunks = read_stream(stream)
    assert text == whole and len(chunks) > 5
    assert {chunk.model for chunk in chunks} == {"cet-d@v1"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    text, chunks = read_stream(client.chat.completions.create(model="cet-d", messages=ask(), stream=True))
    assert text == whole and all(chunk.usage is None for chunk in chunks)


def test_the_events_are_those_of_the_protocol(served):
    body = {"model": "cet-d", "messages": ask(), "stream": True}
    response = served.client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last, end = response.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") for event in events)
    assert json.loads(events[-1][6:])["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_limit_cuts_what_the_client_gets_and_not_what_is_recorded(client, engine, is_streamed):
    arguments = {"model": "cet-d", "messages": ask(), "metadata": {"session_id": f"cut-{is_streamed}"}}
    if is_streamed:
        stream = client.chat.completions.create(
            **arguments, max_completion_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        text, chunks = read_stream(stream)
        finish, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
    else:
        response = client.chat.completions.create(**arguments, max_tokens=3)
        text, finish, usage = (
            response.choices[0].message.content,
            response.choices[0].finish_reason,
            response.usage,
        )
    assert (text, finish, usage.completion_tokens) == ("The function `add`", "length", 3)
    query = "select text from iccm.requirements r join iccm.conversations c on c.id = r.conversation_id"
    stored = eventually(lambda: rows(engine, f"{query} where c.session_id = :id", id=f"cut-{is_streamed}"))
    assert {text for (text,) in stored} == {ANSWER.format("v1")}
    assert client.chat.completions.create(**arguments, max_tokens=500).choices[0].finish_reason == "stop"


def test_each_loaded_version_is_a_model_that_answers_and_leaves_no_row(fresh, tmp_path):
    with gateway(database_url(fresh), tmp_path) as running:
        with fresh.begin() as conn:
            rollout(conn, 0.0)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        names = ["cet-d", "cet-d@v1", "cet-d@v2"]
        eventually(lambda: [model.id for model in client.models.list()] == names)
        assert client.models.retrieve("cet-d@v2").owned_by == "iccm"
        for is_streamed in (False, True):
            response = client.chat.completions.create(model="cet-d@v2", messages=ask(), stream=is_streamed)
            text = read_stream(response)[0] if is_streamed else response.choices[0].message.content
            assert text == ANSWER.format("v2")
        later = client.chat.completions.create(model="cet-d", messages=ask())
        assert later.model == "cet-d@v1"
        query = "select request_id, model_version from iccm.requests"
        assert eventually(lambda: rows(fresh, query)) == [(later.id, "v1")]


def test_a_model_that_is_not_there_is_named(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found" and "cet-d@v1" in caught.value.message


def test_sessions_come_from_metadata_a_header_or_the_user_with_the_first_message(client, engine):
    def read_session(**more):
        raw = client.chat.completions.with_raw_response.create(model="cet-d", messages=ask(), **more)
        return raw.headers["x-session-id"]

    assert read_session(metadata={"session_id": "from metadata"}) == "from metadata"
    assert read_session(extra_headers={"X-Session-Id": "from-header"}) == "from-header"
    derived = read_session(user="grace")
    assert derived == read_session(user="grace") != read_session(user="edsger") != read_session()
    later = [*ask(), {"role": "assistant", "content": "…"}, {"role": "user", "content": "x = f(1)"}]
    raw = client.chat.completions.with_raw_response.create(model="cet-d", messages=later, user="grace")
    assert raw.headers["x-session-id"] == derived


# ---- what is refused -----------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
REFUSED = {
    "tools": ({"tools": [TOOL]}, "tools"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "several choices": ({"n": 2}, "n"),
    "log probabilities": ({"logprobs": True}, "logprobs"),
    "top log probabilities": ({"top_logprobs": 3}, "top_logprobs"),
    "a JSON answer": ({"response_format": {"type": "json_object"}}, "response_format"),
    "stop words": ({"stop": ["\n"]}, "stop"),
    "a penalty": ({"presence_penalty": 1.0}, "presence_penalty"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": SOURCE}, IMAGE]}]},
        "messages.[0].content.[1].type",
    ),
    "no code": ({"messages": [{"role": "user", "content": "Make it shorter, please."}]}, "messages"),
    "no user": ({"messages": [{"role": "system", "content": SOURCE}]}, "messages"),
    "no messages": ({"messages": []}, None),
    "an unknown role": ({"messages": [{"role": "robot", "content": SOURCE}]}, None),
    "an unknown parameter": ({"extra_body": {"magic": 1}}, "magic"),
    "a wrong session": ({"metadata": {"session_id": "\u0007"}}, "metadata.session_id"),
    "no room": ({"max_tokens": 0}, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_an_error_of_the_clients_own_type(client, name):
    arguments, param = REFUSED[name]
    for is_streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                **{"model": "cet-d", "messages": ask(), "stream": is_streamed, **arguments}
            )
        assert caught.value.type == "invalid_request_error" and caught.value.param == param
        assert caught.value.body["message"]


def test_an_unknown_model_an_unknown_version_and_foreign_sessions_are_errors(client):
    for model in ("gpt-5", "cet-d@v9", "cet-d@", "CET-D", "@v1"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=model, messages=ask())
        assert caught.value.code == "model_not_found" and caught.value.param == "model"
    session = {"metadata": {"session_id": "owned"}, "messages": ask(), "model": "cet-d"}
    client.chat.completions.create(**session, user="ada")
    with pytest.raises(openai.ConflictError):
        client.chat.completions.create(**session, user="mallory")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 400, "not JSON"),
        (b'{"model": "cet-d", "messages": ' + b"[" * 100 + b"]" * 100 + b"}", 400, "nested"),
        (b'{"model": "cet-d", "messages": "' + b"x" * (1 << 20) + b'"}', 413, "larger"),
        (b'{"messages": []}', 400, "model"),
    ],
    ids=["no JSON", "deep", "large", "incomplete"],
)
def test_the_limits_hold_before_a_body_is_parsed(served, body, status, word):
    headers = {"Content-Type": "application/json"}
    response = served.client.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == status
    assert word in response.json()["error"]["message"]


def test_neutral_and_sampling_parameters_are_accepted():
    request = {
        "model": "cet-d", "messages": ask(), "temperature": 0.7, "top_p": 0.9, "seed": 1, "n": 1,
        "stop": None,
        "tools": [], "tool_choice": "none", "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {},
        "response_format": {"type": "text"}, "logprobs": False, "modalities": ["text"], "store": True,
    }  # fmt: skip
    check_supported(ChatCompletionRequest.model_validate(request))
    for value in ({"type": "json_schema"}, "text", ["text"], 1):
        with pytest.raises(UnsupportedRequestError, match="response_format"):
            check_supported(ChatCompletionRequest.model_validate(request | {"response_format": value}))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (SOURCE, SOURCE),
        ("# only a comment\nimport os\n", "# only a comment\nimport os\n"),
        ("print('hi')", "print('hi')"),
        ("Write requirements:\n\n```python\nx = f(1)\n```\nThanks.", "x = f(1)"),
        ("For this:\n\n```go\nfunc Add(a, b int) int { return a + b }\n```", None),
        ("hello", None),
        ("Shorter, please", None),
        ("", None),
        ("'a text'", None),
    ],
)
def test_the_source_is_the_program_or_the_best_block_of_the_message(text, source):
    if source is None and "```" in text:
        assert "func Add" in (find_source(text) or "")
    else:
        assert (find_source(text) or "").strip() == (source or "").strip()


# ---- traffic and faults --------------------------------------------------------------------------


@pytest.mark.slow
def test_mixed_calls_of_all_clients_at_ten_and_fifty_percent_keep_their_arms(fresh, tmp_path):
    import litellm
    from langchain_openai import ChatOpenAI

    with gateway(database_url(fresh), tmp_path) as running:
        base = f"{running.url}/v1"
        sync = openai.OpenAI(base_url=base, api_key="unused", max_retries=0)
        chain = ChatOpenAI(base_url=base, api_key="unused", model="cet-d", max_retries=0)

        async def ask_async(arguments):
            async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0) as client:
                response = await client.chat.completions.create(**arguments, stream=True)
                parts = [chunk async for chunk in response]
            return parts[0].model, "".join(c.delta.content or "" for p in parts for c in p.choices)

        def call(number):
            session = f"mixed-{number % 100}"
            arguments = {"model": "cet-d", "messages": ask(), "metadata": {"session_id": session}}
            kind = number % 5
            if kind == 0:
                response = sync.chat.completions.create(**arguments)
                return session, response.model, response.choices[0].message.content
            if kind == 1:
                text, chunks = read_stream(sync.chat.completions.create(**arguments, stream=True))
                return session, chunks[0].model, text
            if kind == 2:
                return session, *asyncio.run(ask_async(arguments))
            headers = {"X-Session-Id": session}
            if kind == 3:
                response = litellm.completion(
                    model="openai/cet-d", api_base=base, api_key="unused", messages=ask(),
                    extra_headers=headers, num_retries=0,
                )  # fmt: skip
                return (
                    session,
                    "cet-d@" + response.choices[0].message.content[-3:-1],
                    (response.choices[0].message.content),
                )
            answer = chain.invoke([("user", SOURCE)], extra_headers=headers)
            return session, answer.response_metadata["model_name"], answer.content

        with fresh.begin() as conn:
            rollout_id = rollout(conn, 0.1)
        calls = 0
        for weight in (0.1, 0.5):
            if weight != 0.1:
                set_weight(fresh, weight)
            eventually(lambda weight=weight: running.effective_weight() == weight)
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(call, range(500)))
            calls += len(answers)
            for session, model, text in answers:
                version = "v2" if assign_arm(rollout_id, session, weight) == "canary" else "v1"
                assert (model, text) == (f"cet-d@{version}", ANSWER.format(version)), session
        stored = eventually(
            lambda: (
                counts
                if (counts := rows(fresh, "select status, count(*) from iccm.requests group by 1"))
                and counts[0][1] == calls
                else None
            )
        )
        assert stored == [("ok", calls)]


@pytest.mark.parametrize(
    ("fault", "is_hidden"), [("error", True), ("empty", True), ("hang", True), ("torn", False)]
)
def test_a_canary_failure_before_the_first_token_is_hidden_and_later_ends_the_stream(
    fresh, tmp_path, fault, is_hidden
):
    limits = {"ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "1"}
    with gateway(database_url(fresh), tmp_path, faults={"v2": fault}, **limits) as running:
        with fresh.begin() as conn:
            rollout(conn, 1.0)
        eventually(lambda: running.effective_weight() == 1.0)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        arguments = {"model": "cet-d", "messages": ask(), "stream": True}
        if is_hidden:
            text, chunks = read_stream(client.chat.completions.create(**arguments))
            assert text == ANSWER.format("v1") and chunks[0].model == "cet-d@v1"
        else:
            received = []
            with pytest.raises(openai.APIError, match="model failed"):
                received.extend(client.chat.completions.create(**arguments))
            assert "".join(chunk.choices[0].delta.content for chunk in received) == "The function `add`"
        query = "select assigned_arm, arm, status from iccm.requests order by created_at"
        outcome = ("canary", "production", "fallback") if is_hidden else ("canary", None, "error")
        assert eventually(lambda: rows(fresh, query)) == [outcome]


def test_a_failure_of_production_before_the_first_token_is_a_status_not_a_stream(fresh, tmp_path):
    with gateway(database_url(fresh), tmp_path, faults={"v1": "error"}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        for is_streamed in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="cet-d", messages=ask(), stream=is_streamed)
            assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]
            assert caught.value.type == "server_error"


@pytest.mark.parametrize("fault", ["empty", "unstorable", "huge"])
def test_odd_texts_are_the_same_streamed_and_whole(fresh, tmp_path, fault):
    with gateway(database_url(fresh), tmp_path, faults={"v1": fault}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        arguments = {"model": "cet-d", "messages": ask()}
        whole = client.chat.completions.create(**arguments).choices[0].message.content
        assert read_stream(client.chat.completions.create(**arguments, stream=True))[0] == whole != ""


def test_a_client_that_leaves_costs_no_record(served, engine):
    body = json.dumps(
        {"model": "cet-d", "messages": ask(), "stream": True, "metadata": {"session_id": "left"}}
    ).encode()
    address = httpx2.URL(served.url)
    with socket.create_connection((address.host, address.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        connection.recv(10)
    eventually(lambda: rows(engine, "select from iccm.requests where session_id = 'left' and status = 'ok'"))


def test_tokens_are_required_and_their_absence_has_the_clients_type(fresh, tmp_path):
    with gateway(database_url(fresh), tmp_path, ICCM_GATEWAY__TOKENS="a-token-that-is-long") as running:
        for key, error in (("a-token-that-is-long", None), ("wrong", openai.AuthenticationError)):
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
            if error is None:
                assert client.chat.completions.create(model="cet-d", messages=ask()).model == "cet-d@v1"
                continue
            with pytest.raises(error) as caught:
                client.chat.completions.create(model="cet-d", messages=ask())
            assert caught.value.code == "invalid_api_key"


# ---- the pieces ----------------------------------------------------------------------------------


def test_the_packaged_model_streams_exactly_what_it_generates_also_in_batches():
    loaded = load_model(PACKAGED_MODEL)
    sources = [SOURCE, "def is_even(n):\n    return n % 2 == 0\n", "class Stack:\n    pass\n"]
    pieces: list[list[str]] = [[], [], []]
    counts: list[list[int]] = [[], [], []]

    def listen(row):
        def take(text, tokens):
            pieces[row].append(text)
            counts[row].append(tokens)

        return take

    responses = generate(
        loaded, sources, max_new_tokens=120, batch_size=2, listeners=[listen(0), None, listen(2)]
    )
    plain = generate(loaded, sources, max_new_tokens=120, batch_size=2)
    assert [response.text for response in responses] == [response.text for response in plain]
    assert ["".join(parts) for parts in pieces] == [responses[0].text, "", responses[2].text]
    assert len(pieces[0]) > 10 and counts[0] == sorted(counts[0])
    assert counts[0][-1] <= responses[0].output_tokens
    [short] = generate(loaded, [SOURCE], max_new_tokens=3, batch_size=1)
    assert not short.is_complete and responses[0].is_complete and responses[0].source_tokens > 5


def test_parts_of_characters_are_held_back_and_a_tokenizer_that_rewrites_is_an_error():
    class Bytes:
        """A tokenizer of bytes; 0 is the end."""

        def decode(self, tokens, **options):
            return bytes(token for token in tokens if token).decode("utf-8", "replace")

    heard: list[str] = []
    streamer = BatchStreamer(Bytes(), {0}, [lambda text, tokens: heard.append(text)])
    namespace = SimpleNamespace
    text = "aé€😀b"
    streamer.put(None)  # the prompt
    for token in (*text.encode(), 0, 7):
        streamer.put(namespace(reshape=lambda shape, token=token: namespace(tolist=lambda: [token])))
    assert heard == list(text)
    streamer.finish([text])
    with pytest.raises(ModelError, match="one by one"):
        streamer.finish(["another text"])


def test_a_batch_that_fails_in_the_middle_is_tried_again_only_for_those_who_heard_nothing():
    attempts: list[int] = []

    def generate_torn(sources, listeners):
        attempts.append(len(sources))
        time.sleep(0.01)
        for listener in filter(None, listeners):
            listener("The ", 1)
        raise RuntimeError("broken")

    async def ask_twice():
        batcher = DynamicBatcher(
            "v",
            generate_torn,
            batch_size=2,
            batch_timeout_seconds=5.0,
            queue_size=4,
            stall_timeout_seconds=60,
        )
        heard: list[str] = []
        both = [batcher.generate("a", lambda text, tokens: heard.append(text)), batcher.generate("b")]
        errors = await asyncio.gather(*both, return_exceptions=True)
        batcher.close()
        return heard, errors

    heard, errors = asyncio.run(ask_twice())
    assert heard == ["The "] and attempts == [2, 1]
    assert all(isinstance(error, GenerationError) for error in errors)
    assert "in the middle" in str(errors[0]) and "RuntimeError" in str(errors[1])


def test_a_stream_of_a_server_is_read_whatever_its_chunks_and_must_end():
    events = [
        {"choices": [{"text": "The é"}]}, {"choices": [{"text": ""}]},
        {"choices": [{"text": " end.", "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 3}},
    ]  # fmt: skip
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}" for event in events]
    data = "\r\n\r\n".join([": comment", *lines, "data: [DONE]", ""]).encode()
    for size in (1, 3, 1000):
        heard: list[str] = []
        stream, buffer = CompletionStream(lambda text, tokens, heard=heard: heard.append(text)), LineBuffer()
        ended = [
            stream.read(line)
            for start in range(0, len(data), size)
            for line in buffer.split(data[start : start + size])
        ]
        assert any(ended) and heard == ["The é", " end."]
        response = stream.response()
        assert (response.text, response.output_tokens, response.source_tokens) == ("The é end.", 7, 3)
    torn = CompletionStream(lambda text, tokens: None)
    torn.read(lines[0].encode())
    with pytest.raises(GenerationError, match="broke off"):
        torn.response()
    for bad in ('data: {"error": {"message": "no"}}', "data: {", "data: []", 'data: {"choices": [1]}'):
        with pytest.raises(GenerationError):
            CompletionStream(lambda text, tokens: None).read(bad.encode())
