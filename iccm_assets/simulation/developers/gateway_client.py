"""Client of the gateway for simulated developers: JSON over HTTP, with retries (G1, G6).

A temporary failure (503 and 504 with `Retry-After`, a broken connection) is retried within a time limit; any
other one is a ``GatewayError``. Every response is counted, so that a simulation can account for all of them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from iccm_assets.errors import GatewayError

if TYPE_CHECKING:
    import httpx2

RETRYABLE_STATUSES = frozenset({503, 504})
_MAX_WAIT_SECONDS = 10.0
_MIN_WAIT_SECONDS = 0.05


class GatewayClient:
    """Connections to one gateway, shared by several threads.

    ``statuses`` counts responses by status, and broken connections by the name of the error; ``retried``
    counts repeated requests. ``timeout_seconds`` limits one request with its retries.
    """

    def __init__(
        self, url: str, token: str = "", *, connections: int = 16, timeout_seconds: float = 60.0
    ) -> None:
        import httpx2

        self.url = url.rstrip("/")
        self.statuses: Counter[str] = Counter()
        self.retried = 0
        self._timeout = timeout_seconds
        self._mutex = threading.Lock()
        try:
            self._client = httpx2.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=httpx2.Timeout(60.0, connect=10.0),
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise GatewayError(f"{url}: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """Get a document of the gateway."""
        return self._send("GET", path, None, RETRYABLE_STATUSES)

    def post(
        self, path: str, body: Mapping[str, Any], *, retryable: frozenset[int] = RETRYABLE_STATUSES
    ) -> dict[str, Any]:
        """Post a document and return the response; the statuses in ``retryable`` are retried.

        Raises ``GatewayError`` with the gateway's reason if it rejects the request, or does so for too long.
        """
        return self._send("POST", path, body, retryable)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, retryable: frozenset[int]
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        for attempt in itertools.count():
            status, response, wait = self._send_once(method, path, body)
            if status is not None and status < 400:
                break
            reason = f"{self.url}{path}: {status or 'no reply'}, {response.get('detail', 'no reason given')}"
            if status is not None and status not in retryable:
                raise GatewayError(reason)
            wait = wait or min(_MAX_WAIT_SECONDS, _MIN_WAIT_SECONDS * 2 ** min(attempt, 8))
            if time.monotonic() + wait > deadline:
                raise GatewayError(f"{reason} (tried {attempt + 1} times in {self._timeout:g} s)")
            with self._mutex:
                self.retried += 1
            time.sleep(wait)
        return response

    def _send_once(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int | None, dict[str, Any], float | None]:
        """Return status, response and requested wait in seconds; without a response the status is None."""
        import httpx2

        try:
            reply = self._client.request(method, path, json=body)
        except httpx2.TransportError as error:
            self._count(type(error).__name__)
            return None, {"detail": str(error) or type(error).__name__}, None
        self._count(str(reply.status_code))
        try:
            response = reply.json()
        except ValueError:
            response = reply.text
        if not isinstance(response, dict):
            response = {"detail": str(response)[:200]}
        return reply.status_code, response, _retry_after(reply)

    def _count(self, outcome: str) -> None:
        with self._mutex:
            self.statuses[outcome] += 1


def _retry_after(reply: httpx2.Response) -> float | None:
    """Return the seconds of `Retry-After`, within bounds; None if it is missing or unreadable."""
    try:
        seconds = float(reply.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return min(_MAX_WAIT_SECONDS, max(_MIN_WAIT_SECONDS, seconds))
