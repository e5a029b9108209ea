"""Worker processes under Dagster Pipes, which exit with the process that started them.

Otherwise a trainer or evaluator whose run worker was killed would continue for hours, send heartbeats for its
training run and keep the machine busy, although its result is not used. What ``worker_command`` starts
watches before it imports what it works with, which takes seconds on a busy machine.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from iccm_assets.errors import IccmError

if TYPE_CHECKING:
    from dagster_pipes import PipesContext, PipesMessage

PARENT_PID_ENV = "WORKER_STARTED_BY"
EXIT_STATUS = 75
CHECK_INTERVAL_SECONDS = 1.0
BACKGROUND_NICENESS = 19
# How long the system may take to end a killed process, which gives back its memory first.
KILL_SECONDS = 30.0


def parent_env() -> dict[str, str]:
    """Return the environment variables that make a worker exit with this process."""
    return {PARENT_PID_ENV: str(os.getpid())}


def worker_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module as a worker; its environment needs ``parent_env``."""
    return [sys.executable, "-m", __name__, module, *arguments]


def exit_with_parent(interval_seconds: float = CHECK_INTERVAL_SECONDS) -> None:
    """Exit this process when its parent has exited; without ``WORKER_STARTED_BY`` do nothing.

    The variable is removed: a second call does nothing, and the processes started here have another parent.
    """
    pid = os.environ.pop(PARENT_PID_ENV, "")
    if not pid:
        return
    parent = int(pid)
    # With a launcher in between the parent is another process: then the existence of the pid is checked.
    is_direct = os.getppid() == parent

    def has_parent() -> bool:
        return os.getppid() == parent if is_direct else _is_running(parent)

    def watch() -> None:
        pause = threading.Event()
        while has_parent():
            pause.wait(interval_seconds)
        os._exit(EXIT_STATUS)

    if not has_parent():  # it ended during the imports
        os._exit(EXIT_STATUS)
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants, and wait for their end."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    kill_all(family)


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """Kill processes, and wait for their end; those that have ended already do not count."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, KILL_SECONDS)


def _is_running(pid: int) -> bool:
    """Whether a process runs; one that ended does not, although nobody may have waited for it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class LineChannel:
    """Writes Pipes messages to standard output, each on a line of its own and in one piece.

    The log of a cluster's job is one file for both streams: a progress bar without an end of line, or a write
    in between, would make a message unreadable, and the result of hours of training would be lost.
    """

    def write_message(self, message: PipesMessage) -> None:
        """Write one message, ended lines before and behind it."""
        sys.stdout.flush()
        data = f"\n{json.dumps(message)}\n".encode()
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]


@contextmanager
def open_pipes() -> Iterator[PipesContext]:
    """Open the Pipes session that started this process."""
    from dagster_pipes import PipesDefaultMessageWriter, open_dagster_pipes

    class MessageWriter(PipesDefaultMessageWriter):
        @contextmanager
        def open(self, params: Any) -> Iterator[Any]:
            if self.STDIO_KEY in params:
                yield LineChannel()
            else:
                with super().open(params) as channel:
                    yield channel

    with open_dagster_pipes(message_writer=MessageWriter()) as pipes:
        yield pipes


def run_pipes_worker(work: Callable[[PipesContext], dict[str, Any]]) -> int:
    """Run the work of a process under Dagster Pipes; the process exits with its parent.

    Reports what ``work`` returns as the message `metadata`, or its ``IccmError`` as `error`.
    """
    exit_with_parent()
    with open_pipes() as pipes:
        try:
            message = {"metadata": work(pipes)}
        except IccmError as error:
            message = {"error": error.to_dict()}
        pipes.report_custom_message(message)
    return 0


@contextmanager
def lowest_priority() -> Iterator[None]:
    """Leave the processor to others during the block: this thread, and the processes that it starts."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, BACKGROUND_NICENESS)
    try:
        yield
    finally:
        with suppress(PermissionError):  # few users may raise the priority again
            os.setpriority(os.PRIO_PROCESS, 0, before)


def main() -> None:
    """Watch the parent, then run the module that the arguments name, with the other arguments."""
    exit_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
