"""Limit a sandbox by a control group (version 2), where this user may make one.

The kernel then counts everything that a sandbox uses and holds the limit exactly. Root may make control
groups, and so may a user in a part of the hierarchy that systemd delegates. Without one the sampler holds the
limits (``resource_usage.py``), and fewer sandboxes run at a time, so that what it may miss fits into the
memory. (J3)
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from iccm_assets.settings import Settings

_log = logging.getLogger(__name__)

CONTROLLERS = frozenset(("memory", "pids"))
PREFIX = "iccm-judge"
REMOVAL_SECONDS = 2.0
# The most that one sandbox may hold for a moment, as a multiple of its limit.
EXACT_FACTOR, SAMPLED_FACTOR = 1.25, 2.0
USABLE_MEMORY = 0.75  # share of the machine's memory for all sandboxes together
_numbers = itertools.count()


@dataclass(frozen=True)
class ControlGroup:
    """A control group of one sandbox."""

    path: Path

    def add(self, pid: int) -> None:
        """Move a process into the group; what it starts from now on is in it, too."""
        (self.path / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def read_memory(self) -> int:
        """Return the bytes that cannot be reclaimed: memory of processes, tmpfs, the kernel's for both."""
        fields = _read_fields(self.path / "memory.stat")
        kernel = fields.get("kernel", 0) - fields.get("slab_reclaimable", 0)
        return sum(fields.get(name, 0) for name in ("anon", "shmem", "sock")) + max(0, kernel)

    def read_cpu(self) -> float:
        """Return the CPU seconds of every process that ever was in the group."""
        return _read_fields(self.path / "cpu.stat").get("usage_usec", 0) / 1e6

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel ended a process of the group because of the memory limit."""
        return _read_fields(self.path / "memory.events").get("oom_kill", 0) > 0

    def remove(self) -> None:
        """Remove the group, which has to be empty; the kernel needs a moment after its last process."""
        deadline = time.monotonic() + REMOVAL_SECONDS
        while self.path.exists():
            try:
                self.path.rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    _log.warning("the control group %s cannot be removed: %s", self.path, error)
                    return
                time.sleep(0.005)


def create_group(memory_bytes: int, processes: int) -> ControlGroup | None:
    """Create a control group with these limits; None where this user may not."""
    parent = find_parent()
    if parent is None:
        return None
    group = ControlGroup(parent / f"{PREFIX}-{os.getpid()}-{next(_numbers)}")
    try:
        group.path.mkdir()
        for name, limit in (
            ("memory.max", int(memory_bytes * EXACT_FACTOR)),
            ("memory.swap.max", 0),
            ("pids.max", 2 * processes + 1),  # threads count, too
        ):
            if (group.path / name).exists():  # no swap: no such file
                (group.path / name).write_text(str(limit), encoding="ascii")
    except OSError as error:
        _log.warning("no control group, memory is sampled: %s", error)
        with contextlib.suppress(OSError):
            group.path.rmdir()
        return None
    return group


@cache
def find_parent(root: Path = Path("/proc/self")) -> Path | None:
    """Find the nearest control group above this process in which this user may make limited ones."""
    mount, own = _find_hierarchy(root)
    if mount is None:
        return None
    folder = (mount / own.lstrip("/")).resolve()
    for path in (folder, *folder.parents):
        if not path.is_relative_to(mount):
            return None
        if _is_usable(path):
            _remove_stale(path)
            return path
    return None


def _find_hierarchy(root: Path) -> tuple[Path | None, str]:
    """Return where control groups (version 2) are mounted, and which one this process is in."""
    try:
        rows = [row.split() for row in (root / "mountinfo").read_text(encoding="utf-8").splitlines()]
        groups = (root / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, ""
    mounts = [row[4] for row in rows if "-" in row and row[row.index("-") + 1] == "cgroup2"]
    own = next((group.removeprefix("0::") for group in groups if group.startswith("0::")), "")
    return (Path(mounts[0]) if mounts and own else None), own


def _is_usable(path: Path) -> bool:
    """Whether children of this group are limited, and this user may make one and move processes there."""
    try:
        controllers = (path / "cgroup.subtree_control").read_text(encoding="ascii").split()
    except OSError:
        return False
    writable = os.access(path, os.W_OK | os.X_OK) and os.access(path / "cgroup.procs", os.W_OK)
    return writable and CONTROLLERS.issubset(controllers)


def _remove_stale(parent: Path) -> None:
    """Remove the groups of judges that were killed."""
    for path in parent.glob(f"{PREFIX}-*-*"):
        if not psutil.pid_exists(int(path.name.split("-")[-2])):
            with contextlib.suppress(OSError):  # still in use, or another one removes it
                path.rmdir()


def _read_fields(path: Path) -> dict[str, int]:
    """Read a file of names and numbers; empty where the kernel has none."""
    try:
        rows = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {name: int(number) for name, _, number in (row.partition(" ") for row in rows)}


def worst_case_bytes(settings: Settings) -> int:
    """Return what one sandbox may hold for a moment."""
    factor = EXACT_FACTOR if find_parent() else SAMPLED_FACTOR
    return int((settings.judge.memory_mib << 20) * factor)


def count_workers(settings: Settings, total_bytes: int | None = None) -> int:
    """Return how many sandboxes may run at a time: as set, or as many as fit into the memory."""
    total = psutil.virtual_memory().total if total_bytes is None else total_bytes
    return max(1, min(settings.judge.workers, int(total * USABLE_MEMORY) // worst_case_bytes(settings)))
