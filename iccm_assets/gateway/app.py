"""The HTTP API (G1): thin handlers around the service, and a middleware that guards every request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from iccm_assets.errors import first_line
from iccm_assets.gateway import auth, completion, openapi, schemas
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.request_body import read_json_body
from iccm_assets.gateway.routing import canary_weight
from iccm_assets.gateway.service import RETRY_SECONDS, Service
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

# Concurrent database calls; more of them would only queue in PostgreSQL.
MAX_DATABASE_CALLS = 8

# The key under which the middleware leaves the token's name.
_TOKEN_NAME = "iccm.token_name"

T = TypeVar("T")


class GatewayRoutes:
    """The handlers and what they share."""

    def __init__(
        self,
        service: Service,
        engine: Callable[[], Engine],
        settings: Settings,
        replica: str,
        database_state: Callable[[], str],
    ) -> None:
        self._service, self._engine, self._settings, self._replica = service, engine, settings, replica
        self._database_state = database_state
        self._max_bytes = int(settings.gateway.max_body_mib * (1 << 20))
        self._database_calls = 0

    def routes(self) -> list[Route]:
        """List the routes of the API."""
        return [
            Route("/v1/requirements", self._requirements, methods=["POST"]),
            Route("/v1/conversations", self._conversations, methods=["POST"]),
            Route("/v1/feedback", self._feedback, methods=["POST"]),
            Route("/v1/probe", self._probe, methods=["POST"]),
            Route("/v1/routing", self._routing, methods=["GET"]),
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/docs", self._docs, methods=["GET"]),
        ]

    async def _requirements(self, request: Request) -> Response:
        body = await read_json_body(request, schemas.RequirementsRequest, self._max_bytes)
        return _json(await self._service.respond(body, _token_name(request)))

    async def _conversations(self, request: Request) -> Response:
        body = await read_json_body(request, schemas.CompleteSessionRequest, self._max_bytes)
        writer = self._service.writer(body.user_id, _token_name(request))
        # The session may have been opened under another token by a request that is not stored yet.
        opener = (await self._service.owners.check(body.session_id, writer)).token_name
        return _json(
            await self._in_database(
                lambda: completion.complete_session(self._engine(), body, opener, self._settings)
            )
        )

    async def _feedback(self, request: Request) -> Response:
        body = await read_json_body(request, schemas.FeedbackRequest, self._max_bytes)
        session = self._service.find_session(body.request_id, body.session_id) or await self._in_database(
            lambda: completion.find_session(self._engine(), body.request_id, body.session_id)
        )
        if session is None or body.session_id not in (None, session):
            raise ProblemDetail(
                404, "no such request or session (it is stored within seconds of its response)"
            )
        return _json(await self._service.record_feedback(session, body, _token_name(request)))

    async def _probe(self, request: Request) -> Response:
        body = await read_json_body(request, schemas.ProbeRequest, self._max_bytes)
        return _json(await self._service.probe(body.source_code))

    async def _in_database(self, call: Callable[[], T]) -> T:
        """Run a call that needs the database; raise a 503 `ProblemDetail` if it is unavailable or busy."""
        if not self._service.sync.connected:
            raise ProblemDetail(503, "the database cannot be reached", retry_after=RETRY_SECONDS)
        if self._database_calls >= MAX_DATABASE_CALLS:
            raise ProblemDetail(503, "too many database calls in progress", retry_after=RETRY_SECONDS)
        self._database_calls += 1
        try:
            return await run_in_threadpool(call)
        except DBAPIError as error:
            log.warning("a database call failed: %s", first_line(error.orig or error))
            raise ProblemDetail(503, "the database call failed", retry_after=RETRY_SECONDS) from None
        finally:
            self._database_calls -= 1

    async def _routing(self, request: Request) -> Response:
        routing, clock = self._service.routing_snapshot()
        models, now, split = self._service.models, clock.now(), routing.split
        weight, reason = canary_weight(routing, now, models.ready)
        weights, rollout = {routing.production: 1.0}, None
        if split is not None:
            if weight > 0 and split.candidate != routing.production:
                weights = {routing.production: 1 - weight, split.candidate: weight}
            lease = split.lease_until
            rollout = schemas.LeaseStatus(
                **dict(split),
                effective_weight=weight,
                reason=reason,
                lease_seconds_left=None if lease is None else clock.seconds_until(lease),
            )
        return _json(
            schemas.RoutingResponse(
                replica=self._replica,
                now=now.isoformat(),
                production=routing.production,
                weights=weights,
                rollout=rollout,
                ready_versions=sorted(models.ready),
                failed_versions=dict(models.failed),
                replicas=routing.replicas,
                database=self._service.sync.connected,
            )
        )

    async def _healthz(self, request: Request) -> Response:
        return _json(schemas.HealthStatus(status="ok"))

    async def _readyz(self, request: Request) -> Response:
        if not self._service.ready():
            raise ProblemDetail(503, "the production model is not loaded yet", retry_after=RETRY_SECONDS)
        return _json(schemas.ReadyStatus(status="ok", database=self._database_state()))

    async def _metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.openapi_document())

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(openapi.docs_page())


class GuardMiddleware:
    """ASGI middleware: require a token, and limit the number of concurrent requests."""

    def __init__(self, app: ASGIApp, tokens: Sequence[bytes], max_in_flight: int) -> None:
        self._app, self._tokens, self._max_in_flight = app, tokens, max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(b"authorization")
            try:
                scope[_TOKEN_NAME] = auth.require_token(
                    scope["path"], header and header.decode("latin-1"), self._tokens
                )
                if self._in_flight >= self._max_in_flight and scope["path"].startswith("/v1/"):
                    raise ProblemDetail(503, "too many requests", retry_after=RETRY_SECONDS)
            except ProblemDetail as problem:
                app = problem.response()
        self._in_flight += 1
        try:
            await app(scope, receive, send)
        except Exception:
            # Starlette has sent a response. With the error, uvicorn would close the client's connection.
            log.exception("a request failed")
        finally:
            self._in_flight -= 1


def create_app(gateway: GatewayRoutes, settings: Settings) -> ASGIApp:
    """Create the application."""
    handlers = {404: _to_response, 405: _to_response, ProblemDetail: _to_response, Exception: _to_response}
    app = Starlette(routes=gateway.routes(), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return GuardMiddleware(app, auth.token_digests(settings), settings.gateway.max_in_flight)


async def _to_response(request: Request, error: Exception) -> Response:
    """Turn an error into a problem document; Starlette raises an unexpected one again afterwards."""
    if isinstance(error, ProblemDetail):
        return error.response()
    if not isinstance(error, HTTPException):
        return ProblemDetail(500, "the gateway failed on this request; see its log").response()
    if error.status_code == 404:
        return ProblemDetail(404, "not found; see /docs").response()
    allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
    return ProblemDetail(405, f"method not allowed; use {allow}", allow=allow).response()


def _token_name(request: Request) -> str | None:
    name: str | None = request.scope[_TOKEN_NAME]
    return name


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
