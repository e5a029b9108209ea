"""What a sandbox's processes use together, sampled from outside.

Limits per process are the kernel's; the total limits are kept by sampling: every few milliseconds the tree
below the sandbox's first process is walked and added up. Control groups would be exact, but an ordinary user
has none to write to, and the sandbox is the same for every user. (J3)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ResourceUsage:
    """Memory in bytes (private and shared pages once each, plus files in tmpfs), CPU in seconds."""

    memory: int = 0
    cpu: float = 0.0
    processes: int = 0
    files: int = 0


def descendant_pids(pid: int) -> list[int]:
    """``pid`` and all its descendants, as host pids."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        pids += [int(child) for task in _tasks(parent) for child in _read(f"{task}/children").split()]
    return pids


def measure_usage(pid: int, tmpfs: tuple[str, ...], limit: int) -> ResourceUsage:
    """Measure what the tree below ``pid`` uses now, without the init process's own time.

    Pages are divided among their users only when their sum exceeds ``limit`` bytes.
    """
    pids = descendant_pids(pid)
    stored, files = _stored(pid, tmpfs)
    memory = stored + sum(map(_unshared, pids))
    if memory > limit:
        # Divided by their users, or undivided where the kernel does not tell.
        names = "Pss_Anon:", "Pss_Shmem:"
        memory = stored + sum(sum(_sizes(pid, "smaps_rollup", names) or [_unshared(pid)]) for pid in pids)
    return ResourceUsage(memory, _cpu(pid, 2) + sum(map(_cpu, pids[1:])), len(pids), files)


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
    return sum(_sizes(pid, "status", ("RssAnon:", "RssShmem:")))


def _sizes(pid: int, file: str, names: tuple[str, ...]) -> list[int]:
    """The sizes of these names in a file of the kernel, in bytes."""
    rows = _read(f"/proc/{pid}/{file}").splitlines()
    return [int(row.split()[1]) << 10 for row in rows if row.startswith(names)]


def run_queue_wait(pid: int) -> float:
    """Seconds that a process was ready to run while the machine ran others; 0 where the kernel does not say.

    Of its threads, the longest wait.
    """
    try:
        waits = [int(_read(f"{task}/schedstat").split()[1]) for task in _tasks(pid)]
    except (ValueError, IndexError):
        return 0.0  # it has just ended, or the kernel does not count this
    return max(waits, default=0) / 1e9


def _cpu(pid: int, skipped: int = 0) -> float:
    """Own time and that of the children it has waited for; the latter alone with ``skipped`` = 2."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11 + skipped : 15])) / TICKS_PER_SECOND


def _tasks(pid: int) -> list[str]:
    """The folders of a process's threads; none when it has just ended."""
    try:
        return [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _read(path: str) -> str:
    """A file of the kernel; empty when its process has just ended."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
