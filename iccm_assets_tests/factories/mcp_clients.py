"""Clients of the tools for coding agents: the SDK's own, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import CallToolResult

from iccm_assets_tests.factories.commands import ICCM
from iccm_assets_tests.factories.processes import ROOT, bare_environment


class ToolResult:
    """The result of one call: whether it is an error, its text, and its values."""

    def __init__(self, result: CallToolResult) -> None:
        self.is_error = bool(result.is_error)
        self.text = "\n".join(block.text for block in result.content)
        self.values: dict[str, Any] = result.structured_content or {}


class AgentTools:
    """Calls tools in one session of an agent."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, name: str, **arguments: Any) -> ToolResult:
        return ToolResult(await self.client.call_tool(name, arguments))


def run_over_stdio(
    gateway: str, project: Path, talk: Callable[[AgentTools], Coroutine[Any, Any, Any]], **environment: str
) -> Any:
    """Start `iccm mcp` in a project and run a talk with it."""
    server = StdioServerParameters(
        command=ICCM[0],
        args=[*ICCM[1:], "mcp", "--gateway", gateway],
        cwd=project,
        env={**bare_environment(), "PYTHONPATH": str(ROOT), **environment},
    )

    async def run() -> Any:
        async with Client(stdio_client(server)) as client:
            return await talk(AgentTools(client))

    return asyncio.run(run())


def run_over_http(
    url: str, talk: Callable[[AgentTools], Coroutine[Any, Any, Any]], token: str | None = None
) -> Any:
    """Run a talk with the tools at a URL."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async def run() -> Any:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            return await talk(AgentTools(client))

    return asyncio.run(run())


@contextmanager
def serve_responses(*responses: bytes) -> Iterator[str]:
    """Serve raw HTTP responses, one for each connection and the last for all others; yields the URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def serve() -> None:
        count = 0
        while not closing.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                connection.recv(1 << 20)
                connection.sendall(responses[min(count, len(responses) - 1)])
            count += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    closing.set()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def http_response(status: str, document: object, **headers: str) -> bytes:
    """One raw HTTP response with a JSON document."""
    body = json.dumps(document).encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body
