"""A worker ends with the process that started it: nobody waits for what an orphan would still make.

A trainer or evaluator whose run worker was killed would go on for hours, keep its training run's heart
beating and the machine busy, and in the end hand its result to nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from iccm_assets.errors import IccmError

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

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


def run_pipes_worker(work: Callable[[PipesContext], dict[str, Any]]) -> int:
    """Run the work of a process under Dagster Pipes; it ends with its parent process.

    Reports what ``work`` returns as the message `metadata`, or its ``IccmError`` as `error`.
    """
    from dagster_pipes import open_dagster_pipes

    end_with_starter()
    with open_dagster_pipes() as pipes:
        try:
            message = {"metadata": work(pipes)}
        except IccmError as error:
            message = {"error": error.to_dict()}
        pipes.report_custom_message(message)
    return 0
