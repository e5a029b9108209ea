"""Measure what all processes of a sandbox use, sampled from outside.

Limits per process are the kernel's; total limits are enforced by sampling: every few milliseconds the tree
below the sandbox's init process is walked and added up. Control groups would be exact, but an ordinary user
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
    """Return ``pid`` and all its descendants, as host pids."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        pids += [int(child) for task in _tasks(parent) for child in _read(f"{task}/children").split()]
    return pids


def measure_usage(pid: int, tmpfs: tuple[str, ...], limit: int) -> ResourceUsage:
    """Measure what the tree below ``pid`` uses now, without the init process's own time.

    Pages are divided among their users only when their sum exceeds ``limit`` bytes.
    """
    pids = descendant_pids(pid)
    tmpfs_bytes, files = _tmpfs_usage(pid, tmpfs)
    memory = tmpfs_bytes + sum(map(_private_bytes, pids))
    if memory > limit:
        # Shared pages divided among their users; undivided where the kernel does not provide that.
        names = "Pss_Anon:", "Pss_Shmem:"
        memory = tmpfs_bytes + sum(
            sum(_sizes(pid, "smaps_rollup", names) or [_private_bytes(pid)]) for pid in pids
        )
    return ResourceUsage(memory, _cpu(pid, 2) + sum(map(_cpu, pids[1:])), len(pids), files)


def _tmpfs_usage(pid: int, tmpfs: tuple[str, ...]) -> tuple[int, int]:
    """Return bytes and files in the sandbox's writable folders."""
    size = files = 0
    for folder in tmpfs:
        try:
            status = os.statvfs(f"/proc/{pid}/root{folder}")
        except OSError:
            continue  # the sandbox has just ended
        size += (status.f_blocks - status.f_bfree) * status.f_frsize
        files += status.f_files - status.f_ffree
    return size, files


def _private_bytes(pid: int) -> int:
    """Return anonymous and shared memory; pages shared after a fork count in each process."""
    return sum(_sizes(pid, "status", ("RssAnon:", "RssShmem:")))


def _sizes(pid: int, file: str, names: tuple[str, ...]) -> list[int]:
    """Return the sizes of these names in a file below /proc, in bytes."""
    rows = _read(f"/proc/{pid}/{file}").splitlines()
    return [int(row.split()[1]) << 10 for row in rows if row.startswith(names)]


def run_queue_wait(pid: int) -> float:
    """Return the seconds for which a process was ready while the machine ran others; 0 if unknown.

    Its longest waiting thread decides.
    """
    try:
        waits = [int(_read(f"{task}/schedstat").split()[1]) for task in _tasks(pid)]
    except (ValueError, IndexError):
        return 0.0  # it has just ended, or the kernel does not count this
    return max(waits, default=0) / 1e9


def _cpu(pid: int, skipped: int = 0) -> float:
    """Return own CPU time plus that of collected children; only the latter with ``skipped`` = 2."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11 + skipped : 15])) / TICKS_PER_SECOND


def _tasks(pid: int) -> list[str]:
    """Return the folders of a process's threads; none when it has just ended."""
    try:
        return [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _read(path: str) -> str:
    """Read a file below /proc; empty when its process has just ended."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
