"""The backend of a version that an OpenAI-compatible server has, such as vLLM (G7)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2

from iccm_assets.errors import ModelError, first_line
from iccm_assets.gateway.batching import BackendResponse, GenerationError, QueueFullError
from iccm_assets.gateway.completion_responses import CompletionStream, LineBuffer, parse_completion
from iccm_assets.gateway.model_server_client import (
    MAX_ERROR_BYTES,
    ListedModel,
    classify_rejection,
    get_ssl_context,
    list_models,
    make_headers,
    open_client,
    read_key,
    read_whole,
)
from iccm_assets.gateway.model_server_errors import (
    EmptyResponseError,
    FilteredResponseError,
    ModelNotServedError,
    ServerAccessError,
    server_words,
)
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.served_adapters import ServedAdapter, check_base, find_server, get_server_path
from iccm_assets.gateway.server_prompts import TEXT_PROBES, ServerPrompt, VersionPrompts
from iccm_assets.models.token_streaming import TextListener
from iccm_assets.settings import Settings

WARM_UP_SOURCE = "def add(a, b):\n    return a + b\n"
MAX_RESPONSE_BYTES = 4 << 20
MAX_LISTED_MODELS = 5
LOG_INTERVAL_SECONDS = 60.0
# uvicorn, and so vLLM, closes an idle connection after 5 s, which no request must meet.
IDLE_CONNECTION_SECONDS = 4.0

log = logging.getLogger(__name__)


class OpenAiBackend:
    """A version behind an OpenAI-compatible server, by completions of the prompt it was trained on.

    It is sent as the token ids of training, or as text to a server that takes no ids. The server batches;
    only the number of concurrent requests is limited here. Creating a backend checks that the server has the
    model, or makes it load the adapter, and requests one completion. The API key is read from
    ``OPENAI_API_KEY``.
    """

    def __init__(self, version: ModelLocation, settings: Settings) -> None:
        self._limit = settings.gateway.queue_size
        self._max_tokens = settings.evaluation.max_new_tokens
        self._timeout = settings.gateway.timeout_seconds
        self._running = 0
        self._client: _Client | None = None
        self._last_access_error = -LOG_INTERVAL_SECONDS
        self._prompts = VersionPrompts(version, settings)
        base_digest = self._prompts.base_digest
        self._address = find_server(version.version, base_digest, settings.gateway.openai_urls)
        self._completions_url = f"{self._address.url}/completions"
        self._model, self._adapter = self._address.model, None
        if base_digest is not None:
            path = get_server_path(self._prompts.directory, settings)
            self._model = version.digest
            self._adapter = ServedAdapter(version.digest, base_digest, self._address.url, path)
        self._loading: asyncio.Task[None] | None = None
        self._load()

    def _load(self) -> None:
        """Check that the server has the model and answers; raise ``ModelError`` with its words if not."""
        where = f"{self._address.url} with model {self._model}"
        try:
            with open_client(self._timeout) as client:
                served = list_models(client, self._address.url)
                if self._adapter is None:
                    self._check_served(served)
                else:
                    check_base(self._adapter, self._address, served)
                    self._adapter.load(client)
                self._warm_up(client)
        except (EmptyResponseError, FilteredResponseError) as error:
            # Other sources may have an answer, and those that have none are counted one by one.
            log.warning("%s has no answer to the first request: %s", where, error)
        except GenerationError as error:
            raise ModelError(f"{where}: {error}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise ModelError(f"{where} cannot be reached: {type(error).__name__}") from None

    def _check_served(self, served: Sequence[ListedModel]) -> None:
        names = [model.name for model in served]
        if self._model not in names:
            listed = ", ".join(map(server_words, names[:MAX_LISTED_MODELS])) or "none"
            raise ModelError(
                f"{self._address.url} does not serve model {self._model}; it serves {listed}",
                hint="Start the server with this model, or correct ICCM_GATEWAY__OPENAI_URLS.",
            )

    def _warm_up(self, client: httpx2.Client) -> None:
        """Request one completion, by token ids, or by text if the server rejects those."""

        def complete(source: str) -> BackendResponse:
            body = self._body(self._prompts.encode(source))
            return self._parse(read_whole(client.post(self._completions_url, json=body)))

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
            response = await self._complete_loaded(session, self._body(prompt), listener)
            return replace(response, is_truncated=prompt.is_truncated)
        except aiohttp.ClientError as error:
            raise GenerationError(type(error).__name__) from None
        except ServerAccessError as error:
            self._log_access_error(error)
            raise
        finally:
            self._running -= 1

    async def _complete_loaded(
        self, session: aiohttp.ClientSession, body: dict[str, Any], listener: TextListener | None
    ) -> BackendResponse:
        """Complete; where the server misses the adapter, make it load it, and complete once more.

        The server was started again, or unloaded the adapter for another replica. What was passed on to the
        listener is never written twice.
        """
        has_begun = False

        def listen(text: str, tokens: int) -> None:
            nonlocal has_begun
            has_begun = True
            assert listener is not None
            listener(text, tokens)

        try:
            return await self._complete(session, body, listener and listen)
        except ModelNotServedError:
            if self._adapter is None or has_begun:
                raise
        await self._load_again(self._adapter)
        return await self._complete(session, body, listener)

    async def _load_again(self, adapter: ServedAdapter) -> None:
        """Make the server load the adapter, once for all requests that missed it before."""

        def load() -> None:
            with open_client(self._timeout) as client:
                if adapter.load(client):
                    log.warning(
                        "%s had lost the adapter %s and has loaded it again", adapter.url, adapter.digest[:12]
                    )

        running = self._loading
        if running is not None and not running.done():
            # The server may have answered it before it lost the adapter: only a load that begins after the
            # miss brings the adapter back for certain.
            await asyncio.wait([running])
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(asyncio.to_thread(load))
        try:
            await asyncio.shield(self._loading)
        except (ModelError, httpx2.HTTPError) as error:
            raise ModelNotServedError(first_line(error)) from None

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

    async def _complete(
        self, session: aiohttp.ClientSession, body: dict[str, Any], listener: TextListener | None
    ) -> BackendResponse:
        if listener is not None:
            return await self._stream(session, body, listener)
        async with session.post(self._completions_url, json=body, allow_redirects=False) as response:
            return self._parse(await _read_completion(response))

    def _parse(self, body: bytes) -> BackendResponse:
        """Read a completion; the server of an adapter must not answer with another one."""
        return parse_completion(body, read_key(), self._model if self._adapter else None)

    async def _stream(
        self, session: aiohttp.ClientSession, body: dict[str, Any], listener: TextListener
    ) -> BackendResponse:
        """Pass on what the server writes; it must say that it has finished."""
        expected = self._model if self._adapter else None
        stream, lines, size = CompletionStream(listener, read_key(), expected), LineBuffer(), 0
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with session.post(self._completions_url, json=body, allow_redirects=False) as response:
            if response.status != 200 or "json" in response.headers.get("content-type", ""):
                # An error, or the whole response of a server that does not stream.
                whole = self._parse(await _read_completion(response))
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
            "model": self._model,
            "prompt": prompt.value,
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }


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
            limit=limit, keepalive_timeout=IDLE_CONNECTION_SECONDS, ssl=get_ssl_context()
        ),
        headers=make_headers(),
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
        raise classify_rejection(response.status, response.headers, bytes(body))
    return bytes(body)
