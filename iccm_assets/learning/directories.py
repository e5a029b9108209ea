"""Directories that appear whole or not at all: staging, fsync, rename, read-only (L6).

A reader never sees half a directory: everything is written and flushed under another name on the same
file system, then renamed. A crash leaves at most a staging directory, which ``sweep`` removes.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

STAGING = ".staging"
READ_ONLY_FILE = 0o444
READ_ONLY_DIRECTORY = 0o555


def flush(path: Path) -> None:
    """fsync a file, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """fsync every file and directory of a tree, leaves first."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            flush(Path(folder) / name)
        flush(Path(folder))


def freeze(directory: Path) -> None:
    """Make a tree read-only (root can still write; verification notices)."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            (Path(folder) / name).chmod(READ_ONLY_FILE)
        Path(folder).chmod(READ_ONLY_DIRECTORY)


def move_into_place(staging: Path, target: Path) -> None:
    """Rename a flushed staging directory to its final name and freeze it there.

    Raises ``OSError`` when the target exists and is not empty; the staging directory is then unchanged.
    """
    # A directory must be writable to be moved to another parent, so it is frozen only afterwards.
    staging.rename(target)
    flush(target.parent)
    freeze(target)


def remove_tree(directory: Path) -> None:
    """Delete a tree even when it is read-only; a missing one is fine."""
    if not directory.exists():
        return
    for folder, _, _ in os.walk(directory):
        Path(folder).chmod(stat.S_IRWXU)
    shutil.rmtree(directory, ignore_errors=False)


def stale(staging_root: Path, older_than_seconds: float, now: float | None = None) -> Iterator[Path]:
    """Staging directories in which nothing was written for so long."""
    limit = (time.time() if now is None else now) - older_than_seconds
    if not staging_root.is_dir():
        return
    for directory in sorted(staging_root.iterdir()):
        if max((path.stat().st_mtime for path in [directory, *directory.rglob("*")]), default=0.0) < limit:
            yield directory
