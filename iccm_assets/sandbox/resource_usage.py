"""Measure what all processes of a sandbox use, sampled from outside.

Limits per process are the kernel's; total limits are enforced by sampling: every few milliseconds the tree
below the sandbox's init process is walked and added up. That needs no privilege; where there are control
groups (``control_groups.py``) they are exact, and add what a walk cannot see.

What no process shows as its size has to be impossible or counted. Anonymous shared memory, huge pages and
memory in pipes are forbidden (``seccomp.py``); page tables, swap, socket buffers and mappings are counted
here. A process whose first thread has ended is read through another thread. (J3)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SIZES = ("RssAnon:", "RssShmem:", "VmPTE:", "VmSwap:", "HugetlbPages:")
SHARES = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")
# A mapping costs the kernel a fraction of this; reading so many more would take seconds.
MAPPING_BYTES = 4096
UNCOUNTED_MAPPINGS = 2000  # of one process; honest ones have some hundreds
BUSY_SECONDS = 0.5  # of CPU by the rest of a case, from which on it competes with itself
SOCKET_BUFFER = Path("/proc/sys/net/core/wmem_default")
# Fields of /proc/PID/stat, counted after the name.
NICE, POLICY = 16, 38


@dataclass(frozen=True)
class ResourceUsage:
    """Memory in bytes (private and shared pages once each, plus files in tmpfs), CPU in seconds.

    ``pids`` are the init process and all its descendants, as the host numbers them.
    """

    memory: int
    cpu: float
    files: int
    pids: tuple[int, ...]


def descendant_pids(pid: int) -> list[int]:
    """Return ``pid`` and all its descendants, as host pids."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        pids += [int(child) for task in _tasks(parent) for child in _read(f"{task}/children").split()]
    return pids


def measure_usage(pid: int, tmpfs: tuple[str, ...], limit: int, extra: int = 0) -> ResourceUsage:
    """Measure what the tree below ``pid`` uses now, without the init process's own time.

    Pages are divided among their users only when their sum exceeds ``limit`` bytes; ``extra`` is added.
    """
    pids = descendant_pids(pid)
    tmpfs_bytes, files = _tmpfs_usage(pid, tmpfs)
    fixed = tmpfs_bytes + extra + _socket_bytes(pid)
    sizes = {pid: _sizes(pid, "status", SIZES) for pid in pids}
    memory = fixed + sum(sum(size.values()) for size in sizes.values())
    if memory > limit:
        memory = fixed + sum(_divided(pid, size) for pid, size in sizes.items())
    return ResourceUsage(memory, _cpu(pid, 2) + sum(map(_cpu, pids[1:])), files, tuple(pids))


def measure_mappings(pids: Iterable[int], limit: int) -> int:
    """Return what unusually many mappings count for, in bytes, at most little more than ``limit``."""
    total = 0
    for pid in pids:
        total += max(0, _count_mappings(pid, limit // MAPPING_BYTES) - UNCOUNTED_MAPPINGS) * MAPPING_BYTES
        if total > limit:
            break
    return total


def _count_mappings(pid: int, limit: int) -> int:
    """Count the mappings of a process, up to ``limit``: a bit of kernel memory each, in no size."""
    count = 0
    for folder in _living(pid):
        try:
            with open(f"{folder}/maps", "rb", buffering=0) as rows:
                while count <= limit and (piece := rows.read(1 << 16)):
                    count += piece.count(b"\n")
        except OSError:
            continue  # it has just ended
        if count:
            break
    return count


def _divided(pid: int, size: dict[str, int]) -> int:
    """Divide shared pages among their users; undivided where the kernel does not provide that."""
    shares = _sizes(pid, "smaps_rollup", SHARES)
    unshared = ("VmPTE:", "HugetlbPages:")
    return (
        sum(shares.values()) + sum(size.get(name, 0) for name in unshared) if shares else sum(size.values())
    )


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


def _socket_bytes(pid: int) -> int:
    """Return what the sockets of the sandbox's network namespace may hold; few sockets count as empty."""
    first = _read(f"/proc/{pid}/net/sockstat").partition("\n")[0].split()
    count = int(first[-1]) if first[:2] == ["sockets:", "used"] else 0
    return count * int(_read(str(SOCKET_BUFFER)) or 0) if count > 100 else 0


def _sizes(pid: int, file: str, names: tuple[str, ...]) -> dict[str, int]:
    """Return the sizes of these names in a file below /proc, in bytes, through a thread that still lives."""
    for folder in _living(pid):
        rows = [row for row in _read(f"{folder}/{file}").splitlines() if row.startswith(names)]
        if rows:
            return {row.split()[0]: int(row.split()[1]) << 10 for row in rows}
    return {}


def _living(pid: int) -> Iterator[str]:
    """Yield the folders that describe a process: its own, then those of its other threads."""
    yield f"/proc/{pid}"
    yield from (task for task in _tasks(pid) if not task.endswith(f"/{pid}"))


def imposed_wait(pids: tuple[int, ...], cpu: float) -> tuple[float, bool]:
    """Return the seconds for which a case was ready while the machine ran others' work; 0 if unknown.

    Also return whether the rest of the case uses time, so that it competes with itself. ``pids``: the init
    process, the case's first process, all others; ``cpu``: what the case used in all. The longest waiting
    thread of the first process decides. While it waited, the case's other threads and processes may have run
    instead, so their time is subtracted. A thread that made itself less important waits by its own choice.
    """
    init_process, *first = pids[:2]
    normal = _priority(f"/proc/{init_process}")
    waits = [(0.0, False)]
    for task in (task for pid in first for task in _tasks(pid) if _priority(task) == normal):
        times = [int(time) / 1e9 for time in _read(f"{task}/schedstat").split()[:2]]
        if len(times) == 2:
            others = cpu - times[0]
            waits.append((times[1] - max(0.0, others), others > BUSY_SECONDS))
    return max(waits)


def _priority(folder: str) -> tuple[str, ...]:
    fields = _stat(folder)
    return (fields[NICE], fields[POLICY]) if len(fields) > POLICY else ()


def own_cpu(pid: int) -> float:
    """Return the CPU time of a process without its children."""
    return sum(map(int, _stat(f"/proc/{pid}")[11:13])) / TICKS_PER_SECOND


def _cpu(pid: int, skipped: int = 0) -> float:
    """Return own CPU time plus that of collected children; only the latter with ``skipped`` = 2."""
    return sum(map(int, _stat(f"/proc/{pid}")[11 + skipped : 15])) / TICKS_PER_SECOND


def _stat(folder: str) -> list[str]:
    return _read(f"{folder}/stat").rpartition(")")[2].split()


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
