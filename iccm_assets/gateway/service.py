"""Answering one request: choose the arm, ask its model, let production stand in, record, answer (G1-G6)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256

from starlette.concurrency import run_in_threadpool

from iccm_assets.capture.cleaning import Cleaner
from iccm_assets.gateway.batching import Answer, Busy, Failed
from iccm_assets.gateway.control import Control
from iccm_assets.gateway.fleet import Fleet
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.gateway.problems import Problem
from iccm_assets.gateway.records import Outcome, answer_record, feedback_record, outcome_record
from iccm_assets.gateway.routing import Clock, Route, Routing, choose
from iccm_assets.gateway.schemas import Answered, Ask, Probed
from iccm_assets.gateway.spool import Spool, SpoolFull
from iccm_assets.settings import Settings

REMEMBERED = 4096
# Redacting costs about two milliseconds a KiB: longer requests do not hold the others up meanwhile.
INLINE_CHARACTERS = 2000
RETRY_SECONDS = 1.0


@dataclass
class _Told:
    """What became of one model's turn: an answer, or why there is none."""

    answer: Answer | None = None
    status: str = "ok"
    error: str | None = None


class Service:
    """The gateway without HTTP. All of it runs on one event loop."""

    def __init__(
        self, settings: Settings, control: Control, fleet: Fleet, spool: Spool, metrics: Metrics
    ) -> None:
        self.control, self.fleet, self.metrics = control, fleet, metrics
        self.in_flight = 0
        self._settings, self._spool = settings, spool
        self._known: OrderedDict[str, tuple[bytes, asyncio.Task[Answered]]] = OrderedDict()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._last: str | None = None

    def ready(self) -> bool:
        """Whether production, or what was production before, can answer (`/readyz`)."""
        routing = self.control.routing
        return self.fleet.settled and routing is not None and self._production(routing) in self.fleet.ready

    def moment(self) -> tuple[Routing, Clock]:
        """The routing and the clock; a 503 `Problem` before the database was reached for the first time."""
        routing, clock = self.control.routing, self.control.clock
        if routing is None or clock is None:
            raise Problem(503, "the gateway is starting", retry_after=RETRY_SECONDS)
        return routing, clock

    async def answer(self, ask: Ask) -> Answered:
        """Answer and record. The same request id again gets the same answer, as long as it is known."""
        if ask.request_id is None:
            return await self._answer(ask, secrets.token_hex(16))
        asked = sha256(ask.model_dump_json(exclude={"metadata", "user_id"}).encode()).digest()
        known = self._known.get(ask.request_id)
        if known is not None and not _useless(known[1]):
            if known[0] != asked:
                raise Problem(409, "this request_id was used for another request")
            return await asyncio.shield(known[1])
        task = asyncio.create_task(self._answer(ask, ask.request_id))
        self._known[ask.request_id] = (asked, task)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return await asyncio.shield(task)

    async def _answer(self, ask: Ask, request_id: str) -> Answered:
        started = time.perf_counter()
        session = ask.session_id or request_id
        routing, clock = self.moment()
        created_at = clock.now()
        production = self._production(routing)
        if production in self.fleet.ready:
            self._last = production
        route = choose(routing, session, created_at, self.fleet.ready, self._last)
        deadline = started + self._settings.gateway.timeout_seconds
        self.in_flight += 1
        try:
            arm, version, told = await self._ask(route, ask.source_code, deadline)
        finally:
            self.in_flight -= 1
        latency = 1000 * (time.perf_counter() - started)
        answer = told.answer
        outcome = Outcome(
            request_id=request_id,
            session_id=session,
            user_id=ask.user_id,
            rollout_id=route.rollout_id,
            assigned_arm=route.arm,
            arm=None if answer is None else arm,
            model_version=version,
            status=told.status,
            error=told.error,
            latency_ms=round(latency, 3),
            output_tokens=None if answer is None else answer.output_tokens,
            created_at=created_at,
        )
        await self._record(outcome, ask, answer)
        self.metrics.requests.labels(route.arm, arm if answer else "", version, told.status).inc()
        if answer is None:
            raise _refusal(told)
        self.metrics.latency.labels(arm, version).observe(latency / 1000)
        self._remember(request_id, session)
        return Answered(
            request_id=request_id,
            session_id=session,
            requirements=Cleaner().text(answer.text),  # as it is stored, so that it may be sent back
            model_version=version,
            arm=arm,
            latency_ms=round(latency, 3),
        )

    async def probe(self, source: str) -> Probed:
        """Production's own answer, for measuring it (T8): no session, no arm, and nothing recorded.

        Users come first: while half the model's queue is taken, and where another version stands in for
        production, a 503 `Problem` says so.
        """
        routing, _ = self.moment()
        backend = self.fleet.ready.get(routing.production)
        if backend is None or 2 * backend.waiting >= self._settings.gateway.queue_size:
            self.metrics.probes.labels("rejected").inc()
            raise Problem(503, "production has no time to be measured now", retry_after=RETRY_SECONDS)
        started = time.perf_counter()
        told = await self._turn(routing.production, source, started + self._settings.gateway.timeout_seconds)
        self.metrics.probes.labels(told.status).inc()
        if told.answer is None:
            raise _refusal(told)
        return Probed(
            requirements=Cleaner().text(told.answer.text),
            model_version=routing.production,
            output_tokens=told.answer.output_tokens,
            latency_ms=round(1000 * (time.perf_counter() - started), 3),
        )

    async def _ask(self, route: Route, source: str, deadline: float) -> tuple[str, str, _Told]:
        """Arm, version and what was told; the canary arm's failure is production's turn (G3)."""
        limits = self._settings.gateway
        if route.arm == "production":
            return "production", route.version, await self._turn(route.version, source, deadline)
        first = min(deadline, time.perf_counter() + limits.canary_timeout_seconds)
        if route.instead is None:
            first = deadline  # nobody else could answer: it has all the time there is
        told = await self._turn(route.version, source, first)
        if told.answer is not None and (flaw := garbage(told.answer, 1024 * limits.max_answer_kib)):
            told = _Told(None, "error", flaw)
        if told.answer is not None or route.instead is None:
            return "canary", route.version, told
        instead = await self._turn(route.instead, source, deadline)
        if instead.answer is None:
            instead.error = f"canary: {told.error}; production: {instead.error}"
            return "production", route.instead, instead
        return "production", route.instead, _Told(instead.answer, "fallback", told.error)

    async def _turn(self, version: str, source: str, deadline: float) -> _Told:
        backend = self.fleet.ready.get(version)
        if backend is None:
            return _Told(None, "rejected", f"{version} is not loaded")
        left = deadline - time.perf_counter()
        try:
            async with asyncio.timeout(left):
                return _Told(await backend.answer(source))
        except TimeoutError:
            return _Told(None, "timeout", f"timeout: no answer within {left:.1f} s")
        except Busy:
            return _Told(None, "rejected", "the queue of the model is full")
        except Failed as error:
            return _Told(None, "timeout" if str(error).startswith("timeout") else "error", str(error))
        except Exception as error:
            return _Told(None, "error", type(error).__name__)

    async def _record(self, outcome: Outcome, ask: Ask, answer: Answer | None) -> None:
        """Into the spool; what cannot be recorded is not answered (G5)."""
        try:
            if answer is None:
                self._spool.append(outcome_record(outcome, self._settings))
                return

            def build() -> None:
                self._spool.append(
                    answer_record(
                        outcome,
                        self._settings,
                        source=ask.source_code,
                        text=answer.text,
                        tests=ask.tests,
                        metadata=ask.metadata,
                    )
                )

            size = len(ask.source_code) + len(answer.text)
            if size < INLINE_CHARACTERS and ask.tests is None and not ask.metadata:
                build()
            else:
                await run_in_threadpool(build)
        except SpoolFull as error:
            if answer is not None:
                raise Problem(503, error.message, retry_after=10) from None

    def _remember(self, request_id: str, session: str) -> None:
        self._sessions[request_id] = session
        while len(self._sessions) > REMEMBERED:
            self._sessions.popitem(last=False)

    def session_of(self, request_id: str | None, session: str | None) -> str | None:
        """The session of a request this process has answered lately, or None."""
        if request_id is not None:
            return self._sessions.get(request_id)
        return session if session in self._sessions.values() else None

    def rate(self, session: str, request_id: str | None, rating: int, comment: str | None) -> None:
        """Record a rating; a 503 `Problem` when it cannot be."""
        _, clock = self.moment()
        try:
            self._spool.append(
                feedback_record(session, request_id, rating, comment, clock.now(), self._settings)
            )
        except SpoolFull as error:
            raise Problem(503, error.message, retry_after=10) from None
        self.metrics.feedback.labels(str(rating)).inc()

    def _production(self, routing: Routing) -> str:
        """Production, or its predecessor while production is not loaded."""
        if routing.production in self.fleet.ready or self._last not in self.fleet.ready:
            return routing.production
        return self._last or routing.production


def garbage(answer: Answer, longest: int) -> str | None:
    """Why an answer of the canary arm is none, or None when it is one. Pure."""
    text = answer.text
    if not isinstance(text, str):
        return f"garbage: a {type(text).__name__}"
    if not text.strip():
        return "garbage: an empty answer"
    if len(text) > longest:
        return f"garbage: {len(text)} characters"
    odd = sum(not (one.isprintable() or one in "\n\r\t") for one in text)
    if odd * 20 > len(text):
        return f"garbage: {odd} of {len(text)} characters cannot be printed"
    return None


def _useless(task: asyncio.Task[Answered]) -> bool:
    """A request that failed may be sent again under its id."""
    return task.done() and (task.cancelled() or task.exception() is not None)


def _refusal(told: _Told) -> Problem:
    if told.status == "timeout":
        return Problem(504, "the model did not answer in time", retry_after=RETRY_SECONDS)
    if told.status == "rejected":
        return Problem(503, "more requests than can be answered", retry_after=RETRY_SECONDS)
    return Problem(503, "the model failed on this request", retry_after=RETRY_SECONDS)
