"""A gateway without HTTP and database, whose arms are swapped under load (L11, G3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from prometheus_client.registry import Collector

from iccm_assets.capture.sanitizing import Sanitizer
from iccm_assets.gateway.backends import make_model_loader, make_server_cleaner
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.gateway.model_pool import ModelPool
from iccm_assets.gateway.routing import CanarySplit, Clock, ModelLocation, Routing, monotonic_seconds
from iccm_assets.gateway.schemas import RequirementsRequest
from iccm_assets.gateway.service import ServedResponse, Service
from iccm_assets.gateway.session_owners import SessionOwners
from iccm_assets.gateway.spool import Spool, read_segment
from iccm_assets.models.generation import generate, load_model
from iccm_assets.registry.model_store import StoredModel
from iccm_assets.settings import Settings

MAX_UNANSWERED = 64


class _NoCollector(Collector):
    def collect(self) -> list[Any]:
        return []


class SwappedArms:
    """A service, and the versions that it can have in its arms, by name."""

    def __init__(self, settings: Settings, stored: Sequence[StoredModel], replicas: int = 1) -> None:
        self.settings = settings
        self.locations = {
            f"v{number}": ModelLocation(f"v{number}", f"models/{model.digest}", model.digest)
            for number, model in enumerate(stored)
        }
        load, clean = make_model_loader(settings), make_server_cleaner(settings)
        self.pools = [ModelPool(load, clean) for _ in range(replicas)]
        self.spools = [Spool(settings.home / "spool", f"r{number}", 1 << 30) for number in range(replicas)]
        self.sync = SimpleNamespace(routing=None, clock=Clock(datetime.now(UTC), monotonic_seconds()))
        self.services = [
            Service(settings, self.sync, pool, spool, Metrics(_NoCollector()), SessionOwners(lambda ids: {}))
            for pool, spool in zip(self.pools, self.spools, strict=True)
        ]
        self.sent = 0

    def require(self, *names: str) -> None:
        """Require these versions on all replicas, each of which knows what the others have loaded."""
        for pool in self.pools:
            loaded = {name for other in self.pools for name in other.ready}
            required = [self.locations[name] for name in names]
            pool.set_required(required, [self.locations[name] for name in sorted(loaded)])

    async def start(self, production: str) -> None:
        self.require(production)
        await self._wait_for(production)
        self.sync.routing = Routing(production, versions=self.locations)

    async def swap(self, rollout_id: int, old: str, new: str, requests: int = 2) -> None:
        """Load a version, give it half of some requests, then all of them, and unload the other one."""
        self.require(old, new)
        await self._wait_for(new)
        split = CanarySplit(
            rollout_id=rollout_id, state="ramping", stage=2, candidate=new, former=old, weight=0.5,
            lease_until=self.sync.clock.now() + timedelta(hours=1),
        )  # fmt: skip
        both = frozenset({old, new})
        self.sync.routing = Routing(old, split, versions=self.locations, ready_everywhere=both)
        until = self.sent + requests
        while self.sent < until:
            await asyncio.sleep(0.002)
        self.sync.routing = Routing(new, versions=self.locations)
        self.require(new)

    async def _wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 120
        while not all(name in pool.ready for pool in self.pools):
            assert time.monotonic() < deadline, [pool.failed for pool in self.pools]
            await asyncio.sleep(0.005)

    async def ask(self, source: str) -> ServedResponse:
        self.sent += 1
        service = self.services[self.sent % len(self.services)]
        return await service.respond(RequirementsRequest(source_code=source), None)

    async def measure_capacity(self, sources: Sequence[str], requests: int, concurrency: int = 16) -> float:
        """Return the requests per second that are answered while all slots are taken."""
        remaining = iter(range(requests))

        async def keep_asking() -> None:
            for number in remaining:
                await self.ask(sources[number % len(sources)])

        started = time.perf_counter()
        await asyncio.gather(*(keep_asking() for _ in range(concurrency)))
        return requests / (time.perf_counter() - started)

    @asynccontextmanager
    async def load(self, sources: Sequence[str], per_second: float) -> AsyncIterator[list[Any]]:
        """Send requests at a rate that does not depend on the answers; yield those answers.

        Only a machine that has become slower than when its capacity was measured gets them later.
        """
        tasks: list[asyncio.Task[ServedResponse]] = []
        outcomes: list[Any] = []

        async def send() -> None:
            started = time.perf_counter()
            while True:
                tasks.append(asyncio.create_task(self.ask(sources[len(tasks) % len(sources)])))
                due = started + len(tasks) / per_second
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                while sum(service.in_flight for service in self.services) >= MAX_UNANSWERED:
                    await asyncio.sleep(0.01)

        sender = asyncio.create_task(send())
        try:
            yield outcomes
        finally:
            sender.cancel()
            outcomes += await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        for pool in self.pools:
            pool.close()

    def read_records(self) -> list[dict[str, Any]]:
        """Return what was recorded, as it would be stored in the database."""
        return [
            record
            for spool in self.spools
            for segment in spool.closed_segments()
            for record in read_segment(segment)
        ]

    def reproduce(self, sources: Sequence[str]) -> dict[tuple[str, str], str]:
        """Return what each version answers to each source on its own, by digest and source."""
        texts = {}
        for location in self.locations.values():
            loaded = load_model(self.settings.home / location.path)
            assert loaded.digest == location.digest
            limit = self.settings.evaluation.max_new_tokens
            for source in sources:
                [answer] = generate(loaded, [source], max_new_tokens=limit, batch_size=1)
                texts[location.digest, source] = Sanitizer().clean_text(answer.text)
        return texts
