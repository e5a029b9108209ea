"""Serve one request: choose the arm, generate, fall back to production, record, respond (G1-G6)."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from iccm_assets.capture.redaction.redact import pseudonymize_user_id
from iccm_assets.capture.sanitizing import Sanitizer
from iccm_assets.capture.session_ownership import SessionOwner
from iccm_assets.gateway.auth import Caller
from iccm_assets.gateway.batching import BackendResponse, GenerationError, QueueFullError
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.gateway.model_pool import ModelPool
from iccm_assets.gateway.model_server_errors import (
    NotLoadedError,
    PromptTooLongError,
    RateLimitedError,
    ServerAccessError,
)
from iccm_assets.gateway.problem_details import RETRY_SECONDS, ProblemDetail
from iccm_assets.gateway.response_stream import ResponseListener, ResponseStream
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
from iccm_assets.scoring.chat_responses import InvalidResponse
from iccm_assets.scoring.endpoint_limits import retry_delay
from iccm_assets.scoring.scoring import LENGTH_STOPPED, SOURCE_TRUNCATED
from iccm_assets.settings import Settings

REQUEST_CACHE_SIZE = 4096
# Redaction takes about 0.3 ms per KiB; longer requests are redacted on a thread, to not block the others.
MAX_INLINE_CHARACTERS = 2000
MAX_RATE_LIMIT_RETRIES = 3
# What is missing of a source or an answer; the row of its request says so.
_CUT = {"length": f"incomplete: {LENGTH_STOPPED}", "truncated": f"truncated: {SOURCE_TRUNCATED}"}
SPOOL_FULL_RETRY_SECONDS = 10.0
# A response with a larger fraction of unprintable characters is invalid.
_MAX_UNPRINTABLE_FRACTION = 0.05

T = TypeVar("T")


@dataclass
class _GenerationResult:
    """A response of one model, or the reason there is none; ``status`` as in `requests.status`.

    ``failure`` is what the model's backend raised, if it named the reason.
    """

    response: BackendResponse | None = None
    status: str = "ok"
    error: str | None = None
    failure: GenerationError | None = None

    def problem(self) -> ProblemDetail:
        """Build the error response to the client."""
        if self.status == "timeout":
            return ProblemDetail(504, "the model did not respond in time", retry_after=RETRY_SECONDS)
        if self.failure is not None:
            return self.failure.problem()
        detail = "too many requests" if self.status == "rejected" else GenerationError.detail
        return ProblemDetail(503, detail, retry_after=RETRY_SECONDS)


@dataclass(frozen=True)
class ServedResponse:
    """What a client gets, and what its model counted; ``is_complete`` is false at the model's token limit."""

    answer: RequirementsResponse
    source_tokens: int | None
    output_tokens: int | None
    is_complete: bool


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
        self._responses: OrderedDict[str, tuple[bytes, asyncio.Task[ServedResponse]]] = OrderedDict()
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

    async def act_as(self, session: str | None, caller: Caller) -> str | None:
        """Return the token under which a caller writes to a session: an admin's is the session's own."""
        if not caller.is_admin or session is None:
            return caller.token_name
        owner = await self.owners.find(session)
        return caller.token_name if owner is None else owner.token_name

    async def respond(
        self, request: RequirementsRequest, token_name: str | None, listener: ResponseListener | None = None
    ) -> ServedResponse:
        """Respond and record. A repeated request id gets the same response while it is cached.

        A ``listener`` gets the text while it is written; all pieces together are the requirements. Once
        something was passed on, a failure of the canary arm is not hidden.

        Raises a 409 `ProblemDetail` for the session, or the request id, of another user or token.
        """
        if request.request_id is None:
            return await self._respond(request, secrets.token_hex(16), token_name, listener)
        document = request.model_dump_json(exclude={"metadata"})
        digest = sha256(f"{token_name} {document}".encode()).digest()
        cached_digest, task = self._responses.get(request.request_id, (digest, None))
        # A request that failed can be retried under its id.
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._respond(request, request.request_id, token_name, listener))
            _cache(self._responses, request.request_id, (digest, task))
        elif cached_digest != digest:
            raise ProblemDetail(409, "this request_id was used for another request")
        return await asyncio.shield(task)

    async def _respond(
        self,
        request: RequirementsRequest,
        request_id: str,
        token_name: str | None,
        listener: ResponseListener | None,
    ) -> ServedResponse:
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
        stream = None if listener is None else ResponseStream(listener, deadline)
        self.in_flight += 1
        try:
            route, arm, version, result = await self._generate_with_fallback(
                route, request.source_code, deadline, stream
            )
        finally:
            self.in_flight -= 1
        milliseconds = round(1000 * (time.perf_counter() - started), 3)
        response = result.response
        if response is not None and response.finish_reason != "stop":
            result.error = "; ".join(filter(None, (result.error, _CUT[response.finish_reason])))
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
            finish_reason=None if response is None else response.finish_reason,
        )
        await self._record(outcome, request, response)
        self.metrics.requests.labels(route.arm, arm if response else "", version, result.status).inc()
        if response is None:
            raise result.problem()
        self.metrics.latency.labels(arm, version).observe(milliseconds / 1000)
        _cache(self._sessions, request_id, session)
        answer = RequirementsResponse(
            request_id=request_id,
            session_id=session,
            # As stored, so that a client can send it back.
            requirements=Sanitizer().clean_text(response.text),
            model_version=version,
            arm=arm,
            latency_ms=milliseconds,
        )
        return ServedResponse(answer, response.source_tokens, response.output_tokens, response.is_complete)

    async def generate_pinned(
        self, version: str, source: str, listener: ResponseListener | None = None
    ) -> BackendResponse:
        """Generate the response of a loaded version, whatever the routing; nothing is recorded (G8)."""
        deadline = time.perf_counter() + self._settings.gateway.timeout_seconds
        stream = None if listener is None else ResponseStream(listener, deadline)
        result = await self._generate(version, source, deadline, stream)
        if result.response is None:
            raise result.problem()
        return replace(result.response, text=Sanitizer().clean_text(result.response.text))

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
            finish_reason=result.response.finish_reason,
            latency_ms=round(1000 * (time.perf_counter() - started), 3),
        )

    async def _generate_with_fallback(
        self, route: Route, source: str, deadline: float, stream: ResponseStream | None
    ) -> tuple[Route, str, str, _GenerationResult]:
        """Return the route to record, arm, version and result.

        When the canary arm fails, production responds instead (G3). Where the arm is not at fault, the
        request is recorded as one of production outside of the rollout.
        """
        limits = self._settings.gateway
        if route.arm == "production":
            result = await self._generate(route.version, source, deadline, stream)
            return route, route.arm, route.version, result
        canary_deadline = deadline
        # Without a fallback, the candidate may use all the time there is.
        if route.fallback_version is not None:
            canary_deadline = min(deadline, time.perf_counter() + limits.canary_timeout_seconds)
        # Production may be reached at once: only where it cannot respond is a rate limit waited for.
        retries = MAX_RATE_LIMIT_RETRIES if route.fallback_version is None else 0
        canary = await self._generate(route.version, source, canary_deadline, stream, retries)
        if canary.response is not None and (
            reason := invalid_response_reason(canary.response, 1024 * limits.max_response_kib)
        ):
            canary = _GenerationResult(None, "error", reason)
        has_begun = stream is not None and stream.has_begun
        if canary.response is not None or route.fallback_version is None or has_begun:
            return route, route.arm, route.version, canary
        production_version = route.fallback_version
        production = await self._generate(production_version, source, deadline, stream)
        if _is_blameless(canary, production):
            route = Route("production", production_version)
        if production.response is None:
            production.error = f"canary: {canary.error}; production: {production.error}"
        elif route.arm == "production":
            production.error = f"canary: {canary.error}"
        else:
            production.status, production.error = "fallback", canary.error
        return route, "production", production_version, production

    async def _generate(
        self,
        version: str,
        source: str,
        deadline: float,
        stream: ResponseStream | None = None,
        retries: int = MAX_RATE_LIMIT_RETRIES,
    ) -> _GenerationResult:
        """Generate, and wait where a model server limits its requests, as long as the deadline allows."""
        limited: _GenerationResult | None = None
        for attempt in count():
            result = await self._attempt(version, source, deadline, stream)
            has_begun = stream is not None and stream.has_begun
            if limited is not None and result.status == "timeout" and not has_begun:
                return limited  # the wait took the time that the model would have had
            if not isinstance(result.failure, RateLimitedError) or has_begun:
                return result
            problem = InvalidResponse(str(result.failure), retry_after_seconds=result.failure.wait_seconds)
            seconds = deadline - time.perf_counter()
            wait, result.error = retry_delay(problem, attempt, seconds, retries, random.random())
            if wait is None:
                return result
            limited = result
            await asyncio.sleep(wait)
        raise AssertionError

    async def _attempt(
        self, version: str, source: str, deadline: float, stream: ResponseStream | None
    ) -> _GenerationResult:
        backend = self.models.ready.get(version)
        if backend is None:
            failure = NotLoadedError(version, has_failed=version in self.models.failed)
            return _GenerationResult(None, failure.status, str(failure), failure)
        seconds = deadline - time.perf_counter()
        try:
            async with asyncio.timeout(seconds) as timeout:
                if stream is None:
                    return _GenerationResult(await backend.generate(source))
                return _GenerationResult(await backend.generate(source, stream.open(version, timeout)))
        except TimeoutError:
            return _GenerationResult(None, "timeout", f"timeout: no response within {seconds:.1f} s")
        except QueueFullError:
            return _GenerationResult(None, "rejected", "the model's queue is full")
        except GenerationError as error:
            status = "timeout" if str(error).startswith("timeout") else error.status
            return _GenerationResult(None, status, str(error), error)
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


def _is_blameless(canary: _GenerationResult, production: _GenerationResult) -> bool:
    """Whether a failure of the canary arm says nothing about its version.

    A source that only production can read is one that the canary version should read, too.
    """
    is_too_long = isinstance(canary.failure, PromptTooLongError) and production.response is None
    return is_too_long or isinstance(canary.failure, RateLimitedError | ServerAccessError)


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
