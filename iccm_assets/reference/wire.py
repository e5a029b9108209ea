"""How a simulated developer's editor talks to the gateway: JSON over HTTP, patient with a busy one (G1, G6).

Refusals that pass (503 and 504 with `Retry-After`, a connection that breaks) are tried again within bounds;
all others are a ``GatewayError``. Every reply is counted, so that nothing gets lost in a simulation.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from iccm_assets.errors import GatewayError

if TYPE_CHECKING:
    import httpx2

PASSING = frozenset({503, 504})
LONGEST_WAIT = 10.0
SHORTEST_WAIT = 0.05


class Wire:
    """Connections of several threads to one gateway.

    ``statuses`` counts replies by status, and broken connections by the error's name; ``retried`` counts
    what was sent again. ``patience`` is how many seconds one message is tried for.
    """

    def __init__(self, url: str, token: str = "", *, connections: int = 16, patience: float = 60.0) -> None:
        import httpx2

        self.url = url.rstrip("/")
        self.statuses: Counter[str] = Counter()
        self.retried = 0
        self._patience = patience
        self._mutex = threading.Lock()
        try:
            self._client: httpx2.Client = httpx2.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=httpx2.Timeout(60.0, connect=10.0),
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise GatewayError(f"{url}: {error}") from None

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """What the gateway shows there."""
        return self._send("GET", path, None, PASSING)

    def post(
        self, path: str, body: Mapping[str, Any], *, passing: frozenset[int] = PASSING
    ) -> dict[str, Any]:
        """The reply to a message; ``passing`` are the refusals that are worth another try.

        Raises ``GatewayError`` with the gateway's reason when it is refused for good, or for too long.
        """
        return self._send("POST", path, body, passing)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, passing: frozenset[int]
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience
        for attempt in range(1_000_000):
            status, reply, wait = self._once(method, path, body)
            if status is not None and status < 400:
                return dict(reply)
            reason = f"{self.url}{path}: {status or 'no reply'}, {reply.get('detail', 'no reason given')}"
            if status is not None and status not in passing:
                raise GatewayError(reason)
            wait = min(LONGEST_WAIT, SHORTEST_WAIT * 2 ** min(attempt, 8)) if wait is None else wait
            if time.monotonic() + wait > deadline:
                raise GatewayError(f"{reason} (tried {attempt + 1} times in {self._patience:g} s)")
            with self._mutex:
                self.retried += 1
            time.sleep(wait)
        raise GatewayError(f"{self.url}{path}: no reply")

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int | None, Mapping[str, Any], float | None]:
        """Status, reply and the wait that was asked for; no status when there was no reply."""
        import httpx2

        try:
            reply = self._client.request(method, path, json=body)
        except httpx2.TransportError as error:
            self._count(type(error).__name__)
            return None, {"detail": str(error) or type(error).__name__}, None
        self._count(str(reply.status_code))
        try:
            told = reply.json()
        except ValueError:
            told = {"detail": reply.text[:200]}
        if not isinstance(told, dict):
            told = {"detail": str(told)[:200]}
        return reply.status_code, told, _wait(reply)

    def _count(self, what: str) -> None:
        with self._mutex:
            self.statuses[what] += 1


def _wait(reply: httpx2.Response) -> float | None:
    """Seconds of a `Retry-After`, within bounds; None without one that can be read."""
    try:
        return min(LONGEST_WAIT, max(SHORTEST_WAIT, float(reply.headers["Retry-After"])))
    except (KeyError, ValueError):
        return None
