"""PostgreSQL processes of a data directory, independent of the path or namespace they see it under.

A pid file may be stale and a pid reused, so neither is trusted: PostgreSQL's processes change into their data
directory, and the device and inode of a process's working directory are unambiguous.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil


def data_dir_identity(directory: Path) -> tuple[int, int]:
    """Return device and inode of a directory: the same under every path, different for every copy."""
    status = directory.stat()
    return status.st_dev, status.st_ino


def _working_directory(process: psutil.Process) -> tuple[int, int] | None:
    try:
        return data_dir_identity(
            Path(f"/proc/{process.pid}/cwd" if sys.platform == "linux" else process.cwd())
        )
    except (OSError, psutil.Error):
        return None  # ended, a zombie, or another user's


def find_servers(directory: Path) -> list[psutil.Process]:
    """Return the live PostgreSQL processes of this data directory: the postmaster and its children."""
    expected = data_dir_identity(directory)
    servers = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("postgres") and _working_directory(process) == expected:
                servers.append(process)
    return servers


def find_postmaster(directory: Path) -> psutil.Process | None:
    """Return the live postmaster of this data directory, or None.

    It is the process whose parent is not among them and that has not renamed itself as children do
    ("postgres: checkpointer").
    """
    processes = find_servers(directory)
    pids = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.Error):
            if process.ppid() not in pids and not "".join(process.cmdline()[:1]).startswith("postgres:"):
                return process
    return None


def runs_recorded(directory: Path) -> bool:
    """Return whether the process in postmaster.pid is a server of this directory; reads one process."""
    pid = recorded_pid(directory)
    try:
        return pid is not None and _working_directory(psutil.Process(abs(pid))) == data_dir_identity(
            directory
        )
    except (OSError, psutil.Error):
        return False


def belongs_to_other(directory: Path) -> bool:
    """Return whether postmaster.pid names an existing process that is not a server of this directory.

    PostgreSQL itself ignores the pid of a dead process; a reused pid, or a zombie that was not reaped,
    prevents its start.
    """
    pid = recorded_pid(directory)
    if pid is None or not psutil.pid_exists(pid):
        return False
    return pid not in {process.pid for process in find_servers(directory)}


def recorded_pid(directory: Path) -> int | None:
    """Return the pid in postmaster.pid, alive or not."""
    return _recorded_number(directory, line=0)


def recorded_port(directory: Path) -> int | None:
    """Return the port in postmaster.pid, whichever process listens there."""
    return _recorded_number(directory, line=3)


def _recorded_number(directory: Path, line: int) -> int | None:
    try:
        # While PostgreSQL starts, the file is incomplete; a standalone backend writes a negative pid.
        return int(
            (directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()[line]
        )
    except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
        return None


def kill_orphans(directory: Path, timeout: float = 3.0) -> list[int]:
    """Kill the children of a dead postmaster that do not exit by themselves; returns their pids.

    Children exit once they notice that the postmaster is gone; those that do not hold the shared memory that
    keeps a new server from starting. They have nothing to save: the next start recovers from the log. Call it
    only when no postmaster is running.
    """
    orphans = _wait_for_exit(directory, timeout)
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    if orphans:
        _wait_for_exit(directory, timeout)
    return [process.pid for process in orphans]


def _wait_for_exit(directory: Path, timeout: float) -> list[psutil.Process]:
    """Wait for the servers to exit; returns those that did not."""
    deadline = time.monotonic() + timeout
    while (servers := find_servers(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return servers
