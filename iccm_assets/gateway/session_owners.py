"""Refuse who may not write to a session, before anything is done for them (C1).

The owners of recent sessions are remembered, and those of others read from the database, many at a time. A
database that does not answer in time delays nobody: the delivery of the spool decides then. So it also does
for two gateways whose first requests of a session come within the same second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from starlette.concurrency import run_in_threadpool

from iccm_assets.capture.session_ownership import SessionOwner, may_write, merge_owner
from iccm_assets.errors import first_line
from iccm_assets.gateway.problem_details import ProblemDetail

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT_SECONDS = 0.25
MAX_REMEMBERED_SESSIONS = 16_384
MAX_SESSIONS_PER_LOOKUP = 500

OwnerLoader = Callable[[Sequence[str]], Mapping[str, SessionOwner]]


class SessionOwners:
    """The owners of sessions, as one gateway process knows them; used on its event loop."""

    def __init__(self, load: OwnerLoader) -> None:
        self._load = load
        self._remembered: OrderedDict[str, SessionOwner] = OrderedDict()
        self._pending: dict[str, asyncio.Future[SessionOwner | None]] = {}
        self._lookup: asyncio.Task[None] | None = None
        self._lookup_started = 0.0

    async def check(self, session: str, writer: SessionOwner, *, opens: bool = True) -> SessionOwner:
        """Return the session's owner after this write; a 409 `ProblemDetail` if the writer may not write.

        A session that nobody is known to own is the writer's from now on, if this write ``opens`` it.
        """
        owner = self._remembered.get(session)
        if owner is None:
            stored = await self._find(session)
            # Another request of the session may have been here meanwhile; nothing is awaited from here on.
            owner = self._remembered.get(session) or stored
        if owner is not None and not may_write(owner, writer):
            self._remember(session, owner)
            raise ProblemDetail(409, "the session belongs to another user or token; use another session_id")
        merged = writer if owner is None else merge_owner(owner, writer)
        if opens:
            self.open(session, merged)
        return merged

    async def find(self, session: str) -> SessionOwner | None:
        """Find the owner of a session, None where it is not known in time."""
        return self._remembered.get(session) or await self._find(session)

    def open(self, session: str, owner: SessionOwner) -> None:
        """Remember the owner of a session."""
        self._remember(session, owner)

    def forget(self, sessions: Sequence[str]) -> None:
        """Forget sessions whose owner turned out to be another one; the next write reads it again."""
        for session in sessions:
            self._remembered.pop(session, None)

    def _remember(self, session: str, owner: SessionOwner) -> None:
        self._remembered.pop(session, None)
        self._remembered[session] = owner
        while len(self._remembered) > MAX_REMEMBERED_SESSIONS:
            self._remembered.popitem(last=False)

    async def _find(self, session: str) -> SessionOwner | None:
        """Find the stored owner; None also where the database does not answer in time."""
        started = self._lookup_started if self._lookup is not None else time.monotonic()
        stalled = time.monotonic() - started > LOOKUP_TIMEOUT_SECONDS
        if stalled or len(self._pending) >= MAX_REMEMBERED_SESSIONS:
            return None
        future = self._pending.get(session)
        if future is None:
            future = self._pending[session] = asyncio.get_running_loop().create_future()
        if self._lookup is None:
            self._lookup_started = time.monotonic()
            self._lookup = asyncio.create_task(self._look_up())
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
                return await asyncio.shield(future)
        except TimeoutError:
            return None

    async def _look_up(self) -> None:
        """Read the pending sessions' owners, one query after the other, until none is pending."""
        try:
            while self._pending:
                self._lookup_started = time.monotonic()
                sessions = list(self._pending)[:MAX_SESSIONS_PER_LOOKUP]
                futures = {session: self._pending.pop(session) for session in sessions}
                owners: Mapping[str, SessionOwner] = {}
                try:
                    owners = await run_in_threadpool(self._load, sessions)
                except Exception as error:
                    log.info("the owners of %d sessions are unknown: %s", len(sessions), first_line(error))
                for session, future in futures.items():
                    future.set_result(owners.get(session))
        finally:
            self._lookup = None
