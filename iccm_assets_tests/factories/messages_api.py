"""A stub of Anthropic's Messages API that makes a coding agent call one tool and end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_TOOL = "WaitForMcpServers"  # as long as the agent's servers are starting
MAX_WAITS = 20


class MessagesApi:
    """What the stub was asked, and the tool that it calls once the agent offers it."""

    def __init__(self, tool: str, arguments: dict[str, Any]) -> None:
        self.tool, self.arguments = tool, arguments
        self.requests: list[dict[str, Any]] = []
        self.results: list[str] = []
        self.url = ""

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
        """The content block, its delta and the stop reason of the next message."""
        self.requests.append(request)
        names = [tool["name"] for tool in request.get("tools", [])]
        name = next((name for name in names if name.endswith(self.tool)), None)
        result = find_result(request, "toolu_call")
        if result is not None:
            self.results.append(result)
            return text_block(f"CET-D says:\n\n{result}")
        if name is not None:
            return tool_block("toolu_call", name, self.arguments)
        if WAIT_TOOL in names and len(self.requests) < MAX_WAITS:
            return tool_block(f"toolu_wait_{len(self.requests)}", WAIT_TOOL, {})
        return text_block("There is no such tool.")


def find_result(request: dict[str, Any], tool_id: str) -> str | None:
    """Find the text of a tool's result in a request's messages."""
    for message in request.get("messages", []):
        for block in message["content"] if isinstance(message["content"], list) else []:
            if block.get("type") == "tool_result" and block.get("tool_use_id") == tool_id:
                content = block.get("content")
                if isinstance(content, str):
                    return content
                return "\n".join(part.get("text", "") for part in content or [])
    return None


def text_block(text: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    return {"type": "text", "text": ""}, {"type": "text_delta", "text": text}, "end_turn"


def tool_block(
    tool_id: str, name: str, arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    block = {"type": "tool_use", "id": tool_id, "name": name, "input": {}}
    return block, {"type": "input_json_delta", "partial_json": json.dumps(arguments)}, "tool_use"


def to_events(
    model: object, number: int, block: dict[str, Any], delta: dict[str, Any], stop: str
) -> list[dict[str, Any]]:
    message = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    ending = {"stop_reason": stop, "stop_sequence": None}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]


@contextmanager
def serve_messages_api(api: MessagesApi) -> Iterator[str]:
    """Serve the stub on a loopback port; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
            if self.path.partition("?")[0] != "/v1/messages":
                self._send(404, "application/json", b"{}")
                return
            events = to_events(request.get("model"), len(api.requests), *api.answer(request))
            lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
            self._send(200, "text/event-stream", "".join(lines).encode())

        def do_GET(self) -> None:
            self._send(404, "application/json", b"{}")

        do_HEAD = do_GET

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
