"""Snapshots of what must be the same on the host before and after hostile code ran."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PLACES = ("/", "/tmp", "/usr", "/dev", "/dev/shm", "/var/tmp", str(Path.home()))
OWN_FOLDER = re.compile(r"/test_[^/]*\d/")  # of a test
FORBIDDEN_NAMES = frozenset(("mine", "label.txt", "server", "0", "case-0", "case-1"))


@dataclass(frozen=True)
class Host:
    """Processes below this one, its descriptors, its mounts, and files under names the attacks use.

    The tests' own PostgreSQL is ignored: its workers come and go. So are disks that tests mount in their own
    folders, which one beside this one may do at any time.
    """

    processes: frozenset[int]
    descriptors: int
    mounts: frozenset[str]
    files: frozenset[str]


def snapshot() -> Host:
    rows = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return Host(
        frozenset(_list_processes()),
        len(os.listdir("/proc/self/fd")),
        frozenset(row for row in rows if not OWN_FOLDER.search(row.split()[4])),
        frozenset(f"{place}/{name}" for place in PLACES for name in _names(place) if name in FORBIDDEN_NAMES),
    )


def _list_processes() -> Iterator[int]:
    """List the children of this process and what runs in sandboxes.

    Processes of its other children do not count: a platform of other tests starts some at any time.
    """
    for child in psutil.Process().children():
        name = _name(child)
        if name != "postgres":
            yield child.pid
        if name == "bwrap":
            with suppress(psutil.NoSuchProcess):
                yield from (inner.pid for inner in child.children(recursive=True))


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
