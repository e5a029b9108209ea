"""A worker ends with the process that started it: nobody waits for what an orphan would still make.

A trainer or evaluator whose run worker was killed would go on for hours, keep its training run's heart
beating and the machine busy, and in the end hand its result to nobody.
"""

from __future__ import annotations

import os
import threading

import psutil

STARTED_BY = "WORKER_STARTED_BY"
EXIT_STATUS = 75
EVERY_SECONDS = 1.0


def started_by_me() -> dict[str, str]:
    """What a worker's environment has to hold for it to end with this process."""
    return {STARTED_BY: str(os.getpid())}


def end_with_starter(every_seconds: float = EVERY_SECONDS) -> None:
    """From now on this process ends, as if killed, when the one that started it has; without one, never."""
    named = os.environ.get(STARTED_BY, "")
    if not named:
        return
    starter = int(named)
    # A launcher in between would make somebody else the parent; then the starter's pid has to do.
    direct = os.getppid() == starter

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == starter if direct else psutil.pid_exists(starter):
            pause.wait(every_seconds)
        os._exit(EXIT_STATUS)

    threading.Thread(target=watch, name="starter-watch", daemon=True).start()
