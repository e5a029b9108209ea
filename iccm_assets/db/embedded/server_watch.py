"""Bring an embedded server back that died under a long-lived process.

Every such process watches; the server's file lock lets one of them start it. A server that was stopped on
purpose stays stopped until a command starts it.
"""

from __future__ import annotations

import logging
import threading
import time

from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.errors import IccmError, first_line
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
MIN_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 60.0


class ServerWatch(threading.Thread):
    """Look every second whether the server of the home died, and start it again with growing pauses."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="database-watch", daemon=True)
        self._server = EmbeddedServer(settings.home)
        self._stopping = threading.Event()
        self._delay = MIN_DELAY_SECONDS
        self._next_attempt = self._last_attempt = 0.0

    def stop(self) -> None:
        """End the thread; an attempt in progress is not waited for longer than a start takes."""
        self._stopping.set()
        if self.is_alive():
            self.join(timeout=10)

    def run(self) -> None:
        """Watch until `stop`; every failure is retried."""
        while not self._stopping.wait(CHECK_SECONDS):
            now = time.monotonic()
            if now < self._next_attempt:
                continue
            try:
                died = self._server.has_died()
                if died:
                    self._revive(now)
            except (IccmError, OSError) as error:
                log.error("the embedded PostgreSQL cannot be started, retrying: %s", first_line(error))
                died = True
            if died:
                self._last_attempt = time.monotonic()
                self._next_attempt = self._last_attempt + self._delay
                self._delay = min(2 * self._delay, MAX_DELAY_SECONDS)

    def _revive(self, now: float) -> None:
        # A server that stayed up for longer than the longest pause starts over with the shortest.
        if now - self._last_attempt > 2 * MAX_DELAY_SECONDS:
            self._delay = MIN_DELAY_SECONDS
        log.warning("the embedded PostgreSQL of %s died, starting it again", self._server.root.parent)
        if self._server.revive() is not None:
            log.warning("the embedded PostgreSQL runs again")


def watch_server(settings: Settings) -> ServerWatch | None:
    """Start watching the embedded server; None with a database URL, whose server others run."""
    if settings.database_url is not None:
        return None
    watch = ServerWatch(settings)
    watch.start()
    return watch
