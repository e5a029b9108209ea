"""Load the models of one gateway process in the background; use them once verified and warm (G3, G7).

A model that fails to load is reported and retried later. It never ends the process, and the loaded models
keep serving.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from iccm_assets.errors import IccmError, first_line
from iccm_assets.gateway.batching import Backend
from iccm_assets.gateway.routing import ModelLocation

log = logging.getLogger(__name__)

ModelLoader = Callable[[ModelLocation], Backend]
RETRY_SECONDS = 30.0
# A model that is no longer required stays loaded this long, for the requests already routed to it.
UNLOAD_SECONDS = 60.0


class ModelPool:
    """The loaded models: ``ready`` maps versions to backends, ``failed`` to the reason loading failed.

    Other threads read both, so they are replaced, never changed in place. ``startup_complete`` becomes true
    once each model required at the start is loaded or has failed.
    """

    def __init__(self, load: ModelLoader) -> None:
        self.ready: Mapping[str, Backend] = {}
        self.failed: Mapping[str, str] = {}
        self.startup_complete = False
        self._load = load
        self._required: dict[str, ModelLocation] = {}
        self._unused_since: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="model-loader", daemon=True).start()

    def set_required(self, versions: Sequence[ModelLocation]) -> None:
        """Require these versions, most urgent first; the others are unloaded after a while."""
        required = {version.version: version for version in versions}
        with self._changed:
            if required != self._required:
                self._required = required
                self._changed.notify()

    def close(self) -> None:
        """Unload all models."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        for backend in self.ready.values():
            backend.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                version = self._next_to_load()
                if version is None and self._required:
                    self.startup_complete = True
                if version is None and not self._closed:
                    self._changed.wait(timeout=1.0)
                if self._closed:
                    return
            if version is not None:
                self._try_load(version)
            self._unload_unused()

    def _next_to_load(self) -> ModelLocation | None:
        now = time.monotonic()
        candidates = (
            version
            for name, version in self._required.items()
            if name not in self.ready and self._retry_at.get(name, 0.0) <= now
        )
        return next(candidates, None)

    def _try_load(self, version: ModelLocation) -> None:
        name, started = version.version, time.monotonic()
        try:
            backend = self._load(version)
        except Exception as error:
            prefix = "" if isinstance(error, IccmError) else f"{type(error).__name__}: "
            reason = f"{prefix}{first_line(error)}"[:300]
            log.error("cannot load %s, retrying in %g s: %s", name, RETRY_SECONDS, reason)
            self._retry_at[name] = time.monotonic() + RETRY_SECONDS
            self.failed = {**self.failed, name: reason}
            return
        self.failed = {key: reason for key, reason in self.failed.items() if key != name}
        self.ready = {**self.ready, name: backend}
        log.info("loaded and warmed up %s in %.1f s", name, time.monotonic() - started)

    def _unload_unused(self) -> None:
        now = time.monotonic()
        with self._changed:
            required = set(self._required)
        self._unused_since = {
            name: self._unused_since.get(name, now) for name in self.ready.keys() - required
        }
        for name, since in self._unused_since.items():
            if now - since >= UNLOAD_SECONDS:
                backend = self.ready[name]
                self.ready = {key: ready for key, ready in self.ready.items() if key != name}
                backend.close()
        self.failed = {name: reason for name, reason in self.failed.items() if name in required}
