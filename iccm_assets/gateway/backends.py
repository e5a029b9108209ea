"""Backends: models in this process, or one OpenAI-compatible server per version (G7)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import httpx2

from iccm_assets.endpoint_urls import EndpointAddress, parse_orchestra
from iccm_assets.errors import CorruptCheckpointError, ModelError
from iccm_assets.gateway.batching import (
    Backend,
    BackendResponse,
    DynamicBatcher,
    GenerationError,
    QueueFullError,
)
from iccm_assets.gateway.model_pool import ModelLoader
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.settings import Settings

WARM_UP_SOURCE = "def add(a, b):\n    return a + b\n"
MAX_RESPONSE_BYTES = 4 << 20


def make_model_loader(settings: Settings) -> ModelLoader:
    """Make the function that loads a version; it raises ``ModelError`` or what reading the weights raises."""
    if settings.gateway.backend == "openai":
        return lambda version: OpenAiBackend(version, settings)
    return lambda version: load_transformers_backend(version, settings)


def load_transformers_backend(version: ModelLocation, settings: Settings) -> Backend:
    """Load a version into this process, verify its manifest, and generate one response to warm it up."""
    from iccm_assets.models import generation

    limits = settings.gateway
    generation.set_threads(limits.threads)
    path = str(settings.home / version.path)
    loaded = generation.load_model(path, device=limits.device or None)
    if loaded.digest != version.digest:
        raise CorruptCheckpointError(f"{path} has digest {loaded.digest[:12]}, not {version.digest[:12]}")

    def generate(sources: Sequence[str]) -> list[BackendResponse]:
        responses = generation.generate(
            loaded,
            sources,
            max_new_tokens=settings.evaluation.max_new_tokens,
            batch_size=limits.batch_size,
            max_source_tokens=settings.training.max_source_tokens,
        )
        return [BackendResponse(response.text, response.output_tokens) for response in responses]

    generate([WARM_UP_SOURCE])
    return DynamicBatcher(
        version.version,
        generate,
        batch_size=limits.batch_size,
        batch_timeout_seconds=limits.batch_timeout_ms / 1000,
        queue_size=limits.queue_size,
        stall_timeout_seconds=limits.timeout_seconds,
    )


class OpenAiBackend:
    """A version behind an OpenAI-compatible server, by completions of the prompt it was trained on.

    The server batches; only the number of concurrent requests is limited here. Creating a backend checks that
    the server has the model and requests one completion. The API key is read from ``OPENAI_API_KEY``.
    """

    def __init__(self, version: ModelLocation, settings: Settings) -> None:
        self._address = find_endpoint(version.version, settings.gateway.openai_urls)
        self._completions_url = f"{self._address.url}/completions"
        self._limit = settings.gateway.queue_size
        self._max_tokens = settings.evaluation.max_new_tokens
        self._timeout = settings.gateway.timeout_seconds
        self._running = 0
        self._client: httpx2.AsyncClient | None = None
        with httpx2.Client(timeout=self._timeout, headers=_headers()) as client:
            models = client.get(f"{self._address.url}/models").raise_for_status().json()
            if self._address.model not in [model.get("id") for model in models.get("data", [])]:
                raise ModelError(f"{self._address.url} does not serve model {self._address.model}")
            response = client.post(self._completions_url, json=self._body(WARM_UP_SOURCE))
            _parse_completion(response.raise_for_status().content)

    @property
    def pending(self) -> int:
        return self._running

    async def generate(self, source: str) -> BackendResponse:
        if self._running >= self._limit:
            raise QueueFullError
        self._client = self._client or httpx2.AsyncClient(
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=self._limit),
            headers=_headers(),
        )
        self._running += 1
        try:
            return _parse_completion(await self._request(self._client, source))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise GenerationError(type(error).__name__) from None
        finally:
            self._running -= 1

    def close(self) -> None:
        self._client = None  # garbage collection closes its idle connections

    async def _request(self, client: httpx2.AsyncClient, source: str) -> bytes:
        body = bytearray()
        async with client.stream("POST", self._completions_url, json=self._body(source)) as response:
            if response.status_code != 200:
                raise GenerationError(f"HTTP {response.status_code}")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    raise GenerationError(f"the response is larger than {MAX_RESPONSE_BYTES >> 20} MiB")
        return bytes(body)

    def _body(self, source: str) -> dict[str, Any]:
        from iccm_assets.models.tokenization import SEPARATOR

        return {
            "model": self._address.model,
            "prompt": source + SEPARATOR,
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }


def find_endpoint(version: str, urls: dict[str, str]) -> EndpointAddress:
    """Find the endpoint that serves a version; raise ``ModelError`` if no URL is configured for it."""
    url = urls.get(version) or urls.get("*")
    if url is None:
        raise ModelError(f"no URL is configured for {version}", hint="Add it to ICCM_GATEWAY__OPENAI_URLS.")
    [address] = parse_orchestra(f"openai:{url.replace('{version}', version)}")
    assert isinstance(address, EndpointAddress)  # since it starts with openai:
    return address


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    # A small compressed response could expand without bound while it is read.
    return {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}


def _parse_completion(body: bytes) -> BackendResponse:
    try:
        completion = json.loads(body)
        text = completion["choices"][0]["text"]
        tokens = (completion.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise GenerationError("the response is not a completion") from None
    if not isinstance(text, str):
        raise GenerationError("the completion has no text")
    return BackendResponse(text, tokens if isinstance(tokens, int) and tokens >= 0 else None)
