"""The backend of a version that an OpenAI-compatible server has, such as vLLM (G7)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2

from iccm_assets.endpoint_urls import EndpointAddress, parse_orchestra
from iccm_assets.errors import ModelError
from iccm_assets.gateway.batching import BackendResponse, GenerationError, QueueFullError
from iccm_assets.gateway.completion_responses import CompletionStream, LineBuffer, parse_completion
from iccm_assets.gateway.model_server_errors import (
    EmptyResponseError,
    FilteredResponseError,
    ServerAccessError,
    rejection_error,
    server_words,
)
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.server_prompts import TEXT_PROBES, ServerPrompt, VersionPrompts
from iccm_assets.models.token_streaming import TextListener
from iccm_assets.settings import Settings

WARM_UP_SOURCE = "def add(a, b):\n    return a + b\n"
MAX_RESPONSE_BYTES = 4 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_LISTED_MODELS = 5
LOG_INTERVAL_SECONDS = 60.0
# uvicorn, and so vLLM, closes an idle connection after 5 s, which no request must meet.
IDLE_CONNECTION_SECONDS = 4.0

log = logging.getLogger(__name__)


class OpenAiBackend:
    """A version behind an OpenAI-compatible server, by completions of the prompt it was trained on.

    It is sent as the token ids of training, or as text to a server that takes no ids. The server batches;
    only the number of concurrent requests is limited here. Creating a backend checks that the server has the
    model and requests one completion. The API key is read from ``OPENAI_API_KEY``.
    """

    def __init__(self, version: ModelLocation, settings: Settings) -> None:
        self._address = find_endpoint(version.version, settings.gateway.openai_urls)
        self._completions_url = f"{self._address.url}/completions"
        self._limit = settings.gateway.queue_size
        self._max_tokens = settings.evaluation.max_new_tokens
        self._timeout = settings.gateway.timeout_seconds
        self._running = 0
        self._client: _Client | None = None
        self._last_access_error = -LOG_INTERVAL_SECONDS
        self._prompts = VersionPrompts(version, settings)
        self._load()

    def _load(self) -> None:
        """Check that the server has the model and answers; raise ``ModelError`` with its words if not."""
        where = f"{self._address.url} with model {self._address.model}"
        try:
            with httpx2.Client(timeout=self._timeout, headers=_headers()) as client:
                names = _parse_models(_read_whole(client.get(f"{self._address.url}/models")))
                if self._address.model not in names:
                    listed = ", ".join(map(server_words, names[:MAX_LISTED_MODELS])) or "none"
                    raise ModelError(
                        f"{self._address.url} does not serve model {self._address.model}; it serves {listed}",
                        hint="Start the server with this model, or correct ICCM_GATEWAY__OPENAI_URLS.",
                    )
                self._warm_up(client)
        except (EmptyResponseError, FilteredResponseError) as error:
            # Other sources may have an answer, and those that have none are counted one by one.
            log.warning("%s has no answer to the first request: %s", where, error)
        except GenerationError as error:
            raise ModelError(f"{where}: {error}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise ModelError(f"{where} cannot be reached: {type(error).__name__}") from None

    def _warm_up(self, client: httpx2.Client) -> None:
        """Request one completion, by token ids, or by text if the server rejects those."""

        def complete(source: str) -> BackendResponse:
            body = self._body(self._prompts.encode(source))
            return parse_completion(_read_whole(client.post(self._completions_url, json=body)), _read_key())

        try:
            complete(WARM_UP_SOURCE)
        except GenerationError as error:
            # Any other class says what is wrong with the server, whatever it was sent.
            if type(error) is not GenerationError or not self._prompts.send_text():
                raise
            for source in TEXT_PROBES:
                self._prompts.check_text(source, complete(source).source_tokens)

    @property
    def pending(self) -> int:
        return self._running

    async def generate(self, source: str, listener: TextListener | None = None) -> BackendResponse:
        if self._running >= self._limit:
            raise QueueFullError
        self._running += 1
        try:
            session = await self._open_session()
            prompt = await self._prompts.encode_async(source)
            body = self._body(prompt)
            if listener is not None:
                response = await self._stream(session, body, listener)
            else:
                response = parse_completion(await self._request(session, body), _read_key())
            return replace(response, is_truncated=prompt.is_truncated)
        except aiohttp.ClientError as error:
            raise GenerationError(type(error).__name__) from None
        except ServerAccessError as error:
            self._log_access_error(error)
            raise
        finally:
            self._running -= 1

    async def _open_session(self) -> aiohttp.ClientSession:
        """Return the session of the running event loop: connections belong to the one that opened them."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._client.loop is not loop:
            sessions = _hold_session(self._address.url, self._timeout, self._limit)
            self._client = _Client(loop, sessions, await anext(sessions))  # which awaits nothing
        return self._client.session

    def close(self) -> None:
        self._client = None  # the loop ends the generator that nothing refers to, which closes its session

    def _log_access_error(self, error: ServerAccessError) -> None:
        """Log it once a minute: no version is at fault, so no rollout notices it."""
        if time.monotonic() - self._last_access_error > LOG_INTERVAL_SECONDS:
            self._last_access_error = time.monotonic()
            log.error("%s: %s", self._address.url, error)

    async def _request(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> bytes:
        async with session.post(self._completions_url, json=body, allow_redirects=False) as response:
            return await _read_completion(response)

    async def _stream(
        self, session: aiohttp.ClientSession, body: dict[str, Any], listener: TextListener
    ) -> BackendResponse:
        """Pass on what the server writes; it must say that it has finished."""
        stream, lines, size = CompletionStream(listener, _read_key()), LineBuffer(), 0
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with session.post(self._completions_url, json=body, allow_redirects=False) as response:
            if response.status != 200 or "json" in response.headers.get("content-type", ""):
                # An error, or the whole response of a server that does not stream.
                whole = parse_completion(await _read_completion(response), _read_key())
                listener(whole.text, whole.output_tokens or 1)
                return whole
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > MAX_RESPONSE_BYTES:
                    raise GenerationError(f"the response is larger than {MAX_RESPONSE_BYTES >> 20} MiB")
                for line in lines.split(chunk):
                    if stream.read(line):
                        return stream.response()
        return stream.response()

    def _body(self, prompt: ServerPrompt) -> dict[str, Any]:
        return {
            "model": self._address.model,
            "prompt": prompt.value,
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


@dataclass(frozen=True)
class _Client:
    """The session of an event loop, and the generator that closes it when nothing refers to it any more."""

    loop: asyncio.AbstractEventLoop
    sessions: AsyncGenerator[aiohttp.ClientSession]
    session: aiohttp.ClientSession


async def _hold_session(url: str, timeout: float, limit: int) -> AsyncGenerator[aiohttp.ClientSession]:
    """Yield a session, and close it when the generator or its event loop ends."""
    parts = urlsplit(url)
    proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=limit, keepalive_timeout=IDLE_CONNECTION_SECONDS, ssl=httpx2.create_ssl_context()
        ),
        headers=_headers(),
        timeout=aiohttp.ClientTimeout(sock_connect=timeout, sock_read=timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        proxy=proxies.get(parts.scheme) or proxies.get("all"),
    ) as session:
        yield session


async def _read_completion(response: aiohttp.ClientResponse) -> bytes:
    """Read the body of a completion; raise what an error response means, of which the beginning is enough."""
    body, is_error = bytearray(), response.status != 200
    async for chunk in response.content.iter_any():
        body += chunk
        if is_error and len(body) > MAX_ERROR_BYTES:
            break
        if len(body) > MAX_RESPONSE_BYTES:
            raise GenerationError(f"the response is larger than {MAX_RESPONSE_BYTES >> 20} MiB")
    if is_error:
        raise _rejection_error(response.status, response.headers, bytes(body))
    return bytes(body)


def _read_whole(response: httpx2.Response) -> bytes:
    if response.status_code != 200:
        raise _rejection_error(response.status_code, response.headers, response.content)
    return response.content


def _rejection_error(status: int, headers: Mapping[str, str], body: bytes) -> GenerationError:
    is_plain = headers.get("content-encoding", "identity") == "identity"
    text = body[:MAX_ERROR_BYTES] if is_plain else b""
    return rejection_error(status, headers, text, _read_key())


def _parse_models(body: bytes) -> list[str]:
    """Return the names in a list of models; raise ``GenerationError`` if it is none."""
    try:
        return [model["id"] for model in json.loads(body)["data"] if isinstance(model.get("id"), str)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise GenerationError("the list of models is not one") from None


def _read_key() -> str:
    return os.environ.get("OPENAI_API_KEY", "").strip()


def _headers() -> dict[str, str]:
    key = _read_key()
    # A small compressed response could expand without bound while it is read.
    return {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
