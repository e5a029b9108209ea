"""Guard every request before it is routed: token, load, and the limits of a body (G6).

Plain ASGI: a body that is too large, too slow, nested too deep or not JSON never reaches a route. What passes
is parsed once, validated and given to its handler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import get_type_hints

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iccm_assets.gateway.auth import Authenticator, Caller
from iccm_assets.gateway.openai_errors import make_response
from iccm_assets.gateway.problem_details import RETRY_SECONDS, ProblemDetail
from iccm_assets.gateway.request_body import explain_invalid, parse_json, read_body

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


class BodyRoutes:
    """Serves the routes that take a JSON body; all other requests pass to the application.

    FastAPI's layers around a handler take as long as everything else that the gateway does for a request. The
    routes stay FastAPI's, which describes them. ``make_response`` turns an error into a response.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[APIRoute],
        owner: FastAPI,
        make_response: Callable[[str, Exception], Response],
    ) -> None:
        self._app, self._owner, self._make_response = app, owner, make_response
        self._routes = {
            route.path: (TypeAdapter(get_type_hints(route.endpoint)["body"]), route.endpoint)
            for route in routes
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _BODY not in scope or scope["path"] not in self._routes:
            await self._app(scope, receive, send)
            return
        body, handle = self._routes[scope["path"]]
        scope["app"] = self._owner
        try:
            response: Response = await handle(
                body.validate_python(scope[_BODY], from_attributes=True), Request(scope, receive)
            )
        except ValidationError as error:
            response = self._make_response(scope["path"], explain_invalid(error.errors(include_url=False)))
        except Exception as error:
            if not isinstance(error, ProblemDetail):
                log.exception("a request failed")
            response = self._make_response(scope["path"], error)
        await response(scope, receive, send)


def get_caller(request: Request) -> Caller:
    """Return who sends the request."""
    caller: Caller = request.scope[_CALLER]
    return caller
