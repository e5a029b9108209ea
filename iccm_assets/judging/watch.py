"""What a sandbox's processes use together, seen from outside (J3).

Limits per process are the kernel's; the limits "in all" are kept by looking: every few milliseconds the
tree below the sandbox's first process is walked and added up. Control groups would be exact, but an
ordinary user has none to write to, and the sandbox is to be the same for everybody.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Memory in bytes (private and shared pages once each, plus files in tmpfs), CPU in seconds."""

    memory: int = 0
    cpu: float = 0.0
    processes: int = 0
    files: int = 0


def processes_below(pid: int) -> list[int]:
    """``pid`` and all its descendants, as host pids."""
    found = [pid]
    for parent in found:  # grows while it is walked
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue  # it has just ended
        for task in tasks:
            found += _children(parent, task)
    return found


def _children(pid: int, task: str) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []  # it has just ended


def usage(pid: int, tmpfs: tuple[str, ...], limit: int) -> Usage:
    """What the tree below ``pid`` uses now, without the driver's own time.

    Pages are shared out only when their sum exceeds ``limit``.
    """
    pids = processes_below(pid)
    stored, files = _stored(pid, tmpfs)
    memory = stored + sum(_unshared(one) for one in pids)
    if memory > limit:
        memory = stored + sum(_proportional(one) for one in pids)
    return Usage(memory, _cpu(pid, 2) + sum(_cpu(one) for one in pids[1:]), len(pids), files)


def _stored(pid: int, tmpfs: tuple[str, ...]) -> tuple[int, int]:
    """Bytes and files in the sandbox's writable places."""
    size = files = 0
    for place in tmpfs:
        try:
            status = os.statvfs(f"/proc/{pid}/root{place}")
        except OSError:
            continue  # the sandbox has just ended
        size += (status.f_blocks - status.f_bfree) * status.f_frsize
        files += status.f_files - status.f_ffree
    return size, files


def _unshared(pid: int) -> int:
    """Anonymous and shared-memory pages; pages shared after a fork count in each process."""
    return sum(_rows(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:")))


def _proportional(pid: int) -> int:
    """The same with each shared page divided by its users; undivided where the kernel does not tell."""
    rows = _rows(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
    return sum(rows) if rows else _unshared(pid)


def _rows(path: str, names: tuple[str, ...]) -> list[int]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return [int(row.split()[1]) << 10 for row in file if row.startswith(names)]
    except OSError:
        return []  # it has just ended


def waited(pid: int) -> float:
    """Seconds that a process was ready to run while the machine ran others; 0 where the kernel does not say.

    Of its threads, the one that waited most.
    """
    longest = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                longest = max(longest, int(file.read().split()[1]))
    except (OSError, ValueError, IndexError):
        return 0.0  # it has just ended, or the kernel does not count this
    return longest / 1e9


def _cpu(pid: int, skipped: int = 0) -> float:
    """Own time and that of the children it has waited for; the latter alone with ``skipped`` = 2."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return sum(map(int, fields[11 + skipped : 15])) / TICKS
