"""Query production through its serving path, to measure it (T8).

If a live gateway has production loaded, it is queried over HTTP at ``/v1/probe``: the same weights in memory
and the same batching as for users, but no session, no arm and no record. Otherwise production is loaded here
with the gateway's own loader.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import httpx2
from sqlalchemy import Engine

from iccm_assets.db.replicas import load_live_replicas
from iccm_assets.errors import IccmError
from iccm_assets.gateway.auth import bearer_tokens
from iccm_assets.gateway.backends import make_model_loader
from iccm_assets.gateway.batching import Backend, GenerationError, QueueFullError
from iccm_assets.gateway.model_pool import ModelLoader
from iccm_assets.gateway.model_server_errors import RateLimitedError
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.settings import Settings

# User traffic has priority: a measurement sends few concurrent requests, and waits while a gateway is busy.
MAX_CONCURRENT_PROBES = 4
PROBE_TIMEOUT_SECONDS = 300.0
RETRY_INTERVAL_SECONDS = 1.0
# Statuses of a source that the gateway rejects for users, too: a retry cannot succeed.
NON_RETRYABLE = (400, 413, 422)


@dataclass(frozen=True)
class ProbeResult:
    """Production's response to a source, or the reason there is none; ``finish_reason`` as in `requests`."""

    text: str | None
    error: str = ""
    finish_reason: str = "stop"


class ServingPath(ABC):
    """Production as it is served; ``name`` describes how it is queried, ``limit`` so many at a time."""

    def __init__(self, name: str, limit: int = MAX_CONCURRENT_PROBES) -> None:
        self.name, self._limit = name, limit

    def __call__(self, sources: Sequence[str]) -> list[ProbeResult]:
        """Return one result per source, in order."""
        return asyncio.run(self._probe_all(sources))

    async def _probe_all(self, sources: Sequence[str]) -> list[ProbeResult]:
        semaphore = asyncio.Semaphore(self._limit)

        async def probe_limited(index: int, source: str) -> ProbeResult:
            async with semaphore:
                return await self.probe(index, source)

        return list(await asyncio.gather(*map(probe_limited, range(len(sources)), sources)))

    @abstractmethod
    async def probe(self, index: int, source: str) -> ProbeResult:
        """Return the result for the source at this index."""


class HttpServingPath(ServingPath):
    """Query live gateways in turn.

    A source is asked again until no source has had a response for ``PROBE_TIMEOUT_SECONDS``; from then on
    each is asked once, so that a measurement ends soon after its gateways.
    """

    def __init__(self, addresses: Sequence[str], version: str, settings: Settings) -> None:
        super().__init__(f"gateway {', '.join(addresses)}")
        self._addresses, self._version = list(addresses), version
        self._timeout = settings.gateway.timeout_seconds + 5
        tokens = bearer_tokens(settings)
        self._headers = {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}
        self._last_response = time.monotonic()

    async def _probe_all(self, sources: Sequence[str]) -> list[ProbeResult]:
        async with httpx2.AsyncClient(timeout=self._timeout, headers=self._headers) as self._client:
            return await super()._probe_all(sources)

    async def probe(self, index: int, source: str) -> ProbeResult:
        while True:
            address = self._addresses[index % len(self._addresses)]
            try:
                response = await self._client.post(f"{address}/v1/probe", json={"source_code": source})
                result = self._parse(response)
                if result.text is not None or response.status_code in NON_RETRYABLE:
                    self._last_response = time.monotonic()
                    return result
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                result = ProbeResult(None, type(error).__name__)
            if time.monotonic() - self._last_response > PROBE_TIMEOUT_SECONDS:
                return result
            index += 1
            await asyncio.sleep(RETRY_INTERVAL_SECONDS)

    def _parse(self, response: httpx2.Response) -> ProbeResult:
        """Parse a response; raise ``IccmError`` if no retry can succeed."""
        if response.status_code in (401, 404):
            raise IccmError(f"{self.name} rejects probes: HTTP {response.status_code}")
        if response.status_code != 200:
            return ProbeResult(None, f"HTTP {response.status_code}")
        body = response.json()
        if body["model_version"] != self._version:
            raise IccmError(
                f"{body['model_version']} serves now, not {self._version}",
                hint="Nothing was stored; the next measurement uses the version that serves then.",
            )
        # A gateway of an earlier release states no reason.
        return ProbeResult(body["requirements"], finish_reason=body.get("finish_reason", "stop"))


class InProcessServingPath(ServingPath):
    """Query production in this process, loaded as a gateway loads it."""

    def __init__(self, backend: Backend, limit: int) -> None:
        super().__init__("loaded for the measurement", limit)
        self._backend = backend

    async def probe(self, index: int, source: str) -> ProbeResult:
        deadline = time.monotonic() + PROBE_TIMEOUT_SECONDS
        while True:
            try:
                response = await self._backend.generate(source)
                return ProbeResult(response.text, finish_reason=response.finish_reason)
            except QueueFullError:
                await asyncio.sleep(RETRY_INTERVAL_SECONDS)
            except RateLimitedError as error:
                wait = max(RETRY_INTERVAL_SECONDS, error.retry_after_seconds)
                if time.monotonic() + wait > deadline:
                    return ProbeResult(None, str(error))
                await asyncio.sleep(wait)
            except GenerationError as error:
                return ProbeResult(None, str(error))


@contextmanager
def open_serving_path(
    engine: Engine, settings: Settings, version: ModelVersion, load: ModelLoader | None = None
) -> Iterator[ServingPath]:
    """Open the serving path of a version; raise what loading raises if no gateway has it ready."""
    with engine.connect() as conn:
        ready = [replica for replica in load_live_replicas(conn) if version.version in replica.ready_versions]
    addresses = list(dict.fromkeys(replica.address for replica in ready if replica.address))
    if addresses:
        yield HttpServingPath(addresses, version.version, settings)
        return
    load = load or make_model_loader(settings)
    with closing(load(ModelLocation(version.version, version.path, version.digest))) as backend:
        yield InProcessServingPath(backend, settings.gateway.batch_size)
