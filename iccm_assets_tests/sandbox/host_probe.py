"""What must be the same on the host before and after something hostile ran."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

PLACES = ("/", "/tmp", "/usr", "/dev", "/dev/shm", "/var/tmp", str(Path.home()))
FORBIDDEN_NAMES = frozenset(("mine", "label.txt", "server", "0", "case-0", "case-1"))


@dataclass(frozen=True)
class Host:
    """Processes below this one, its descriptors, its mounts, and files under names the attacks use.

    The tests' own PostgreSQL is looked past: its workers come and go.
    """

    processes: frozenset[int]
    descriptors: int
    mounts: int
    files: frozenset[str]


def snapshot() -> Host:
    return Host(
        frozenset(
            child.pid for child in psutil.Process().children(recursive=True) if _name(child) != "postgres"
        ),
        len(os.listdir("/proc/self/fd")),
        len(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()),
        frozenset(f"{place}/{name}" for place in PLACES for name in _names(place) if name in FORBIDDEN_NAMES),
    )


def assert_unchanged(before: Host) -> None:
    """Fails unless the host is as it was; the kernel gets ten seconds to bury the dead."""
    for _ in range(200):
        if not _more(snapshot(), before):
            return
        time.sleep(0.05)
    assert not _more(snapshot(), before)


def _more(now: Host, before: Host) -> str:
    """What there is now that was not there before; a nursery of the judge's may end at any time."""
    new = now.processes - before.processes or now.files - before.files
    more = now.descriptors > before.descriptors or now.mounts != before.mounts
    return f"{now} after {before}" if new or more else ""


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "gone"


def _names(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []
