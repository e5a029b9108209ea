"""Requests answered together: one worker thread per loaded model (G6).

While the model works the next batch gathers by itself, so hardly any request waits for company.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and in how many tokens (None: not known)."""

    text: str
    output_tokens: int | None = None


class Busy(Exception):
    """The queue of the model is full."""


class Failed(Exception):
    """The model gave no answer; the message says why, and never quotes what was asked."""


class Backend(Protocol):
    """One loaded, verified and warm model (G7)."""

    async def answer(self, source: str) -> Answer:
        """Answer; raises ``Busy`` or ``Failed``. Cancelled, it gives its place in the queue up."""

    @property
    def waiting(self) -> int:
        """Requests that wait or are being answered."""

    def close(self) -> None:
        """Let go of the model; requests under way fail."""


@dataclass
class _Job:
    source: str
    future: asyncio.Future[Answer]
    loop: asyncio.AbstractEventLoop
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """A backend around a blocking ``generate`` that answers several sources at once, in their order.

    ``stuck_seconds``: a batch that takes longer is taken for hung, and new requests fail at once.
    """

    def __init__(
        self,
        name: str,
        generate: Callable[[Sequence[str]], Sequence[Answer]],
        *,
        batch_size: int,
        wait_seconds: float,
        queue_size: int,
        stuck_seconds: float,
    ) -> None:
        self._generate = generate
        self._batch_size, self._wait, self._queue_size = batch_size, wait_seconds, queue_size
        self._stuck = stuck_seconds
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._busy_since: float | None = None
        self._busy_with = 0
        self._closed = False
        threading.Thread(target=self._work, name=f"model-{name}", daemon=True).start()

    @property
    def waiting(self) -> int:
        return len(self._jobs) + self._busy_with

    async def answer(self, source: str) -> Answer:
        loop = asyncio.get_running_loop()
        job = _Job(source, loop.create_future(), loop)
        with self._changed:
            busy_since = self._busy_since
            if self._closed:
                raise Failed("the model was unloaded")
            if busy_since is not None and time.monotonic() - busy_since > self._stuck:
                raise Failed(f"timeout: the model has not answered for {self._stuck:g} s")
            if len(self._jobs) >= self._queue_size:
                raise Busy
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await job.future
        except asyncio.CancelledError:
            with self._changed, suppress(ValueError):
                self._jobs.remove(job)
            raise

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        while (batch := self._collect()) is not None:
            try:
                self._answer(batch)
            finally:
                self._busy_since, self._busy_with = None, 0

    def _collect(self) -> list[_Job] | None:
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            ready_at = self._jobs[0].since + self._wait
            while 0 < len(self._jobs) < self._batch_size and (left := ready_at - time.monotonic()) > 0:
                self._changed.wait(left)
            batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._batch_size))]
            self._busy_since, self._busy_with = time.monotonic(), len(batch)
        return batch

    def _answer(self, batch: list[_Job]) -> None:
        try:
            answers = list(self._generate([job.source for job in batch]))
            if len(answers) != len(batch):
                raise Failed(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:
            if len(batch) > 1:  # one source the model cannot bear spoils no neighbour's answer
                for job in batch:
                    self._busy_since = time.monotonic()
                    self._answer([job])
                return
            failure = error if isinstance(error, Failed) else Failed(_told(error))
            _deliver([(batch[0], failure)])
            return
        _deliver(list(zip(batch, answers, strict=True)))


def _told(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__


def _deliver(results: Sequence[tuple[_Job, Answer | Failed]]) -> None:
    def set_results() -> None:
        for job, result in results:
            if job.future.done():
                continue
            if isinstance(result, Failed):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    with suppress(RuntimeError):  # the loop has closed: nobody waits any more
        results[0][0].loop.call_soon_threadsafe(set_results)
