"""Adapters behind an OpenAI-compatible server, which loads and unloads them by their digest (L11, G7)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iccm_assets.errors import AdapterNotServedError, ModelError
from iccm_assets.gateway.backends import load_transformers_backend
from iccm_assets.gateway.batching import Backend, BackendResponse, GenerationError
from iccm_assets.gateway.model_server_errors import ModelNotServedError
from iccm_assets.gateway.openai_backend import OpenAiBackend
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.served_adapters import unload_unused_adapters
from iccm_assets.registry.model_store import ModelStore, StoredModel
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories.adapter_servers import BASE, AdapterServer, serve_adapters
from iccm_assets_tests.factories.adapters import publish_adapter, publish_base
from iccm_assets_tests.factories.architectures import SOURCES, qwen2
from iccm_assets_tests.factories.chat_dialects import Reply
from iccm_assets_tests.factories.completion_dialects import streams


def make_settings(home: Path, url: str, **gateway: object) -> Settings:
    return load_settings(
        home=home,
        gateway={"backend": "openai", "openai_urls": {"*": f"{url}#{BASE}"}, **gateway},
        evaluation={"max_new_tokens": 8},
    )


def locate(stored: StoredModel, version: str = "v2") -> ModelLocation:
    return ModelLocation(version, f"models/{stored.digest}", stored.digest)


def answers(backend: Backend, sources: list[str] = SOURCES[:3]) -> list[BackendResponse]:
    async def ask() -> list[BackendResponse]:
        return list(await asyncio.gather(*(backend.generate(source) for source in sources)))

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store with a base model and two adapters."""
    home = tmp_path_factory.mktemp("home")
    store = ModelStore(home)
    base = publish_base(store, qwen2)
    adapters = [publish_adapter(store, base, seed) for seed in (1, 2)]
    return SimpleNamespace(home=home, store=store, base=base, adapters=adapters)


@pytest.fixture
def server(models: SimpleNamespace) -> Iterator[AdapterServer]:
    with serve_adapters(models.base) as running:
        yield running


def test_adapters_answer_behind_a_server_as_in_process_each_under_its_digest(models, server) -> None:
    settings = make_settings(models.home, server.url)
    texts = set()
    for stored in (models.base, *models.adapters):
        remote = answers(OpenAiBackend(locate(stored), settings))
        local = load_transformers_backend(locate(stored), settings)
        assert [answer.text for answer in remote] == [answer.text for answer in answers(local)]
        local.close()
        texts.add(remote[0].text)
        name = BASE if stored is models.base else stored.digest
        assert {request["model"] for request in server.requests[name]} == {name}
    assert len(texts) == 3
    assert server.adapters == {adapter.digest for adapter in models.adapters}


def test_a_streamed_answer_of_an_adapter_is_its_own(models, server) -> None:
    settings = make_settings(models.home, server.url)
    backend = OpenAiBackend(locate(models.adapters[0]), settings)
    pieces: list[str] = []
    answer = asyncio.run(backend.generate(SOURCES[0], lambda text, tokens: pieces.append(text)))
    assert "".join(pieces) == answer.text == answers(backend)[0].text


def test_replicas_and_restarted_gateways_load_an_adapter_once(models, server) -> None:
    settings = make_settings(models.home, server.url)
    digest = models.adapters[0].digest
    for _ in range(3):
        OpenAiBackend(locate(models.adapters[0]), settings)
    assert server.calls == {("load", digest, 200): 1, ("load", digest, 400): 2}


def test_a_server_that_lost_the_adapter_loads_it_again_and_no_request_is_lost(models, server) -> None:
    settings = make_settings(models.home, server.url)
    backend = OpenAiBackend(locate(models.adapters[0]), settings)
    before = answers(backend, SOURCES[:3] * 10)
    server.restart()
    server.calls.clear()
    assert answers(backend, SOURCES[:3] * 10) == before
    # Those that miss it while it is loaded share one more load, which finds it.
    assert server.calls["load", models.adapters[0].digest, 200] == 1
    assert server.calls.total() <= 2
    server.restart()
    pieces: list[str] = []
    asyncio.run(backend.generate(SOURCES[0], lambda text, tokens: pieces.append(text)))
    assert "".join(pieces) == before[0].text
    server.restart()
    server.changeable = False
    with pytest.raises(ModelNotServedError, match="no endpoint that loads adapters"):
        answers(backend)


def test_a_load_that_began_before_the_adapter_was_lost_is_not_enough(models, server, monkeypatch) -> None:
    """Another replica may unload it again while the gateway still waits for the answer to its load."""
    backend = OpenAiBackend(locate(models.adapters[0]), make_settings(models.home, server.url))
    [before] = answers(backend, SOURCES[:1])
    post, missed = server.post, 0
    is_loaded, may_answer = threading.Event(), threading.Event()

    def hold_load(path: str, request: dict[str, Any]) -> Reply:
        nonlocal missed
        reply = post(path, request)
        if path == "/v1/completions":
            missed += reply.status == 404
        else:
            is_loaded.set()
            assert may_answer.wait(60)
        return reply

    async def ask() -> BackendResponse:
        given_up = asyncio.create_task(backend.generate(SOURCES[0]))
        assert await asyncio.to_thread(is_loaded.wait, 60)
        given_up.cancel()
        server.restart()
        asking = asyncio.create_task(backend.generate(SOURCES[0]))
        while missed < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # the miss arrives while the load is still running
        may_answer.set()
        return await asking

    server.restart()
    monkeypatch.setattr(server, "post", hold_load)
    assert asyncio.run(ask()) == before


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_server_that_never_has_the_adapter_is_asked_twice(models, server, monkeypatch, is_streamed) -> None:
    backend = OpenAiBackend(locate(models.adapters[0]), make_settings(models.home, server.url))
    server.restart()
    server.calls.clear()
    posted: list[str] = []
    post = server.post
    monkeypatch.setattr(server, "post", lambda path, request: posted.append(path) or post(path, request))
    monkeypatch.setattr(server, "_load", lambda name, path: Reply("Success"))
    listener = (lambda text, tokens: None) if is_streamed else None
    with pytest.raises(ModelNotServedError, match="model not found: HTTP 404"):
        asyncio.run(backend.generate(SOURCES[0], listener))
    assert posted == ["/v1/completions", "/v1/load_lora_adapter", "/v1/completions"]


def test_a_stream_that_loses_its_adapter_after_the_first_text_is_not_begun_again(models, server) -> None:
    digest = models.adapters[0].digest
    backend = OpenAiBackend(locate(models.adapters[0]), make_settings(models.home, server.url))
    message = {"message": f"The model `{digest}` does not exist.", "code": 404}
    server.dialects[digest] = streams({"choices": [{"text": "It shall"}]}, {"error": message})
    server.calls.clear()
    pieces: list[str] = []
    with pytest.raises(ModelNotServedError):
        asyncio.run(backend.generate(SOURCES[0], lambda text, tokens: pieces.append(text)))
    assert pieces == ["It shall"] and not server.calls


def test_a_server_may_see_the_model_store_at_another_path(models) -> None:
    with serve_adapters(models.base, "/srv/models") as server:
        wrong = make_settings(models.home, server.url)
        with pytest.raises(
            AdapterNotServedError, match=r"No adapter found.*ICCM_GATEWAY__OPENAI_MODELS_PATH"
        ):
            OpenAiBackend(locate(models.adapters[0]), wrong)
        settings = make_settings(models.home, server.url, openai_models_path="/srv/models/")
        OpenAiBackend(locate(models.adapters[0]), settings)
        assert list(server.paths.values()) == [f"/srv/models/{models.adapters[0].digest}"]
        unload_unused_adapters(settings, ())
        assert not server.adapters


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"changeable": False}, r"no endpoint that loads adapters .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"enabled": False}, r"HTTP 500.*LoRA is not enabled.*--enable-lora"),
        ({"max_rank": 2}, r"LoRA rank 4 is greater than max_lora_rank 2.*--max-lora-rank"),
    ],
)
def test_a_server_that_cannot_load_adapters_is_named_with_what_to_do(models, server, change, words) -> None:
    vars(server).update(change)
    with pytest.raises(AdapterNotServedError, match=words):
        OpenAiBackend(locate(models.adapters[0]), make_settings(models.home, server.url))


def test_a_server_of_another_base_model_gets_no_adapter(models, server) -> None:
    server.base_root = "/srv/models/" + "0" * 64
    with pytest.raises(AdapterNotServedError, match="serves the base model 000000000000") as raised:
        OpenAiBackend(locate(models.adapters[0]), make_settings(models.home, server.url))
    assert models.base.digest in raised.value.hint
    assert not server.calls


def test_the_server_of_adapters_stands_under_the_digest_of_their_base(models, server) -> None:
    urls = {"*": "http://vllm-{version}:8000/v1#{version}", models.base.digest: f"{server.url}#{BASE}"}
    settings = make_settings(models.home, server.url, openai_urls=urls)
    OpenAiBackend(locate(models.adapters[0]), settings)
    assert server.adapters == {models.adapters[0].digest}
    unload_unused_adapters(settings, ())
    assert not server.adapters
    with pytest.raises(ModelError, match="no URL is configured for v2"):
        OpenAiBackend(
            locate(models.adapters[0]), make_settings(models.home, "", openai_urls={"v9": urls["*"]})
        )


def test_an_answer_that_says_it_is_of_another_adapter_is_none(models, server) -> None:
    backend = OpenAiBackend(locate(models.adapters[0]), make_settings(models.home, server.url))
    choice = {"text": "It shall add.", "finish_reason": "stop"}
    server.dialects[models.adapters[0].digest] = lambda request, earlier: Reply(
        {"model": BASE, "choices": [choice]}
    )
    with pytest.raises(GenerationError, match=f"answered with model {BASE}"):
        answers(backend)


def test_only_adapters_of_this_store_that_nobody_uses_are_unloaded(models, server) -> None:
    settings = make_settings(models.home, server.url)
    first, second = models.adapters
    for adapter in models.adapters:
        OpenAiBackend(locate(adapter), settings)
    foreign = {"1" * 64: "/elsewhere/" + "1" * 64, "mine": f"{server.root}/mine"}
    server.paths |= foreign
    unload_unused_adapters(settings, {first.digest})
    assert server.adapters == {first.digest, *foreign}
    unload_unused_adapters(settings, {first.digest})
    assert server.calls["unload", second.digest, 200] == 1
    server.paths[second.digest] = f"{server.root}/{second.digest}"
    server.changeable = False
    with pytest.raises(AdapterNotServedError, match="does not unload"):
        unload_unused_adapters(settings, {first.digest})


def test_an_adapter_that_another_replica_unloads_first_is_unloaded(models, server, monkeypatch) -> None:
    settings = make_settings(models.home, server.url)
    cards = server.cards()
    digest = models.adapters[0].digest
    stale = [*cards, {"id": digest, "root": f"{server.root}/{digest}"}]
    monkeypatch.setattr(server, "cards", lambda: stale)
    unload_unused_adapters(settings, ())
    assert server.calls == {("unload", digest, 404): 1}
