"""Which processes work on a data directory, whatever path or namespace they see it under.

A pid file may be stale and a pid recycled, so neither is trusted: PostgreSQL's processes change into
their data directory, and the device and inode of a process's working directory cannot be mistaken.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil


def identity(directory: Path) -> tuple[int, int]:
    """Device and inode of a directory: the same under every path, different for every copy."""
    status = directory.stat()
    return status.st_dev, status.st_ino


def _working_directory(process: psutil.Process) -> tuple[int, int] | None:
    try:
        if sys.platform == "linux":
            status = os.stat(f"/proc/{process.pid}/cwd")
        else:
            status = os.stat(process.cwd())
    except (OSError, psutil.Error):
        return None  # gone, a zombie, or somebody else's
    return status.st_dev, status.st_ino


def servers_of(directory: Path) -> list[psutil.Process]:
    """The living PostgreSQL processes that work in this data directory: the postmaster and its children."""
    wanted = identity(directory)
    found = []
    for process in psutil.process_iter():
        try:
            if process.name().startswith("postgres") and _working_directory(process) == wanted:
                found.append(process)
        except psutil.Error:
            continue
    return found


def postmaster_of(directory: Path) -> psutil.Process | None:
    """The living postmaster of this data directory, or None.

    It is the one that is nobody's child here and has not renamed itself as children do
    ("postgres: checkpointer").
    """
    processes = servers_of(directory)
    pids = {one.pid for one in processes}
    for one in processes:
        try:
            if one.ppid() not in pids and not "".join(one.cmdline()[:1]).startswith("postgres:"):
                return one
        except psutil.Error:
            continue
    return None


def names_a_stranger(directory: Path) -> bool:
    """Whether postmaster.pid names a process that exists but is no server of this directory.

    PostgreSQL itself copes with the pid of a dead process; a recycled one, or a zombie nobody has reaped,
    keeps it from starting.
    """
    pid = recorded_pid(directory)
    if pid is None or not psutil.pid_exists(pid):
        return False
    return pid not in {one.pid for one in servers_of(directory)}


def recorded_pid(directory: Path) -> int | None:
    """The pid that postmaster.pid names, alive or not."""
    lines = _pid_file(directory)
    return int(lines[0]) if lines and lines[0].strip().lstrip("-").isdigit() else None


def recorded_port(directory: Path) -> int | None:
    """The port that postmaster.pid names, whoever listens there."""
    lines = _pid_file(directory)
    return int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else None


def _pid_file(directory: Path) -> list[str]:
    try:
        return (directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def end_orphans(directory: Path, patience: float = 3.0) -> list[int]:
    """End what a killed postmaster left behind; returns the pids that had to be killed.

    Children of a dead postmaster exit by themselves once they notice; those that do not hold the shared
    memory that keeps a new server from starting, and have nothing left to save: the next start recovers
    from the log. Call it only when no postmaster lives.
    """
    orphans = _left_after(directory, patience)
    for one in orphans:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    if orphans:
        _left_after(directory, patience)
    return [one.pid for one in orphans]


def _left_after(directory: Path, patience: float) -> list[psutil.Process]:
    deadline = time.monotonic() + patience
    while (left := servers_of(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
