"""Load generator: threads that run one task per item, at a given rate, and lose no failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from iccm_assets.errors import IccmError

T = TypeVar("T")

_END: Any = object()

_MAX_BACKLOG_SECONDS = 1.0
"""Delay that the generator makes up for; more would end in a burst."""


class LoadGenerator(Generic[T]):
    """``workers`` threads run the task for every item, in order, at most ``rate`` a second (None: no limit).

    At most ``max_running`` tasks run at a time (None: as many as there are threads).

    An ``IccmError`` ends one task: its message is added to ``failures`` and the others continue. Any other
    exception stops the generator, and ``join`` raises it.
    """

    def __init__(
        self,
        items: Iterable[T],
        task: Callable[[T], None],
        *,
        workers: int = 16,
        rate: float | None = None,
        max_running: int | None = None,
    ) -> None:
        self.completed = 0
        self.failures: list[str] = []
        self._items, self._task = iter(items), task
        self._rate, self._due = rate, 0.0
        self._running, self._max_running = 0, max_running or workers
        self._changed = threading.Condition()
        self._stopped = False
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"developer-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> LoadGenerator[T]:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def set_rate(self, rate: float | None) -> None:
        """Change the rate, also for threads that are waiting."""
        with self._changed:
            if rate is not None and rate != self._rate:
                self._due = min(self._due, time.monotonic() + 1.0 / rate)
            self._rate = rate
            self._changed.notify_all()

    def set_max_running(self, count: int) -> None:
        """Change the maximum number of concurrent tasks; those that are running are finished."""
        with self._changed:
            self._max_running = count
            self._changed.notify_all()

    def stop(self) -> None:
        """Start no further task; `join` waits for the running ones."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until all tasks are done or the generator is stopped; raise the error that stopped it."""
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.5)  # a join without a timeout would block Ctrl-C
        if self._error is not None:
            raise self._error

    @property
    def has_failed(self) -> bool:
        """Whether an error stopped the generator; `join` will raise it."""
        return self._error is not None

    def _run(self) -> None:
        try:
            for item in self._scheduled_items():
                try:
                    self._task(item)
                except IccmError as error:
                    self.failures.append(error.message)
                else:
                    with self._changed:
                        self.completed += 1
                finally:
                    with self._changed:
                        self._running -= 1
                        self._changed.notify()
        except Exception as error:
            self._error = self._error or error
            self.stop()

    def _scheduled_items(self) -> Iterator[T]:
        """Yield items, each in its time slot, until the last one or until stopped."""
        while True:
            # One lock for the slot and the item: all threads together keep the limits and the order.
            with self._changed:
                while not self._stopped and (wait := self._wait_seconds()) != 0.0:
                    self._changed.wait(wait)
                if self._rate is not None:
                    earliest = time.monotonic() - _MAX_BACKLOG_SECONDS
                    self._due = max(self._due, earliest) + 1.0 / self._rate
                item = _END if self._stopped else next(self._items, _END)
                self._running += item is not _END
            if item is _END:
                return
            yield item

    def _wait_seconds(self) -> float | None:
        """Return how long to wait before the next task: 0 for not at all, None until another one ends."""
        if self._running >= self._max_running:
            return None
        return max(0.0, self._due - time.monotonic()) if self._rate else 0.0
