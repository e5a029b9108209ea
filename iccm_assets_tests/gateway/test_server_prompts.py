"""A model server gets the token ids of training, or a text that has the same (L8, G7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from iccm_assets.errors import CorruptCheckpointError, ModelError
from iccm_assets.evaluation.paired_evaluation import load_canary_items
from iccm_assets.gateway.backends import load_transformers_backend
from iccm_assets.gateway.batching import Backend, BackendResponse
from iccm_assets.gateway.openai_backend import OpenAiBackend
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.models.generation import load_model
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.scoring.scoring import ScoringTask, score_texts
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.architectures import SOURCES, codegen, llama, phi, qwen2
from iccm_assets_tests.factories.chat_dialects import run_stub
from iccm_assets_tests.factories.completion_dialects import runs

LONG = "x = x + 1\n" * 400


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Callable[..., SimpleNamespace]]:
    """Publish a model in a store, and serve it by a model server."""
    with run_stub({}) as server:

        def publish(make: Callable[[Path], Path], **behaviour: bool) -> SimpleNamespace:
            prompt = load_model(make(tmp_path / "model")).encoder.prompt
            stored = ModelStore(tmp_path).import_model(str(tmp_path / "model"), prompt)
            loaded = load_model(stored.path)
            server.dialects["v1"] = runs(loaded, **behaviour)
            settings = load_settings(
                home=tmp_path,
                gateway={"backend": "openai", "openai_urls": {"*": f"{server.url}#v1"}},
                evaluation={"max_new_tokens": 12},
            )
            location = ModelLocation("v1", f"models/{stored.digest}", stored.digest)
            return SimpleNamespace(loaded=loaded, settings=settings, location=location, server=server)

        yield publish


def answers(backend: Backend, sources: list[str]) -> list[BackendResponse]:
    async def ask() -> list[BackendResponse]:
        return [await backend.generate(source) for source in sources]

    return asyncio.run(ask())


@pytest.mark.parametrize("make", [qwen2, phi, llama, codegen])
def test_a_version_answers_alike_in_process_and_behind_a_model_server(make, published) -> None:
    version = published(make)
    sources = [*SOURCES[:6], LONG]
    remote = answers(OpenAiBackend(version.location, version.settings), sources)
    local = load_transformers_backend(version.location, version.settings)
    for source, here, there in zip(sources, answers(local, sources), remote, strict=True):
        assert (here.text, here.is_complete, here.is_truncated) == (
            there.text, there.is_complete, there.is_truncated,
        )  # fmt: skip
        assert here.source_tokens == there.source_tokens
        assert here.is_truncated == (source is LONG)
    local.close()
    sent = [request["prompt"] for request in version.server.requests["v1"]]
    assert sent[-len(sources) :] == [
        version.loaded.encoder.encode_source(source, 500).token_ids for source in sources
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_version_answers_the_whole_canary_set_alike_behind_both_backends(published) -> None:
    version = published(qwen2)
    canary_set = load_canary_items(version.settings).items
    sources = [item.source_code for item in canary_set]
    remote = answers(OpenAiBackend(version.location, version.settings), sources)
    local = load_transformers_backend(version.location, version.settings)
    here = answers(local, sources)
    local.close()
    pairs = zip(here, remote, strict=True)
    differing = [(a, b) for a, b in pairs if (a.text, a.finish_reason) != (b.text, b.finish_reason)]
    assert not differing, (len(differing), differing[:3])
    assert len({answer.text for answer in here}) > len(sources) / 2
    orchestra = load_orchestra_from_settings(version.settings)
    scores = [
        [
            (score.test_pass_rate, score.implementation_variance)
            for score in score_texts(
                [
                    ScoringTask(answer.text, item.suite, item.source_code)
                    for item, answer in zip(canary_set[::40], responses[::40], strict=True)
                ],
                orchestra,
                version.settings,
            )
        ]
        for responses in (here, remote)
    ]
    assert scores[0] == scores[1]


def test_a_server_that_takes_text_only_gets_text_with_the_same_tokens(published) -> None:
    version = published(qwen2, takes_ids=False)
    [there] = answers(OpenAiBackend(version.location, version.settings), SOURCES[:1])
    [here] = answers(load_transformers_backend(version.location, version.settings), SOURCES[:1])
    assert there.text == here.text
    assert version.server.requests["v1"][-1]["prompt"] == version.loaded.encoder.render(SOURCES[0])


def test_a_server_that_reads_other_tokens_than_training_is_refused_with_the_fix(published) -> None:
    """The end of the source and the separator become tokens that training never had."""
    version = published(codegen, takes_ids=False)
    with pytest.raises(ModelError, match=r"takes no token ids, and reads \d+ tokens where .* vLLM"):
        OpenAiBackend(version.location, version.settings)


def test_of_a_server_that_does_not_count_the_operator_is_warned(published, caplog) -> None:
    version = published(codegen, takes_ids=False, counts=False)
    OpenAiBackend(version.location, version.settings)
    assert "does not say how many tokens it reads" in caplog.text


def test_weights_are_not_needed_but_another_models_tokenizer_is_refused(published) -> None:
    version = published(qwen2)
    directory = version.settings.home / version.location.path
    directory.chmod(0o755)
    (directory / "model.safetensors").unlink()
    backend = OpenAiBackend(version.location, version.settings)
    assert answers(backend, SOURCES[:1])
    other = ModelLocation("v1", version.location.path, "0" * 64)
    with pytest.raises(CorruptCheckpointError, match="has digest"):
        OpenAiBackend(other, version.settings)
