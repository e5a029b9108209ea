"""A real HTTP server as apprise's `json://` channel expects one, which fails on request."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """The received messages; the server answers ``status`` after ``seconds``, and counts its answers."""

    def __init__(self, port: int) -> None:
        self.port, self.status, self.seconds = port, 200, 0.0
        self.answered = 0
        self.messages: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/hook-of-the-secret-room"

    def keys(self) -> Counter[str]:
        """Count the arrivals of each alert, by the key in the last line of its text."""
        return Counter(message["message"].splitlines()[-1].rsplit(", ", 1)[1] for message in self.messages)


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.status < 400:
                receiver.messages.append(json.loads(body))
            time.sleep(receiver.seconds)
            receiver.answered += 1
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_address[1])
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
