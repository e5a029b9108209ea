"""Directories that appear complete or not at all: staging, fsync, rename, read-only (L6).

A reader never sees half a directory: everything is written and flushed under another name on the same
file system, then renamed. A crash leaves at most a staging directory, which maintenance removes later.
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


def fsync(path: Path) -> None:
    """Fsync a file, or the entries of a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Fsync every file and directory of a tree, leaves first."""
    for path in _leaves_first(directory):
        fsync(path)


def make_read_only(directory: Path) -> None:
    """Make a tree read-only. Root can still write to it; verification detects that."""
    for path in _leaves_first(directory):
        path.chmod(READ_ONLY_DIRECTORY if path.is_dir() else READ_ONLY_FILE)


def publish_directory(staging: Path, target: Path) -> None:
    """Rename a flushed staging directory to its final name and make it read-only.

    Raises ``OSError`` if the target exists and is not empty; the staging directory is then unchanged.
    """
    # A directory must be writable to move to another parent, so it becomes read-only only afterwards.
    staging.rename(target)
    fsync(target.parent)
    make_read_only(target)


def remove_tree(directory: Path) -> None:
    """Delete a tree, even a read-only one; do nothing if it does not exist."""
    if not directory.exists():
        return
    for folder, _, _ in os.walk(directory):
        Path(folder).chmod(stat.S_IRWXU)
    shutil.rmtree(directory, ignore_errors=False)


def find_stale_directories(staging_root: Path, older_than_seconds: float) -> Iterator[Path]:
    """Yield the staging directories without a write for this many wall-clock seconds."""
    limit = time.time() - older_than_seconds
    for directory in sorted(staging_root.glob("*")):
        if max(path.stat().st_mtime for path in [directory, *directory.rglob("*")]) < limit:
            yield directory


def _leaves_first(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory, topdown=False):
        yield from (Path(folder) / name for name in names)
        yield Path(folder)
