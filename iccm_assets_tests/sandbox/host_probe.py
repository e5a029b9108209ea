"""Snapshots of what must be the same on the host before and after hostile code ran."""

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

    The tests' own PostgreSQL is ignored: its workers come and go.
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
    """Assert that the host is unchanged; the kernel has ten seconds to remove ended processes."""
    for _ in range(200):
        if not _more(snapshot(), before):
            return
        time.sleep(0.05)
    assert not _more(snapshot(), before)


def _more(now: Host, before: Host) -> str:
    """Describe what appeared since ``before``; a warm pool of the judge may end at any time."""
    new = now.processes - before.processes or now.files - before.files
    more = now.descriptors > before.descriptors or now.mounts != before.mounts
    return f"{now} after {before}" if new or more else ""


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "ended"


def _names(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []
