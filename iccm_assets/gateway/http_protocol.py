"""uvicorn's HTTP protocol with limits on what precedes the application: headers, and waiting for them.

Headers are read before the token is known, so anybody may send them. Their size, their number and their time
are limited, and a connection that waits for them is given up for newer ones. (G6)
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from iccm_assets.gateway.problem_details import ProblemDetail

MAX_HEADER_BYTES = 16 << 10  # of one header, and of the path
MAX_HEADERS_BYTES = 32 << 10
MAX_HEADERS = 100
HEADER_TIMEOUT_SECONDS = 10.0
# Connections that have not sent all headers; the oldest is closed for a newer one. Each takes up to 32 KiB.
MAX_WAITING_CONNECTIONS = 1000
# How much a rejected client may still send, to read the response before the connection is reset.
LINGER_SECONDS = 2.0
MAX_LINGER_BYTES = 4 << 20
# How long a new connection may still take to send its request when the process shuts down.
LAST_REQUEST_SECONDS = 1.0


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    # All connections that wait for headers, the oldest first, and since when: a dict keeps that order.
    _waiting: ClassVar[dict[LimitedHttpProtocol, float]] = {}
    _sweep: ClassVar[asyncio.TimerHandle | None] = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for headers."""
        super().connection_made(transport)
        self._between_requests, self._in_headers = True, False
        self._header_bytes = self._headers_read = self._lingered_bytes = 0
        self._problem: ProblemDetail | None = None
        self._rejected = self._shutting_down = False
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless the request was rejected."""
        if self._rejected:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > MAX_LINGER_BYTES:
                self.transport.abort()
            return
        # A body that arrives after its response is waited for like headers.
        if self not in self._waiting and (
            self._between_requests or (self.cycle is not None and self.cycle.response_complete)
        ):
            self._wait_for_headers()
        super().data_received(data)
        if self._in_headers and not self._rejected:
            # The parser keeps an incomplete header to itself, so that what arrives is counted.
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADERS_BYTES:
                self._reject(_too_large())

    def on_message_begin(self) -> None:
        """Start to count the headers of a request."""
        self._between_requests, self._in_headers = False, True
        self._header_bytes = self._headers_read = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Limit the path."""
        super().on_url(url)
        if len(self.url) > MAX_HEADER_BYTES:
            self._fail(ProblemDetail(414, f"the path is longer than {MAX_HEADER_BYTES >> 10} KiB"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Limit one header, and all of a request; those after a chunked body count, too."""
        size = len(name) + len(value)
        self._headers_read += 1
        if not self._in_headers:
            self._header_bytes += size
        if self._headers_read > MAX_HEADERS:
            self._fail(ProblemDetail(431, f"more than {MAX_HEADERS} headers"))
        if size > MAX_HEADER_BYTES or self._header_bytes > MAX_HEADERS_BYTES:
            self._fail(_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop waiting; the application has its own time limits."""
        self._waiting.pop(self, None)
        self._in_headers = False
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADERS_BYTES:
            self._fail(_too_large())
        super().on_headers_complete()
        if self._shutting_down:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The next byte belongs to another request."""
        self._between_requests = True
        super().on_message_complete()

    def shutdown(self) -> None:
        """Close the connection after the request in flight, also after one that has only begun to arrive."""
        first = self.cycle is None
        if self in self._waiting and (first or (self._in_headers and self.cycle.response_complete)):
            self._shutting_down = True
            self.loop.call_later(LAST_REQUEST_SECONDS, self._close_without_request)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser or a limit rejects."""
        self._reject(self._problem or ProblemDetail(400, "not an HTTP request: " + msg.rstrip(".")))

    def _unsupported_upgrade_warning(self) -> None:
        """Serve the request without the upgrade, silently."""

    def _fail(self, problem: ProblemDetail) -> None:
        """Stop the parser; uvicorn then calls ``send_400_response``."""
        self._problem = problem
        raise ValueError(str(problem))

    def _reject(self, problem: ProblemDetail) -> None:
        """Send the problem and close the connection, once the client had the time to read it."""
        self._waiting.pop(self, None)
        self._rejected = True
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # another request of this connection is being answered
            return
        response = problem.response()
        lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in response.headers.items()]
        head = b"".join([STATUS_LINE[response.status_code], *lines, b"Connection: close\r\n\r\n"])
        self.transport.write(head + bytes(response.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _close_without_request(self) -> None:
        if self in self._waiting:
            self.transport.close()

    def _wait_for_headers(self) -> None:
        waiting, now = self._waiting, self.loop.time()
        if len(waiting) >= MAX_WAITING_CONNECTIONS:
            next(iter(waiting))._give_up()
        waiting[self] = now
        if LimitedHttpProtocol._sweep is None:
            LimitedHttpProtocol._sweep = self.loop.call_later(1.0, self._close_late, self.loop)

    def _give_up(self) -> None:
        self._waiting.pop(self, None)
        if self._in_headers:
            self._reject(
                ProblemDetail(408, f"the headers did not arrive within {HEADER_TIMEOUT_SECONDS:g} s")
            )
        else:
            self.transport.close()

    @classmethod
    def _close_late(cls, loop: asyncio.AbstractEventLoop) -> None:
        """Close, each second, the connections that have waited for too long."""
        while cls._waiting:
            connection, since = next(iter(cls._waiting.items()))
            if loop.time() - since < HEADER_TIMEOUT_SECONDS:
                break
            connection._give_up()
        LimitedHttpProtocol._sweep = loop.call_later(1.0, cls._close_late, loop) if cls._waiting else None


def _too_large() -> ProblemDetail:
    return ProblemDetail(
        431,
        f"a header is larger than {MAX_HEADER_BYTES >> 10} KiB, "
        f"or all of them are larger than {MAX_HEADERS_BYTES >> 10} KiB",
    )
