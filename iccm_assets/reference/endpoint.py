"""An OpenAI-compatible endpoint that serves the builtin readers as models, with faults on demand (O1, O2).

It shows that an orchestra of endpoints works without a network or a model, and it is what the orchestra's
own faults are tested against. On the standard library's server: the faults need every byte in hand.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from iccm_assets.errors import IccmError, InputError
from iccm_assets.judging.endpoints import PROMPT
from iccm_assets.reference.faults import fault_of
from iccm_assets.reference.readers import READERS

LARGEST_REQUEST_BYTES = 4 << 20
HUGE_BYTES = 50_000_000
IDLE_SECONDS = 60.0


@dataclass
class Behaviour:
    """How the endpoint behaves: shares of requests by fault, and what it has been asked so far."""

    faults: Mapping[str, float] = field(default_factory=dict)
    seed: int = 17
    slow_seconds: float = 1.0
    retry_after_seconds: float = 1.0
    requests: Counter[str] = field(default_factory=Counter)
    _asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, model: str, text: str) -> str:
        """Counts the request and draws its fault."""
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        with self._lock:
            self.requests[model] += 1
            self._asked[model, digest] += 1
            return fault_of(self.faults, self.seed, model, text, self._asked[model, digest])


class ReferenceEndpoint:
    """The running server; a context manager. Port 0 takes a free one.

    Raises:
        InputError: the address cannot be listened on.
    """

    def __init__(self, behaviour: Behaviour | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"endpoint": self})
        try:
            self._server = _Server((host, port), handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"cannot listen on {host}:{port}: {error}", hint="Give another --port."
            ) from None

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    @property
    def members(self) -> str:
        """Its models as an `ICCM_ORCHESTRA`."""
        return ",".join(f"openai:{self.url}#{model}" for model in READERS)

    def serve(self) -> None:
        """Answer until `close`."""
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> ReferenceEndpoint:
        threading.Thread(target=self.serve, name="reference-endpoint", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    # Requests that hang on purpose end with the server, not with their client.
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, as from a fault it was meant to, is nothing to report."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    endpoint: ReferenceEndpoint
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        if self.path.rstrip("/") != "/v1/models":
            self._error(404, f"no such page: {self.path}")
            return
        models = [{"id": model, "object": "model", "created": 0, "owned_by": "iccm"} for model in READERS]
        self._json(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        if self.path.rstrip("/") != "/v1/chat/completions":
            self.close_connection = True
            self._error(404, f"no such page: {self.path}")
            return
        try:
            model, text = self._question()
        except InputError as error:
            self.close_connection = True
            self._error(400, error.detail)
            return
        if model not in READERS:
            self._error(404, f"no such model: {model}; there are {', '.join(READERS)}")
            return
        self._answer(model, text, self.endpoint.behaviour.next_fault(model, text))

    def _question(self) -> tuple[str, str]:
        """The model asked and the requirements, which are the last message of the user."""
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= LARGEST_REQUEST_BYTES:
            raise InputError(f"a Content-Length from 0 to {LARGEST_REQUEST_BYTES} is needed")
        try:
            request = json.loads(self.rfile.read(length))
            said = [one["content"] for one in request["messages"] if one["role"] == "user"]
            model, text = request["model"], said[-1]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise InputError("not a chat completion request with a model and a user's message") from None
        if not isinstance(model, str) or not isinstance(text, str):
            raise InputError("model and content are texts")
        return model, text.removeprefix(PROMPT)

    def _answer(self, model: str, text: str, fault: str) -> None:
        content = _content(model, text)
        reply = json.dumps(_spoiled(fault, model, content)).encode()
        if fault in {"hang", "drip", "huge", "drop"}:
            self._never_end(fault)
        elif fault in {"429", "500", "html", "redirect"}:
            self._refuse(fault)
        elif fault in {"half", "short"}:
            self.close_connection = True
            self._send(200, reply[: len(reply) // 2], length=len(reply) if fault == "half" else None)
        else:
            if fault == "slow":
                self.endpoint.stopping.wait(self.endpoint.behaviour.slow_seconds)
            self._send(200, reply[:20] + b"\xff\xfe\x00" + reply[20:] if fault == "garbage" else reply)

    def _refuse(self, fault: str) -> None:
        match fault:
            case "429":
                seconds = self.endpoint.behaviour.retry_after_seconds
                self._error(429, "too many requests", {"Retry-After": f"{seconds:g}"})
            case "500":
                self._error(500, "the model has crashed")
            case "html":
                self._send(200, b"<!doctype html><title>Sign in</title>", kind="text/html")
            case _:
                self._send(302, b"", headers={"Location": self.path})

    def _never_end(self, fault: str) -> None:
        self.close_connection = True
        match fault:
            case "hang":
                self.endpoint.stopping.wait()
            case "drip":
                self._stream(b" ", 1 << 40, pause=0.02)
            case "huge":
                self._stream(b" " * (1 << 20), HUGE_BYTES >> 20, pause=0.0)

    def _stream(self, chunk: bytes, times: int, pause: float) -> None:
        self._head(200, length=None)
        for _ in range(times):
            if self.endpoint.stopping.wait(pause) if pause else self.endpoint.stopping.is_set():
                break
            self.wfile.write(chunk)

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"error": {"message": message, "code": status}}).encode()
        self._send(status, body, headers=headers)

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(
        self,
        status: int,
        body: bytes,
        *,
        length: int | None = -1,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._head(status, len(body) if length == -1 else length, kind, headers)
        self.wfile.write(body)

    def _head(
        self,
        status: int,
        length: int | None,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Without a length the body ends where the connection does."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked is for those who asked."""


def _content(model: str, text: str) -> str:
    """The reader's code in a fence; what it cannot read it says in words, as a chat model would."""
    try:
        code = READERS[model](text)
    except (ValueError, IccmError) as error:
        return f"I cannot implement this: {error}"
    return f"```python\n{code.rstrip()}\n```\n"


def _spoiled(fault: str, model: str, content: str) -> dict[str, Any]:
    """The completion as the fault has it: as it should be, unless the fault is in what is said."""
    match fault:
        case "empty":
            return {**_completion(model, ""), "choices": []}
        case "silent":
            return _completion(model, "")
        case "length":
            return _completion(model, content[: len(content) // 2], "length")
        case "filter":
            return _completion(model, "", "content_filter")
        case "refusal":
            return _completion(model, "I am sorry, but I cannot help with that.")
        case "open":
            return _completion(model, content[: content.rfind("```")])
        case "prose":
            return _completion(model, "```python\nFirst, we look at the input.\n```")
        case "several":
            others = [f"```python\ndef f(*args):\n    return {value}\n```" for value in (None, 0)]
            return _completion(model, "\nor\n".join([content, *others]))
        case _:
            return _completion(model, content)


def _completion(model: str, content: str, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {
        "id": f"chatcmpl-{hashlib.sha256(content.encode()).hexdigest()[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
