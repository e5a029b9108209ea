"""Guard every request before it is routed: token, load, and the limits of a body (G6).

Plain ASGI: a body that is too large, too slow, nested too deep or not JSON never reaches FastAPI. What passes
is parsed once, and the routes read it from the scope.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iccm_assets.gateway.auth import Authenticator, Caller
from iccm_assets.gateway.openai_errors import make_response
from iccm_assets.gateway.problem_details import RETRY_SECONDS, ProblemDetail
from iccm_assets.gateway.request_body import parse_json, read_body

log = logging.getLogger(__name__)

_CALLER, _BODY = "iccm.caller", "iccm.body"


class GuardMiddleware:
    """Authenticates requests, limits the number of concurrent ones, and reads bodies within limits.

    ``posts`` are the paths that take a JSON body.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        max_in_flight: int,
        max_bytes: int,
        posts: frozenset[str],
    ) -> None:
        self._app, self._authenticator, self._posts = app, authenticator, posts
        self._max_in_flight, self._max_bytes = max_in_flight, max_bytes
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        app = self._app
        self._in_flight += 1
        try:
            try:
                receive = await self._check(scope, receive)
            except ProblemDetail as problem:
                app = make_response(scope["path"], problem)
            await app(scope, receive, send)
        except Exception:
            # Starlette has sent a response. With the error, uvicorn would close the client's connection.
            log.exception("a request failed")
        finally:
            self._in_flight -= 1

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        """Check a request; return what reads its body again."""
        scope[_CALLER] = self._authenticator.authenticate(scope["path"], dict(scope["headers"]))
        if self._in_flight > self._max_in_flight and scope["path"].startswith("/v1/"):
            raise ProblemDetail(503, "too many requests", retry_after=RETRY_SECONDS)
        if scope["method"] == "POST" and scope["path"] in self._posts:
            body = await read_body(Request(scope, receive), self._max_bytes)
            scope[_BODY] = parse_json(body)
            return replay(body, receive)
        return receive


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that begins with a body that was read, for an application of another library."""
    is_read = False

    async def receive_again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


class GuardedRequest(Request):
    """A request whose body the guard has read and parsed."""

    async def body(self) -> bytes:
        """Return a text in place of the body, which is parsed already."""
        return b"{}"

    async def json(self) -> Any:
        """Return the parsed body."""
        return self.scope[_BODY]


class GuardedRoute(APIRoute):
    """A route that gets the body from the guard."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler of the request with the parsed body."""
        handle = super().get_route_handler()

        async def handle_guarded(request: Request) -> Response:
            return await handle(GuardedRequest(request.scope, request.receive))

        return handle_guarded


def get_caller(request: Request) -> Caller:
    """Return who sends the request."""
    caller: Caller = request.scope[_CALLER]
    return caller
