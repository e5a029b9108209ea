"""The HTTP API (G1): thin handlers around the service, behind a guard of every request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from iccm_assets.errors import first_line
from iccm_assets.gateway import chat_completions, completion, schemas
from iccm_assets.gateway.auth import MCP_PATH, Authenticator
from iccm_assets.gateway.guard import BodyRoutes, GuardMiddleware, get_caller
from iccm_assets.gateway.openai_errors import make_response
from iccm_assets.gateway.openapi import (
    docs_page,
    openapi_document,
    operation_id,
    problem_responses,
    request_example,
)
from iccm_assets.gateway.problem_details import RETRY_SECONDS, ProblemDetail
from iccm_assets.gateway.routing import canary_weight
from iccm_assets.gateway.service import Service
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

# Concurrent database calls; more of them would only queue in PostgreSQL.
MAX_DATABASE_CALLS = 8

T = TypeVar("T")

_BODY_ERRORS = (400, 401, 403, 408, 413, 415, 422, 503)
_SOURCE = "def add(a, b):\n    return a + b\n"

router = APIRouter(generate_unique_id_function=operation_id)


class Gateway:
    """What the handlers share."""

    def __init__(
        self,
        service: Service,
        engine: Callable[[], Engine],
        settings: Settings,
        replica: str,
        database_state: Callable[[], str],
    ) -> None:
        self.service, self.engine, self.settings = service, engine, settings
        self.replica, self.database_state = replica, database_state
        self._database_calls = 0

    async def in_database(self, call: Callable[[], T]) -> T:
        """Run a call that needs the database; raise a 503 `ProblemDetail` if it is unavailable or busy."""
        if not self.service.sync.connected:
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


@router.post(
    "/v1/requirements",
    summary="Write the requirements of a piece of source code.",
    response_model=schemas.RequirementsResponse,
    responses=problem_responses(*_BODY_ERRORS, 409, 504),
    openapi_extra=request_example({"source_code": _SOURCE, "session_id": "session-1"}),
)
async def write_requirements(body: schemas.RequirementsRequest, request: Request) -> Response:
    """Write requirements."""
    service = _gateway(request).service
    token = await service.act_as(body.session_id, get_caller(request))
    served = await service.respond(body, token)
    return _json(served.answer)


@router.post(
    "/v1/conversations",
    summary="Complete a session: messages, accepted requirements, tests. Posting it again replaces it.",
    response_model=schemas.CompleteSessionResponse,
    responses=problem_responses(*_BODY_ERRORS, 409, 410),
    openapi_extra=request_example(
        {"session_id": "session-1", "messages": [{"role": "user", "content": "Thanks."}], "rating": 1}
    ),
)
async def complete_session(body: schemas.CompleteSessionRequest, request: Request) -> Response:
    """Complete a session."""
    gateway = _gateway(request)
    token = await gateway.service.act_as(body.session_id, get_caller(request))
    writer = gateway.service.writer(body.user_id, token)
    # The session may have been opened under another token by a request that is not stored yet.
    opener = (await gateway.service.owners.check(body.session_id, writer)).token_name
    return _json(
        await gateway.in_database(
            lambda: completion.complete_session(gateway.engine(), body, opener, gateway.settings)
        )
    )


@router.post(
    "/v1/feedback",
    summary="Rate a session, or one of its responses. The latest rating counts.",
    response_model=schemas.FeedbackResponse,
    responses=problem_responses(*_BODY_ERRORS, 404, 409),
    openapi_extra=request_example({"session_id": "session-1", "rating": 1}),
)
async def rate(body: schemas.FeedbackRequest, request: Request) -> Response:
    """Rate a session."""
    gateway = _gateway(request)
    session = gateway.service.find_session(body.request_id, body.session_id) or await gateway.in_database(
        lambda: completion.find_session(gateway.engine(), body.request_id, body.session_id)
    )
    if session is None or body.session_id not in (None, session):
        raise ProblemDetail(404, "no such request or session (it is stored within seconds of its response)")
    token = await gateway.service.act_as(session, get_caller(request))
    return _json(await gateway.service.record_feedback(session, body, token))


@router.post(
    "/v1/probe",
    summary="Get production's response, to measure it. It is not recorded and counts as no user's request.",
    response_model=schemas.ProbeResponse,
    responses=problem_responses(*_BODY_ERRORS, 504),
    openapi_extra=request_example({"source_code": _SOURCE}),
)
async def probe(body: schemas.ProbeRequest, request: Request) -> Response:
    """Measure production."""
    return _json(await _gateway(request).service.probe(body.source_code))


@router.get(
    "/v1/routing",
    summary="Show which model versions serve traffic now.",
    response_model=schemas.RoutingResponse,
    responses=problem_responses(401, 403, 503),
)
async def show_routing(request: Request) -> Response:
    """Show the routing."""
    gateway = _gateway(request)
    routing, clock = gateway.service.routing_snapshot()
    models, now, split = gateway.service.models, clock.now(), routing.split
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
            replica=gateway.replica,
            now=now.isoformat(),
            production=routing.production,
            weights=weights,
            rollout=rollout,
            ready_versions=sorted(models.ready),
            failed_versions=dict(models.failed),
            replicas=routing.replicas,
            database=gateway.service.sync.connected,
        )
    )


@router.get("/healthz", summary="Check whether the process is alive.", response_model=schemas.HealthStatus)
async def check_health(request: Request) -> Response:
    """Say that the process is alive."""
    return _json(schemas.HealthStatus(status="ok"))


@router.get(
    "/readyz",
    summary="Check whether the production model is loaded and warm; says how the database is.",
    response_model=schemas.ReadyStatus,
    responses=problem_responses(503),
)
async def check_ready(request: Request) -> Response:
    """Say whether production is loaded."""
    gateway = _gateway(request)
    if not gateway.service.ready():
        raise ProblemDetail(503, "the production model is not loaded yet", retry_after=RETRY_SECONDS)
    return _json(schemas.ReadyStatus(status="ok", database=gateway.database_state()))


@router.get(
    "/metrics",
    summary="Get the metrics in Prometheus format.",
    response_class=PlainTextResponse,
    responses=problem_responses(401, 403),
)
async def show_metrics(request: Request) -> Response:
    """Show the metrics."""
    return Response(_gateway(request).service.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/openapi.json", include_in_schema=False)
async def show_openapi(request: Request) -> Response:
    """Show the OpenAPI document."""
    return JSONResponse(openapi_document())


@router.get("/docs", include_in_schema=False)
async def show_docs(request: Request) -> Response:
    """Show the documentation for people."""
    return HTMLResponse(docs_page())


def list_routes() -> list[APIRoute]:
    """List the routes of both APIs."""
    routes = [*router.routes, *chat_completions.router.routes]
    return [route for route in routes if isinstance(route, APIRoute)]


class AgentToolsMount:
    """The tools of coding agents at `/mcp`, made with the first request: their import takes a second (C6)."""

    def __init__(self, app: ASGIApp, gateway_url: str) -> None:
        self._app, self._url = app, gateway_url
        self._tools: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != MCP_PATH:
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":  # the server has nothing to say of its own accord
            problem = ProblemDetail(405, "method not allowed; use POST", allow="POST")
            await problem.response()(scope, receive, send)
            return
        if self._tools is None:
            made = await run_in_threadpool(self._make)
            self._tools = self._tools or made
        await self._tools(scope, receive, send)

    def _make(self) -> ASGIApp:
        from iccm_assets.gateway.mcp_server import create_mcp_app

        return create_mcp_app(self._url)


def create_app(
    gateway: Gateway, settings: Settings, authenticator: Authenticator, own_url: str = ""
) -> ASGIApp:
    """Create the application, which calls itself by its own URL for coding agents."""
    handlers: dict[int | type[Exception], Any] = {
        404: _to_response,
        405: _to_response,
        ProblemDetail: _to_response,
        Exception: _to_response,
    }
    app = FastAPI(
        openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, exception_handlers=handlers
    )
    app.router.routes.extend(list_routes())
    app.state.gateway, app.state.service = gateway, gateway.service
    posts = [route for route in list_routes() if "POST" in (route.methods or ())]
    return GuardMiddleware(
        BodyRoutes(AgentToolsMount(app, own_url), posts, app, _make_response),
        authenticator,
        settings.gateway.max_in_flight,
        int(settings.gateway.max_body_mib * (1 << 20)),
        frozenset({route.path for route in posts} | {MCP_PATH}),
    )


async def _to_response(request: Request, error: Exception) -> Response:
    """Turn an error into a document of its API; Starlette raises an unexpected one again afterwards."""
    return _make_response(request.url.path, error)


def _make_response(path: str, error: Exception) -> Response:
    return make_response(path, _to_problem(error))


def _to_problem(error: Exception) -> ProblemDetail:
    if isinstance(error, ProblemDetail):
        return error
    if not isinstance(error, HTTPException):
        return ProblemDetail(500, "the gateway failed on this request; see its log")
    if error.status_code == 404:
        return ProblemDetail(404, "not found; see /docs")
    allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
    return ProblemDetail(405, f"method not allowed; use {allow}", allow=allow)


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
