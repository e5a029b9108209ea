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
from contextlib import suppress
from dataclasses import dataclass

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SHARED_SIZES, UNSHARED_SIZES = (b"RssAnon:", b"RssShmem:", b"VmSwap:"), (b"VmPTE:", b"HugetlbPages:")
SHARES = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")
# A mapping costs the kernel a fraction of this; reading so many more would take seconds.
MAPPING_BYTES = 4096
UNCOUNTED_MAPPINGS = 2000  # of one process; honest ones have some hundreds
BUSY_SECONDS = 0.5  # of CPU by the rest of a case, from which on it competes with itself
SOCKET_BUFFER = "/proc/sys/net/core/wmem_default"
# Fields of /proc/PID/stat, counted after the name.
FAULTS, TIMES, NICE, POLICY = 7, 11, 16, 38  # FAULTS, TIMES: four fields each, with children


@dataclass(frozen=True)
class ResourceUsage:
    """Memory in bytes (pages of processes plus what the kernel keeps for them), CPU in seconds.

    ``pages`` (bytes) is the part of ``memory`` that processes may share, ``faults`` the number of times that
    a process was given a page, ``pids`` the init process and all its descendants, as the host numbers them.
    """

    memory: int
    pages: int
    faults: int
    cpu: float
    files: int
    pids: tuple[int, ...]


def descendant_pids(pid: int) -> list[int]:
    """Return ``pid`` and all its descendants, as host pids."""
    pids = [pid]
    for parent in pids:  # grows while it is walked
        pids += [int(child) for task in _tasks(parent) for child in _read(f"{task}/children").split()]
    return pids


def measure_usage(
    pid: int, tmpfs: tuple[str, ...], extra: int = 0, *, divided: bool = False
) -> ResourceUsage:
    """Measure what the tree below ``pid`` uses now, without the init process's own time.

    Shared pages count once for each of their users, unless they are ``divided`` among them, which takes ten
    times as long and is undone where the kernel does not provide it. ``extra`` bytes are added.
    """
    pids = descendant_pids(pid)
    tmpfs_bytes, files = _tmpfs_usage(pid, tmpfs)
    memory, pages, faults, cpu = tmpfs_bytes + extra + _socket_bytes(pid), 0, 0, 0.0
    for process in pids:
        size = _sizes(process, "status", SHARED_SIZES + UNSHARED_SIZES)
        memory += sum(size.pop(name, 0) for name in UNSHARED_SIZES)
        shares = _sizes(process, "smaps_rollup", SHARES) if divided else {}
        pages += sum((shares or size).values())
        counts = [int(count) for count in _stat(f"/proc/{process}")[FAULTS : TIMES + 4]]
        faults += sum(counts[:4])
        cpu += sum(counts[4 if process != pid else 6 :]) / TICKS_PER_SECOND
    return ResourceUsage(memory + pages, pages, faults, cpu, files, tuple(pids))


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
    first = _read(f"/proc/{pid}/net/sockstat").partition(b"\n")[0].split()
    count = int(first[-1]) if first[:2] == [b"sockets:", b"used"] else 0
    return count * int(_read(SOCKET_BUFFER) or 0) if count > 100 else 0


def _sizes(pid: int, file: str, names: tuple[bytes, ...]) -> dict[bytes, int]:
    """Return the sizes of these names in a file below /proc, in bytes, through a thread that still lives."""
    for folder in _living(pid):
        text = _read(f"{folder}/{file}")
        starts = ((name, text.find(b"\n" + name)) for name in names)
        sizes = {
            name: int(text[at + 1 + len(name) :].split(None, 1)[0]) << 10 for name, at in starts if at >= 0
        }
        if sizes:
            return sizes
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


def _priority(folder: str) -> tuple[bytes, ...]:
    fields = _stat(folder)
    return (fields[NICE], fields[POLICY]) if len(fields) > POLICY else ()


def lower_priority(pids: Iterable[int], nice: int, group_nice: int, init_pid: int) -> None:
    """Make processes less important; what they start from now on is so, too.

    ``group_nice`` is for their session, but not for that of the init process.
    """
    for pid in pids:
        for task in _tasks(pid):
            with suppress(OSError):  # it has just ended
                os.setpriority(os.PRIO_PROCESS, int(task.rpartition("/")[2]), nice)
        if pid != init_pid:
            with suppress(OSError), open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as group:
                group.write(str(group_nice))


def own_cpu(pid: int) -> float:
    """Return the CPU time of a process without its children."""
    return sum(map(int, _stat(f"/proc/{pid}")[TIMES : TIMES + 2])) / TICKS_PER_SECOND


def _stat(folder: str) -> list[bytes]:
    return _read(f"{folder}/stat").rpartition(b")")[2].split()


def _tasks(pid: int) -> list[str]:
    """Return the folders of a process's threads; none when it has just ended."""
    try:
        return [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _read(path: str) -> bytes:
    """Read a file below /proc; empty when its process has just ended. Streams would double the time."""
    data = b""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while piece := os.read(descriptor, 1 << 16):
                data += piece
        finally:
            os.close(descriptor)
    except OSError:
        return b""
    return data
