"""Many people at once: threads that take one errand after the other, at a given pace, and lose no failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from iccm_assets.errors import IccmError

T = TypeVar("T")

SOON = 0.05
"""Seconds after which a waiting thread looks again whether the pace has changed."""
BEHIND = 1.0
"""Seconds of a pace that could not be kept and are made up for; more would end in a burst."""


class Crowd(Generic[T]):
    """``workers`` threads do ``errand`` for every item, in order, ``rate`` a second at most (None: no limit).

    An ``IccmError`` ends an errand: it is kept in ``failures`` and the others go on. Any other exception
    ends the crowd, and ``join`` raises it.
    """

    def __init__(
        self,
        items: Iterable[T],
        errand: Callable[[T], None],
        *,
        workers: int = 16,
        rate: float | None = None,
    ) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._items, self._errand = iter(items), errand
        self._rate, self._due = rate, 0.0
        self._mutex = threading.Lock()
        self._over = threading.Event()
        self._broken: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"developer-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> Crowd[T]:
        """Set out."""
        for one in self._threads:
            one.start()
        return self

    def pace(self, rate: float | None) -> None:
        """From now on so many errands a second."""
        with self._mutex:
            if rate is not None and rate != self._rate:
                self._due = min(self._due, time.monotonic() + 1.0 / rate)
            self._rate = rate

    def stop(self) -> None:
        """Begin no further errand; `join` waits for those begun."""
        self._over.set()

    def join(self) -> None:
        """Wait until everything is done, or stopped; raises what broke an errand, unless an ``IccmError``."""
        for one in self._threads:
            while one.is_alive():
                one.join(0.5)  # a join without end would not let Ctrl-C through
        if self._broken is not None:
            raise self._broken

    @property
    def broken(self) -> bool:
        """Whether something broke that `join` will raise."""
        return self._broken is not None

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                wait = self._wait()
                if wait > 0:
                    self._over.wait(min(wait, SOON))
                    continue
                try:
                    item = self._take()
                except StopIteration:
                    return
                if item is not None:
                    self._do(item[0])
        except Exception as error:
            with self._mutex:
                self._broken = self._broken or error
            self._over.set()

    def _wait(self) -> float:
        """Seconds until the next errand's time comes."""
        with self._mutex:
            return 0.0 if self._rate is None else self._due - time.monotonic()

    def _take(self) -> tuple[T] | None:
        """The next item, if its time has come and nobody was quicker; ``StopIteration`` after the last."""
        with self._mutex:
            now = time.monotonic()
            if self._rate is not None:
                if self._due > now:
                    return None
                self._due = max(self._due, now - BEHIND) + 1.0 / self._rate
            return (next(self._items),)

    def _do(self, item: T) -> None:
        try:
            self._errand(item)
        except IccmError as error:
            with self._mutex:
                self.failures.append(error.message)
            return
        with self._mutex:
            self.done += 1
