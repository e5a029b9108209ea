"""Serve one request: choose the arm, generate, fall back to production, record, respond (G1-G6)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from iccm_assets.capture.redaction.redact import pseudonymize_user_id
from iccm_assets.capture.sanitizing import Sanitizer
from iccm_assets.capture.session_ownership import SessionOwner
from iccm_assets.gateway.batching import BackendResponse, GenerationError, QueueFullError
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.gateway.model_pool import ModelPool
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.routing import Clock, Route, Routing, choose_route
from iccm_assets.gateway.routing_sync import RoutingSync
from iccm_assets.gateway.schemas import (
    FeedbackRequest,
    FeedbackResponse,
    ProbeResponse,
    RequirementsRequest,
    RequirementsResponse,
)
from iccm_assets.gateway.session_owners import SessionOwners
from iccm_assets.gateway.spool import Spool, SpoolFullError
from iccm_assets.gateway.spool_records import (
    RequestOutcome,
    feedback_record,
    outcome_record,
    response_record,
)
from iccm_assets.settings import Settings

REQUEST_CACHE_SIZE = 4096
# Redaction takes about 2 ms per KiB; longer requests are redacted on a thread, to not block the others.
MAX_INLINE_CHARACTERS = 2000
RETRY_SECONDS = 1.0
SPOOL_FULL_RETRY_SECONDS = 10.0
# A response with a larger fraction of unprintable characters is invalid.
_MAX_UNPRINTABLE_FRACTION = 0.05

T = TypeVar("T")


@dataclass
class _GenerationResult:
    """A response of one model, or the reason there is none; ``status`` as in `requests.status`."""

    response: BackendResponse | None = None
    status: str = "ok"
    error: str | None = None

    def problem(self) -> ProblemDetail:
        """Build the error response to the client."""
        status, detail = {
            "timeout": (504, "the model did not respond in time"),
            "rejected": (503, "too many requests"),
        }.get(self.status, (503, "the model failed on this request"))
        return ProblemDetail(status, detail, retry_after=RETRY_SECONDS)


class Service:
    """The gateway without HTTP; everything runs on one event loop."""

    def __init__(
        self,
        settings: Settings,
        sync: RoutingSync,
        models: ModelPool,
        spool: Spool,
        metrics: Metrics,
        owners: SessionOwners,
    ) -> None:
        self.sync, self.models, self.metrics, self.owners = sync, models, metrics, owners
        self.in_flight = 0
        self._settings, self._spool = settings, spool
        self._responses: OrderedDict[str, tuple[bytes, asyncio.Task[RequirementsResponse]]] = OrderedDict()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._last_production: str | None = None

    def ready(self) -> bool:
        """Check whether production, or the version that served before it, is loaded (`/readyz`)."""
        routing = self.sync.routing
        return (
            self.models.startup_complete
            and routing is not None
            and self._production(routing) in self.models.ready
        )

    def routing_snapshot(self) -> tuple[Routing, Clock]:
        """Return the routing and the clock; raise a 503 `ProblemDetail` before they were read once."""
        routing, clock = self.sync.routing, self.sync.clock
        if routing is None or clock is None:
            raise ProblemDetail(503, "the gateway is starting", retry_after=RETRY_SECONDS)
        return routing, clock

    def writer(self, user_id: str | None, token_name: str | None) -> SessionOwner:
        """Return who writes, with the user id as it is stored."""
        return SessionOwner(pseudonymize_user_id(user_id, self._settings), token_name)

    async def respond(self, request: RequirementsRequest, token_name: str | None) -> RequirementsResponse:
        """Respond and record. A repeated request id gets the same response while it is cached.

        Raises a 409 `ProblemDetail` for the session, or the request id, of another user or token.
        """
        if request.request_id is None:
            return await self._respond(request, secrets.token_hex(16), token_name)
        document = request.model_dump_json(exclude={"metadata"})
        digest = sha256(f"{token_name} {document}".encode()).digest()
        cached_digest, task = self._responses.get(request.request_id, (digest, None))
        # A request that failed can be retried under its id.
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._respond(request, request.request_id, token_name))
            _cache(self._responses, request.request_id, (digest, task))
        elif cached_digest != digest:
            raise ProblemDetail(409, "this request_id was used for another request")
        return await asyncio.shield(task)

    async def _respond(
        self, request: RequirementsRequest, request_id: str, token_name: str | None
    ) -> RequirementsResponse:
        started = time.perf_counter()
        session = request.session_id or request_id
        await self._check_owner(request, session, token_name)
        routing, clock = self.routing_snapshot()
        created_at = clock.now()
        production = self._production(routing)
        if production in self.models.ready:
            self._last_production = production
        route = choose_route(routing, session, created_at, self.models.ready, self._last_production)
        deadline = started + self._settings.gateway.timeout_seconds
        self.in_flight += 1
        try:
            arm, version, result = await self._generate_with_fallback(route, request.source_code, deadline)
        finally:
            self.in_flight -= 1
        milliseconds = round(1000 * (time.perf_counter() - started), 3)
        response = result.response
        outcome = RequestOutcome(
            request_id=request_id,
            session_id=session,
            user_id=request.user_id,
            rollout_id=route.rollout_id,
            assigned_arm=route.arm,
            arm=None if response is None else arm,
            model_version=version,
            status=result.status,
            error=result.error,
            latency_ms=milliseconds,
            output_tokens=None if response is None else response.output_tokens,
            created_at=created_at,
            token_name=token_name,
        )
        await self._record(outcome, request, response)
        self.metrics.requests.labels(route.arm, arm if response else "", version, result.status).inc()
        if response is None:
            raise result.problem()
        self.metrics.latency.labels(arm, version).observe(milliseconds / 1000)
        _cache(self._sessions, request_id, session)
        return RequirementsResponse(
            request_id=request_id,
            session_id=session,
            # As stored, so that a client can send it back.
            requirements=Sanitizer().clean_text(response.text),
            model_version=version,
            arm=arm,
            latency_ms=milliseconds,
        )

    async def _check_owner(self, request: RequirementsRequest, session: str, token_name: str | None) -> None:
        writer = self.writer(request.user_id, token_name)
        if request.session_id is None and request.request_id is None:
            self.owners.open(session, writer)  # under a new id
        else:
            await self.owners.check(session, writer)

    async def probe(self, source: str) -> ProbeResponse:
        """Generate production's own response, to measure it: no session, no arm, nothing recorded (T8).

        User traffic has priority: raises a 503 `ProblemDetail` while half of the model's queue is in use, or
        while another version serves in place of production.
        """
        routing, _ = self.routing_snapshot()
        limits, backend = self._settings.gateway, self.models.ready.get(routing.production)
        if backend is None or 2 * backend.pending >= limits.queue_size:
            self.metrics.probes.labels("rejected").inc()
            raise ProblemDetail(
                503, "probe rejected: production is serving user traffic", retry_after=RETRY_SECONDS
            )
        started = time.perf_counter()
        result = await self._generate(routing.production, source, started + limits.timeout_seconds)
        self.metrics.probes.labels(result.status).inc()
        if result.response is None:
            raise result.problem()
        return ProbeResponse(
            requirements=Sanitizer().clean_text(result.response.text),
            model_version=routing.production,
            output_tokens=result.response.output_tokens,
            latency_ms=round(1000 * (time.perf_counter() - started), 3),
        )

    async def _generate_with_fallback(
        self, route: Route, source: str, deadline: float
    ) -> tuple[str, str, _GenerationResult]:
        """Return arm, version and result; when the canary arm fails, production responds instead (G3)."""
        limits = self._settings.gateway
        if route.arm == "production":
            return route.arm, route.version, await self._generate(route.version, source, deadline)
        canary_deadline = deadline
        # Without a fallback, the candidate may use all the time there is.
        if route.fallback_version is not None:
            canary_deadline = min(deadline, time.perf_counter() + limits.canary_timeout_seconds)
        canary = await self._generate(route.version, source, canary_deadline)
        if canary.response is not None and (
            reason := invalid_response_reason(canary.response, 1024 * limits.max_response_kib)
        ):
            canary = _GenerationResult(None, "error", reason)
        if canary.response is not None or route.fallback_version is None:
            return route.arm, route.version, canary
        production = await self._generate(route.fallback_version, source, deadline)
        if production.response is None:
            production.error = f"canary: {canary.error}; production: {production.error}"
        else:
            production.status, production.error = "fallback", canary.error
        return "production", route.fallback_version, production

    async def _generate(self, version: str, source: str, deadline: float) -> _GenerationResult:
        backend = self.models.ready.get(version)
        if backend is None:
            return _GenerationResult(None, "rejected", f"{version} is not loaded")
        seconds = deadline - time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                return _GenerationResult(await backend.generate(source))
        except TimeoutError:
            return _GenerationResult(None, "timeout", f"timeout: no response within {seconds:.1f} s")
        except QueueFullError:
            return _GenerationResult(None, "rejected", "the model's queue is full")
        except GenerationError as error:
            status = "timeout" if str(error).startswith("timeout") else "error"
            return _GenerationResult(None, status, str(error))
        except Exception as error:
            return _GenerationResult(None, "error", type(error).__name__)

    async def _record(
        self, outcome: RequestOutcome, request: RequirementsRequest, response: BackendResponse | None
    ) -> None:
        """Append to the spool; a response that cannot be recorded is not sent (G5)."""
        if response is None:
            with suppress(ProblemDetail):
                self._append(outcome_record(outcome, self._settings))
            return
        size = len(request.source_code) + len(response.text)
        if size < MAX_INLINE_CHARACTERS and not (request.tests or request.metadata):
            self._append_response(outcome, request, response.text)
        else:
            await run_in_threadpool(self._append_response, outcome, request, response.text)

    def _append_response(self, outcome: RequestOutcome, request: RequirementsRequest, text: str) -> None:
        record = response_record(
            outcome,
            self._settings,
            source=request.source_code,
            text=text,
            tests=request.tests,
            metadata=request.metadata,
        )
        self._append(record)

    def _append(self, record: dict[str, Any]) -> None:
        """Append to the spool; raise a 503 `ProblemDetail` if it is full."""
        try:
            self._spool.append(record)
        except SpoolFullError as error:
            raise ProblemDetail(503, error.message, retry_after=SPOOL_FULL_RETRY_SECONDS) from None

    def find_session(self, request_id: str | None, session: str | None) -> str | None:
        """Find the session of a request this process served recently; None if unknown."""
        if request_id is not None:
            return self._sessions.get(request_id)
        return session if session in self._sessions.values() else None

    async def record_feedback(
        self, session: str, feedback: FeedbackRequest, token_name: str | None
    ) -> FeedbackResponse:
        """Record a rating; a 409 `ProblemDetail` for another's session, 503 if the spool is full.

        A client without a user id and a token may rate the response of a user, but does not learn the
        session's id.
        """
        writer = self.writer(feedback.user_id, token_name)
        owner = await self.owners.check(session, writer, opens=False)
        _, clock = self.routing_snapshot()
        request_id, rating, comment = feedback.request_id, feedback.rating, feedback.comment
        record = feedback_record(session, request_id, rating, comment, clock.now(), writer, self._settings)
        self._append(record)
        self.metrics.feedback.labels(str(rating)).inc()
        is_known = feedback.session_id is not None or owner.user_id is None or writer != SessionOwner()
        return FeedbackResponse(session_id=session if is_known else None, request_id=request_id)

    def _production(self, routing: Routing) -> str:
        """Return the production version, or its predecessor while production is not loaded."""
        if routing.production in self.models.ready or self._last_production not in self.models.ready:
            return routing.production
        return self._last_production or routing.production


def invalid_response_reason(response: BackendResponse, max_characters: int) -> str | None:
    """Return the reason a canary response is invalid, or None; ``max_characters`` is in characters."""
    text = response.text
    if not text.strip():
        return "invalid response: empty"
    if len(text) > max_characters:
        return f"invalid response: {len(text)} characters"
    unprintable = sum(not (character.isprintable() or character in "\n\r\t") for character in text)
    if unprintable > _MAX_UNPRINTABLE_FRACTION * len(text):
        return f"invalid response: {unprintable} of {len(text)} characters are not printable"
    return None


def _cache(entries: OrderedDict[str, T], key: str, value: T) -> None:
    entries[key] = value
    while len(entries) > REQUEST_CACHE_SIZE:
        entries.popitem(last=False)
