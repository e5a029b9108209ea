"""The HTTP interface (G1): thin handlers around the service, and one wall no error gets through raw."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import sqlalchemy as sa
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from iccm_assets.gateway import auth, conversations, openapi, schemas
from iccm_assets.gateway.bodies import read_json
from iccm_assets.gateway.metrics import CONTENT_TYPE
from iccm_assets.gateway.problems import Problem
from iccm_assets.gateway.routing import canary_weight
from iccm_assets.gateway.service import RETRY_SECONDS, Service
from iccm_assets.settings import Settings

log = logging.getLogger("iccm.gateway")

# Writing to the database at a time: more would only queue there.
DATABASE_CALLS = 8

T = TypeVar("T")


class Gateway:
    """The handlers, with what they need."""

    def __init__(
        self, service: Service, engine: Callable[[], sa.Engine], settings: Settings, replica: str
    ) -> None:
        self._service, self._engine, self._settings, self._replica = service, engine, settings, replica
        self._most = int(settings.gateway.max_body_mib * (1 << 20))
        self._storing = 0

    def routes(self) -> list[Route]:
        """Every path of the interface."""
        return [
            Route("/v1/requirements", self._requirements, methods=["POST"]),
            Route("/v1/conversations", self._conversations, methods=["POST"]),
            Route("/v1/feedback", self._feedback, methods=["POST"]),
            Route("/v1/probe", self._probe, methods=["POST"]),
            Route("/v1/routing", self._routing, methods=["GET"]),
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._document, methods=["GET"]),
            Route("/docs", self._docs, methods=["GET"]),
        ]

    async def _requirements(self, request: Request) -> Response:
        return _json(await self._service.answer(await read_json(request, schemas.Ask, self._most)))

    async def _conversations(self, request: Request) -> Response:
        given = await read_json(request, schemas.Completion, self._most)
        stored = await self._in_database(
            lambda: conversations.complete(self._engine(), given, self._settings)
        )
        return _json(schemas.Completed(conversation_id=stored))

    async def _feedback(self, request: Request) -> Response:
        given = await read_json(request, schemas.Thumb, self._most)
        session = self._service.session_of(given.request_id, given.session_id)
        if session is None:
            session = await self._in_database(
                lambda: conversations.session_of(self._engine(), given.request_id, given.session_id)
            )
        if session is None or given.session_id not in (None, session):
            raise Problem(404, "there is no such request or session (yet: it is stored within seconds)")
        self._service.rate(session, given.request_id, given.rating, given.comment)
        return _json(schemas.Thanks(session_id=session, request_id=given.request_id))

    async def _probe(self, request: Request) -> Response:
        given = await read_json(request, schemas.Probe, self._most)
        return _json(await self._service.probe(given.source_code))

    async def _in_database(self, call: Callable[[], T]) -> T:
        """What only the database can answer; a 503 `Problem` when it is away or has too much to do."""
        if not self._service.control.connected:
            raise Problem(503, "the database cannot be reached", retry_after=RETRY_SECONDS)
        if self._storing >= DATABASE_CALLS:
            raise Problem(503, "too much is being stored", retry_after=RETRY_SECONDS)
        self._storing += 1
        try:
            return await run_in_threadpool(call)
        except sa.exc.DBAPIError as error:
            log.warning("storing failed: %s", next(iter(str(error.orig).splitlines()), "no answer"))
            raise Problem(503, "the database did not store it", retry_after=RETRY_SECONDS) from None
        finally:
            self._storing -= 1

    async def _routing(self, request: Request) -> Response:
        routing, clock = self._service.moment()
        fleet, now, split = self._service.fleet, clock.now(), routing.split
        weight, reason = canary_weight(routing, now, fleet.ready)
        weights = {routing.production: 1.0}
        rollout = None
        if split is not None:
            left = (
                None if split.lease_until is None else (split.lease_until - now).total_seconds() / clock.rate
            )
            if weight > 0 and split.candidate != routing.production:
                weights = {routing.production: 1 - weight, split.candidate: weight}
            rollout = schemas.Lease(
                rollout_id=split.rollout_id,
                state=split.state,
                stage=split.stage,
                candidate=split.candidate,
                former=split.former,
                weight=split.weight,
                effective_weight=weight,
                reason=reason,
                lease_until=None if split.lease_until is None else split.lease_until.isoformat(),
                lease_seconds_left=left,
            )
        return _json(
            schemas.RoutingShown(
                replica=self._replica,
                now=now.isoformat(),
                production=routing.production,
                weights=weights,
                rollout=rollout,
                ready_versions=sorted(fleet.ready),
                failed_versions=dict(fleet.failed),
                replicas=routing.replicas,
                database=self._service.control.connected,
            )
        )

    async def _healthz(self, request: Request) -> Response:
        return _json(schemas.Status(status="ok"))

    async def _readyz(self, request: Request) -> Response:
        if not self._service.ready():
            raise Problem(503, "production is not loaded yet", retry_after=RETRY_SECONDS)
        return _json(schemas.Status(status="ok"))

    async def _metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def _document(self, request: Request) -> Response:
        return JSONResponse(openapi.document())

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(openapi.page())


class Wall:
    """Around everything: tokens, the number of requests at a time, and errors as problem documents."""

    def __init__(self, app: ASGIApp, tokens: Sequence[bytes], most: int) -> None:
        self._app, self._tokens, self._most = app, tokens, most
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def sending(message: dict[str, object]) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        self._inside += 1
        try:
            headers = dict(scope["headers"])
            given = headers.get(b"authorization")
            auth.check(scope["path"], None if given is None else given.decode("latin-1"), self._tokens)
            if self._inside > self._most and scope["path"].startswith("/v1/"):
                raise Problem(503, "more requests than can be answered", retry_after=RETRY_SECONDS)
            await self._app(scope, receive, sending)  # type: ignore[arg-type]
        except Problem as refused:
            if not begun:
                await refused.response()(scope, receive, send)
        except Exception:
            log.exception("a request failed")
            if not begun:
                problem = Problem(500, "the gateway failed on this request; it is in its log")
                await problem.response()(scope, receive, send)
        finally:
            self._inside -= 1


def make_app(gateway: Gateway, settings: Settings) -> ASGIApp:
    """The whole application."""
    routes = gateway.routes()
    app = Starlette(
        routes=routes, exception_handlers={404: _unknown, 405: _other_method(routes), Problem: _problem}
    )
    app.router.redirect_slashes = False
    return Wall(app, auth.tokens_of(settings), settings.gateway.max_in_flight)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
    return Problem(404, "there is no such page; /docs lists what there is").response()


def _other_method(routes: Sequence[Route]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def refuse(request: Request, error: Exception) -> Response:
        allowed = sorted({m for one in routes if one.path == request.url.path for m in one.methods or ()})
        return Problem(405, f"this page takes {', '.join(allowed)}", allow=", ".join(allowed)).response()

    return refuse


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
