"""A real HTTP server as apprise's `json://` channel expects one, which fails when it is told to."""

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
    """What has arrived; ``status`` is answered, after ``seconds``."""

    def __init__(self, port: int) -> None:
        self.port, self.status, self.seconds = port, 200, 0.0
        self.messages: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/hook-of-the-secret-room"

    def keys(self) -> Counter[str]:
        """How often each alert arrived, by the key in the last line of its text."""
        return Counter(one["message"].splitlines()[-1].rsplit(", ", 1)[1] for one in self.messages)


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if made.status < 400:
                made.messages.append(json.loads(body))
            time.sleep(made.seconds)
            self.send_response(made.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Receiver(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
