"""The models of one gateway process: loaded in the background, used when verified and warm (G3, G7).

A model that cannot be loaded is reported and tried again later; it never ends the process, and whatever
is loaded goes on answering meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from iccm_assets.errors import IccmError
from iccm_assets.gateway.batching import Backend
from iccm_assets.gateway.routing import Version

log = logging.getLogger("iccm.gateway")

Load = Callable[[Version], Backend]
RETRY_SECONDS = 30.0
# An unwanted model stays this long: requests it was chosen for are still under way.
UNLOAD_SECONDS = 60.0


class Fleet:
    """``ready`` maps versions to their backends, ``failed`` to why they could not be loaded."""

    def __init__(self, load: Load, *, unload_seconds: float = UNLOAD_SECONDS) -> None:
        self.ready: Mapping[str, Backend] = MappingProxyType({})
        self.failed: Mapping[str, str] = MappingProxyType({})
        self.settled = False
        self._load, self._unload_seconds = load, unload_seconds
        self._wanted: dict[str, Version] = {}
        self._unwanted_since: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="model-loader", daemon=True).start()

    def want(self, versions: Sequence[Version]) -> None:
        """From now on these, most urgent first; the others are let go of after a while."""
        wanted = {one.version: one for one in versions}
        with self._changed:
            if wanted != self._wanted:
                self._wanted = wanted
                self._changed.notify()

    def close(self) -> None:
        """Let go of all models."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        for backend in self.ready.values():
            backend.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                chosen = self._next()
                if chosen is None and self._wanted:
                    # All that was wanted at the start is loaded or has failed: this replica may show itself.
                    self.settled = True
                if chosen is None and not self._closed:
                    self._changed.wait(timeout=1.0)
                if self._closed:
                    return
            if chosen is not None:
                self._attempt(chosen)
            self._let_go()

    def _next(self) -> Version | None:
        now = time.monotonic()
        return next(
            (
                one
                for name, one in self._wanted.items()
                if name not in self.ready and self._retry_at.get(name, 0.0) <= now
            ),
            None,
        )

    def _attempt(self, version: Version) -> None:
        started = time.monotonic()
        try:
            backend = self._load(version)
        except Exception as error:
            reason = str(error) if isinstance(error, IccmError) else f"{type(error).__name__}: {error}"
            reason = next(iter(reason.splitlines()), type(error).__name__)[:300]
            log.error(
                "%s cannot be loaded, it is tried again in %g s: %s", version.version, RETRY_SECONDS, reason
            )
            self._retry_at[version.version] = time.monotonic() + RETRY_SECONDS
            self.failed = MappingProxyType({**self.failed, version.version: reason})
            return
        self.failed = MappingProxyType({k: v for k, v in self.failed.items() if k != version.version})
        self.ready = MappingProxyType({**self.ready, version.version: backend})
        log.info("%s is loaded and warm after %.1f s", version.version, time.monotonic() - started)

    def _let_go(self) -> None:
        now = time.monotonic()
        with self._changed:
            wanted = set(self._wanted)
        for name in list(self._unwanted_since):
            if name in wanted:
                del self._unwanted_since[name]
        for name in self.ready.keys() - wanted:
            if now - self._unwanted_since.setdefault(name, now) >= self._unload_seconds:
                backend = self.ready[name]
                self.ready = MappingProxyType({k: v for k, v in self.ready.items() if k != name})
                del self._unwanted_since[name]
                backend.close()
        self.failed = MappingProxyType({k: v for k, v in self.failed.items() if k in wanted})
