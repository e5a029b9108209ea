"""Asking production through what serves it, to measure it (T8).

Where a gateway lives that has production loaded, it is asked over HTTP, at ``/v1/probe``: the same weights in
memory and the same batching as for its users, but no session, no arm and no record. Where none lives,
production is loaded here by the very code a gateway loads it with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from iccm_assets.errors import IccmError
from iccm_assets.gateway.backends import loader_of
from iccm_assets.gateway.batching import Backend, Busy, Failed
from iccm_assets.gateway.fleet import Load
from iccm_assets.gateway.routing import Version
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets.store.replicas import live_replicas

if TYPE_CHECKING:
    import httpx2

# Users come first: a measurement has few requests under way, and waits where a gateway is busy.
CONCURRENCY = 4
PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 1.0
# A source that no user could ask about either: asking again does not help.
FINAL = (400, 413, 422)


@dataclass(frozen=True)
class Told:
    """Production's answer, or why there is none."""

    text: str | None
    error: str = ""


class ServingPath:
    """Production as it is served; ``name`` says how it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, sources: Sequence[str]) -> list[Told]:
        """One answer each, in order."""
        return asyncio.run(self._all(sources))

    async def _all(self, sources: Sequence[str]) -> list[Told]:
        places = asyncio.Semaphore(CONCURRENCY)

        async def one(number: int, source: str) -> Told:
            async with places:
                return await self.ask(number, source)

        return list(await asyncio.gather(*(one(number, source) for number, source in enumerate(sources))))

    async def ask(self, number: int, source: str) -> Told:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what was opened."""


class OverHttp(ServingPath):
    """Living gateways, in turn."""

    def __init__(self, addresses: Sequence[str], version: str, settings: Settings) -> None:
        super().__init__(f"gateway {', '.join(addresses)}")
        self._addresses, self._version = list(addresses), version
        self._timeout = settings.gateway.timeout_seconds + 5
        token = next((one.strip() for one in settings.gateway.tokens.split(",") if one.strip()), "")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def _all(self, sources: Sequence[str]) -> list[Told]:
        import httpx2

        self._client = httpx2.AsyncClient(timeout=self._timeout, headers=self._headers)
        async with self._client:
            return await super()._all(sources)

    async def ask(self, number: int, source: str) -> Told:
        import httpx2

        deadline, turn = time.monotonic() + PATIENCE_SECONDS, number
        while True:
            address = self._addresses[turn % len(self._addresses)]
            final = False
            try:
                reply = await self._client.post(f"{address}/v1/probe", json={"source_code": source})
                told, final = self._read(reply), reply.status_code in FINAL
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                told = Told(None, type(error).__name__)
            if told.text is not None or final or time.monotonic() > deadline:
                return told
            turn += 1
            await asyncio.sleep(PAUSE_SECONDS)

    def _read(self, reply: httpx2.Response) -> Told:
        """The answer; raises ``IccmError`` where asking again cannot help."""
        if reply.status_code == 200:
            found = reply.json()
            if found["model_version"] != self._version:
                raise IccmError(
                    f"{found['model_version']} serves now, not {self._version}",
                    hint="Nothing was stored; the next measurement is of the version that serves.",
                )
            return Told(found["requirements"])
        if reply.status_code in (401, 404):
            raise IccmError(f"{self.name} refuses to be measured: HTTP {reply.status_code}")
        return Told(None, f"HTTP {reply.status_code}")


class Loaded(ServingPath):
    """Production in this process, loaded and asked as a gateway does."""

    def __init__(self, backend: Backend) -> None:
        super().__init__("loaded for the measurement")
        self._backend = backend

    async def ask(self, number: int, source: str) -> Told:
        while True:
            try:
                return Told((await self._backend.answer(source)).text)
            except Busy:
                await asyncio.sleep(PAUSE_SECONDS)
            except Failed as error:
                return Told(None, str(error))

    def close(self) -> None:
        self._backend.close()


@contextmanager
def serving_path(
    engine: sa.Engine, settings: Settings, version: ModelVersion, load: Load | None = None
) -> Iterator[ServingPath]:
    """How production is asked now. Raises what loading raises when no gateway has it ready."""
    with engine.connect() as conn:
        ready = [one for one in live_replicas(conn) if version.version in one.ready_versions]
    addresses = list(dict.fromkeys(one.address for one in ready if one.address))
    path: ServingPath
    if addresses:
        path = OverHttp(addresses, version.version, settings)
    else:
        wanted = Version(version.version, version.path, version.digest)
        path = Loaded((load or loader_of(settings))(wanted))
    try:
        yield path
    finally:
        path.close()
