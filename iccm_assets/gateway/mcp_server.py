"""Tools for coding agents over the Model Context Protocol: write, accept and rate requirements.

Every call is a request to a gateway over HTTP, so it is routed, captured and counted like any other. The
server runs over stdio (`iccm mcp`), or as an ASGI application beside the gateway. (C6)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field, ValidationError

from iccm_assets.capture.collected_suites import collect_suite
from iccm_assets.capture.messages import ChatMessage, FilePart
from iccm_assets.errors import IccmError
from iccm_assets.gateway.auth import MCP_PATH
from iccm_assets.gateway.http_client import GatewayHttpClient
from iccm_assets.gateway.project_files import read_project_file

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

SERVER_NAME = "cet-d"
# Sources of the sessions that `accept_requirements` may name, of the process's last calls.
MAX_REMEMBERED_SOURCES = 256

INSTRUCTIONS = (
    "CET-D writes software requirements for existing code. Call write_requirements when the developer asks"
    " for requirements, a specification or acceptance criteria of code; show the result word for word."
    " Call accept_requirements once the developer agrees to a text, also after editing it, and never before."
    " Call rate_requirements when the developer says that a result was good or bad."
)
WRITE_DESCRIPTION = """Write the requirements that a piece of code fulfils.

Use it when the developer wants requirements, a specification or acceptance criteria of existing code. Do not
use it to write code, to review it, or to explain a single line. Send the whole source, unchanged and with
its imports: either as source_code, or as the path of one file of the project. Show the requirements to
the developer as they are, and ask whether they are right. Keep session_id: accept_requirements and
rate_requirements need it, and further calls about the same code belong into the same session."""
ACCEPT_DESCRIPTION = """Record requirements that the developer has accepted, so that CET-D learns from them.

Call it only after the developer has agreed to this very text, with its final wording, including their own
changes. Never call it on your own judgement. Pass tests if the project has tests of this code: what is
learned is checked against them."""
RATE_DESCRIPTION = """Record whether the developer found the requirements good (1) or bad (-1).

Call it when the developer says so, with their reason as the comment, in their own words."""

T = TypeVar("T", bound=BaseModel)


class WrittenRequirements(BaseModel):
    """The requirements, and the ids to accept or to rate them."""

    requirements: str
    request_id: str
    session_id: str
    model_version: str


class AcceptedRequirements(BaseModel):
    """What was recorded of an accepted text."""

    session_id: str
    conversation_id: int
    accepted: bool = Field(description="Whether it is an example to learn from.")
    reason: str = Field(description="What is missing, and why; empty if nothing is.")
    tests: str = Field(description="Where the tests come from, and whether they test the source.")


class RecordedRating(BaseModel):
    """The ids under which a rating is recorded."""

    session_id: str | None
    request_id: str | None


SessionId = Annotated[str | None, Field(description="session_id of an earlier call about the same code.")]


class RequirementsTools:
    """The tools, and what they remember of earlier calls of this process.

    ``project``: folder whose files may be named by path; None where the server is not on the developer's
    machine.
    """

    def __init__(self, client: GatewayHttpClient, project: Path | None) -> None:
        self._client, self._project = client, project
        self._sources: OrderedDict[str, str] = OrderedDict()

    async def write_requirements(
        self,
        context: Context,
        source_code: Annotated[str | None, Field(description="The whole source code.")] = None,
        path: Annotated[
            str | None, Field(description="Path of the source file, absolute or relative to the project.")
        ] = None,
        session_id: SessionId = None,
    ) -> WrittenRequirements:
        """Ask the gateway for the requirements of a source."""
        source = self._get_source(source_code, path)
        body = {"source_code": source, "metadata": {"client": "mcp"}}
        answer = await self._post(context, "/v1/requirements", body, session_id=session_id)
        written = _parse(WrittenRequirements, answer)
        self._remember(written.session_id, source)
        return written

    async def accept_requirements(
        self,
        context: Context,
        session_id: Annotated[str, Field(description="session_id of write_requirements.")],
        requirements: Annotated[str, Field(description="The requirements, word for word as accepted.")],
        source_code: Annotated[
            str | None, Field(description="The code they are of, if it is not that of write_requirements.")
        ] = None,
        tests: Annotated[
            dict[str, Any] | None,
            Field(
                description="Tests of this code: pytest files as {path: text}, or cases as"
                ' {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}.'
            ),
        ] = None,
    ) -> AcceptedRequirements:
        """Complete the session with the accepted requirements."""
        source = source_code or self._sources.get(session_id)
        suite, files = _split_tests(tests)
        if files and source is not None:
            shown = (FilePart(path, text, "read") for path, text in files.items())
            suite = collect_suite([ChatMessage("tool", "", tuple(shown))], source)
        body = {
            "messages": _build_messages(source, requirements, files),
            "requirements": requirements,
            "metadata": {"client": "mcp"},
        }
        answer = await self._post(
            context, "/v1/conversations", body, session_id=session_id, source_code=source, tests=suite
        )
        reason = answer.get("reason") or ""
        if not source and not answer.get("source_code"):
            reason = f"{reason}: call it with source_code"
        result = {"session_id": session_id, "accepted": not reason, "reason": reason}
        tests_report = _describe_tests(answer.get("suite") or {}, has_files=bool(files))
        return _parse(AcceptedRequirements, {**answer, **result, "tests": tests_report})

    async def rate_requirements(
        self,
        context: Context,
        rating: Annotated[Literal[-1, 1], Field(description="1: good, -1: bad.")],
        request_id: Annotated[str | None, Field(description="request_id of write_requirements.")] = None,
        session_id: SessionId = None,
        comment: Annotated[str | None, Field(max_length=10_000, description="The developer's words.")] = None,
    ) -> RecordedRating:
        """Record a rating of a response, or of a whole session."""
        if request_id is None and session_id is None:
            raise ToolError("Give the request_id or the session_id of write_requirements.")
        answer = await self._post(
            context,
            "/v1/feedback",
            {"rating": rating},
            request_id=request_id,
            session_id=session_id,
            comment=comment,
        )
        return _parse(RecordedRating, answer)

    async def _post(
        self, context: Context, path: str, body: Mapping[str, Any], **more: Any
    ) -> dict[str, Any]:
        """Call the gateway, with the token of the agent's own HTTP request where it has one."""
        scheme, _, token = (context.headers or {}).get("authorization", "").partition(" ")
        known = {key: value for key, value in more.items() if value is not None}
        try:
            return await self._client.post(
                path, {**body, **known}, token.strip() if scheme.lower() == "bearer" else ""
            )
        except IccmError as error:
            raise ToolError(error.message) from None

    def _get_source(self, source_code: str | None, path: str | None) -> str:
        if (source_code is None) == (path is None):
            raise ToolError("Give either source_code or path.")
        if path is None:
            if not (source_code or "").strip():
                raise ToolError("source_code is empty.")
            return source_code or ""
        if self._project is None:
            raise ToolError("This server cannot read the project's files; send the text as source_code.")
        try:
            return read_project_file(self._project, path)
        except IccmError as error:
            raise ToolError(error.message) from None

    def _remember(self, session_id: str, source: str) -> None:
        self._sources[session_id] = source
        self._sources.move_to_end(session_id)
        if len(self._sources) > MAX_REMEMBERED_SOURCES:
            self._sources.popitem(last=False)


def create_mcp_server(gateway_url: str, *, token: str = "", project: Path | None = None) -> MCPServer[Any]:
    """Create the server of a gateway's tools; ``project`` is the folder whose files may be named by path."""
    tools = RequirementsTools(GatewayHttpClient(gateway_url, token), project)
    server: MCPServer[Any] = MCPServer(
        SERVER_NAME, title="CET-D", instructions=INSTRUCTIONS, log_level="WARNING"
    )
    # None is read-only: each is recorded by the gateway.
    adds = ToolAnnotations(destructive_hint=False)
    server.add_tool(tools.write_requirements, description=WRITE_DESCRIPTION, annotations=adds)
    server.add_tool(tools.accept_requirements, description=ACCEPT_DESCRIPTION, annotations=adds)
    server.add_tool(tools.rate_requirements, description=RATE_DESCRIPTION, annotations=adds)
    return server


def create_mcp_app(gateway_url: str) -> ASGIApp:
    """Create the ASGI application that serves the tools over streamable HTTP at `/mcp`.

    A caller's bearer token is passed on to the gateway, which decides, as about hosts and sizes before. It
    needs no ASGI lifespan: what it runs in the background starts with the first request.
    """
    server = create_mcp_server(gateway_url)
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    # Without sessions of its own, any worker process may answer any request.
    app = server.streamable_http_app(
        streamable_http_path=MCP_PATH, stateless_http=True, json_response=True, transport_security=security
    )
    return _StartedOnDemand(app, server)


class _StartedOnDemand:
    """Runs the session manager of a server from the first request on, until its event loop ends."""

    def __init__(self, app: ASGIApp, server: MCPServer[Any]) -> None:
        self._app, self._server = app, server
        self._manager: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._start()
            await self._app(scope, receive, send)

    async def _start(self) -> None:
        if self._manager is None:
            ready = asyncio.Event()
            self._manager = asyncio.create_task(self._run(ready))
            self._ready = ready
        await self._ready.wait()

    async def _run(self, ready: asyncio.Event) -> None:
        async with _set_at_start(ready), self._server.session_manager.run():
            ready.set()
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _set_at_start(ready: asyncio.Event) -> AsyncIterator[None]:
    """Let nobody wait for ever where the block fails."""
    try:
        yield
    finally:
        ready.set()


def _parse(model: type[T], document: Mapping[str, Any]) -> T:
    try:
        return model.model_validate(document)
    except ValidationError:
        raise ToolError("The gateway answers with an unknown document: is its version another one?") from None


def _split_tests(tests: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Split tests into a suite document and pytest files, of which there is at most one kind."""
    if not tests:
        return None, {}
    if "kind" in tests:
        return dict(tests), {}
    if not all(isinstance(text, str) for text in tests.values()):
        raise ToolError("tests is {path: text} of pytest files, or a suite with its kind.")
    return None, dict(tests)


def _describe_tests(suite: Mapping[str, Any], *, has_files: bool) -> str:
    """Say which tests the gateway has of the source."""
    if suite.get("origin") is None:
        return "none: no file tests what the source defines" if has_files else "none"
    return f"{suite['origin']}, {suite.get('status') or 'not measured yet'}"


def _build_messages(source: str | None, requirements: str, files: Mapping[str, str]) -> list[dict[str, Any]]:
    """Build the conversation that a session was: the source, the project's tests, the accepted answer."""
    question = [{"type": "text", "text": "Write the requirements of this code."}]
    if source is not None:
        question.append({"type": "file", "path": "source", "text": source, "action": "attached"})
    shown = [{"type": "file", "path": path, "text": text, "action": "read"} for path, text in files.items()]
    return [
        {"role": "user", "content": question},
        *([{"role": "tool", "content": shown}] if shown else []),
        {"role": "assistant", "content": requirements},
    ]
