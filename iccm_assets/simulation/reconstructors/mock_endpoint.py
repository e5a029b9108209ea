"""An OpenAI-compatible mock endpoint that serves the reconstructors as models, with injected faults (O1, O2).

It shows that an orchestra of endpoints works without a network or a model, and the orchestra's error handling
is tested against it. It uses the standard library's server, because the faults need control of every byte:
an ASGI server would not drop a connection, nor send less than it announced.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from iccm_assets.errors import AddressError, IccmError, InputError
from iccm_assets.scoring.chat_endpoints import PROMPT
from iccm_assets.simulation.reconstructors import RECONSTRUCTORS
from iccm_assets.simulation.reconstructors.fault_injection import draw_fault

MAX_REQUEST_BYTES = 4 << 20
HUGE_RESPONSE_BYTES = 50_000_000
IDLE_TIMEOUT_SECONDS = 60.0
_UNTIL_CLOSE = {"Content-Length": "", "Connection": "close"}  # the body ends where the connection does
_FAULTY_CONTENT: dict[str, Callable[[str], str]] = {
    "empty": lambda content: "",
    "silent": lambda content: "",
    "filter": lambda content: "",
    "length": lambda content: content[: len(content) // 2],
    "refusal": lambda content: "I am sorry, but I cannot help with that.",
    "open": lambda content: content[: content.rfind("```")],
    "prose": lambda content: "```python\nFirst, we look at the input.\n```",
    "several": lambda content: "\nor\n".join(
        [content, *(_alternative(content, value) for value in (None, 0))]
    ),
}
_STREAMS = {"drip": (b" ", 1 << 40, 0.02), "huge": (b" " * (1 << 20), HUGE_RESPONSE_BYTES >> 20, 0.0)}
_FINISH_REASONS = {"length": "length", "filter": "content_filter"}


@dataclass
class FaultConfig:
    """Which faults the endpoint injects, as fractions of its requests, and the requests so far."""

    faults: Mapping[str, float] = field(default_factory=dict)
    seed: int = 17
    slow_seconds: float = 1.0
    retry_after_seconds: float = 1.0
    request_counts: Counter[str] = field(default_factory=Counter)
    _attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def draw_fault(self, model: str, text: str) -> str:
        """Count the request and draw its fault."""
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        with self._lock:
            self.request_counts[model] += 1
            self._attempts[model, digest] += 1
            return draw_fault(self.faults, self.seed, model, text, self._attempts[model, digest])


class MockEndpoint:
    """The running server; a context manager. Port 0 picks a free port.

    Raises:
        AddressError: the server cannot listen on the address.
    """

    def __init__(self, config: FaultConfig | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self.config = config or FaultConfig()
        self.stop_requested = threading.Event()
        handler = type("Handler", (_Handler,), {"endpoint": self})
        try:
            self._server = _Server((host, port), handler)
        except (OSError, OverflowError) as error:
            raise AddressError(
                f"cannot listen on {host}:{port}: {error}", hint="Choose another --port."
            ) from None

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    @property
    def members(self) -> str:
        """The endpoint's models as a value of `ICCM_ORCHESTRA`."""
        return ",".join(f"openai:{self.url}#{model}" for model in RECONSTRUCTORS)

    def serve(self) -> None:
        """Serve until `close`."""
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self.stop_requested.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> MockEndpoint:
        threading.Thread(target=self.serve, name="mock-endpoint", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    # Requests that hang on purpose must not keep the process alive.
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report no client that disconnects, because faults make clients do so."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    endpoint: MockEndpoint
    protocol_version = "HTTP/1.1"
    timeout = IDLE_TIMEOUT_SECONDS

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            self._error(404, f"not found: {self.path}")
            return
        models = [
            {"id": model, "object": "model", "created": 0, "owned_by": "iccm"} for model in RECONSTRUCTORS
        ]
        self._send(200, json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        if self.path.rstrip("/") != "/v1/chat/completions":
            self.close_connection = True
            self._error(404, f"not found: {self.path}")
            return
        try:
            model, text = self._read_request()
        except InputError as error:
            self.close_connection = True
            self._error(400, error.detail)
            return
        if model not in RECONSTRUCTORS:
            self._error(404, f"no such model: {model}; the models are {', '.join(RECONSTRUCTORS)}")
            return
        self._respond(model, text, self.endpoint.config.draw_fault(model, text))

    def _read_request(self) -> tuple[str, str]:
        """Return the requested model and the requirements: the first user message, others are follow-ups."""
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_REQUEST_BYTES:
            raise InputError(f"Content-Length must be from 0 to {MAX_REQUEST_BYTES}")
        try:
            request = json.loads(self.rfile.read(length))
            contents = [message["content"] for message in request["messages"] if message["role"] == "user"]
            model, text = request["model"], contents[0]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise InputError("not a chat completion request with a model and a user message") from None
        if not isinstance(model, str) or not isinstance(text, str):
            raise InputError("model and content must be strings")
        return model, text.removeprefix(PROMPT)

    def _respond(self, model: str, text: str, fault: str) -> None:
        """Send the completion, or what the fault makes of it."""
        config = self.endpoint.config
        body = json.dumps(_completion(model, _content(model, text), fault)).encode()
        self.close_connection |= fault in {"hang", "drop", "drip", "huge", "half", "short"}
        match fault:
            case "drop":
                pass
            case "hang":
                self.endpoint.stop_requested.wait()
            case "drip" | "huge":
                self._stream(*_STREAMS[fault])
            case "429":
                self._error(429, "too many requests", {"Retry-After": f"{config.retry_after_seconds:g}"})
            case "500":
                self._error(500, "the model crashed")
            case "html":
                self._send(200, b"<!doctype html><title>Sign in</title>", {"Content-Type": "text/html"})
            case "redirect":
                self._send(302, b"", {"Location": self.path})
            case "half":
                self._send(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
            case "short":
                self._send(200, body[: len(body) // 2], _UNTIL_CLOSE)
            case "garbage":
                self._send(200, body[:20] + b"\xff\xfe\x00" + body[20:])
            case _:
                self.endpoint.stop_requested.wait(config.slow_seconds if fault == "slow" else 0)
                self._send(200, body)

    def _stream(self, chunk: bytes, times: int, pause: float) -> None:
        self._send(200, b"", _UNTIL_CLOSE)
        for _ in range(times):
            if self.endpoint.stop_requested.wait(pause):
                break
            self.wfile.write(chunk)

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": {"message": message, "code": status}}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a response; a header without a value is left out."""
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**defaults, **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests may hold private code."""


def _content(model: str, text: str) -> str:
    """Return the code in a fence, or what cannot be read in words, as a chat model would."""
    try:
        code = RECONSTRUCTORS[model](text)
    except (ValueError, IccmError) as error:
        return f"I cannot implement this: {error}"
    return f"```python\n{code.rstrip()}\n```\n"


def _alternative(content: str, value: object) -> str:
    """Return a block that defines the same functions otherwise."""
    names = re.findall(r"^def (\w+)", content, re.MULTILINE)
    return "```python\n" + "".join(f"def {name}(*args):\n    return {value}\n" for name in names) + "```"


def _completion(model: str, content: str, fault: str) -> dict[str, Any]:
    """Build the response document, with a fault if it is one of the content."""
    content = _FAULTY_CONTENT.get(fault, str)(content)
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": _FINISH_REASONS.get(fault, "stop")}
    return {
        "id": f"chatcmpl-{hashlib.sha256(content.encode()).hexdigest()[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [] if fault == "empty" else [choice],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
