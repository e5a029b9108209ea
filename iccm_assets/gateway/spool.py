"""Keep responses on local disk before they are sent, until PostgreSQL has stored them (G5).

Each process appends to its own segment files in ``$ICCM_HOME/spool/<replica>/``; a frame is its length, its
CRC-32 and JSON. An append is a single ``write``, so it survives the death of the process at any time. It is
not fsynced: a power failure may lose the responses since the last flush, about a second.

A segment is stored completely and then deleted; storing it again changes nothing. Segments of a dead process
(recognized by the free lock on its directory) are stored by whichever gateway process finds them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from iccm_assets.errors import IccmError

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<II")
MAX_RECORD_BYTES = 64 << 20
SEGMENT_SUFFIX = ".log"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class SpoolFullError(IccmError):
    """The response could not be recorded and was not sent; everything acknowledged is kept."""


class Spool:
    """The spool of one process: ``append`` before acknowledging; flush ``closed_segments``."""

    def __init__(self, root: Path, replica: str, max_bytes: int) -> None:
        self.root, self.directory = root, root / replica
        self._max_bytes = max_bytes
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _try_lock(self.directory)
        if lock is None:
            raise IccmError(f"{self.directory} is in use by another process")
        self._lock = lock
        self._mutex = threading.Lock()
        self._number = 0
        self._file: int | None = None
        self._segment_bytes = 0
        self._closed: dict[Path, int] = {}

    @property
    def pending_bytes(self) -> int:
        """Return the number of bytes not stored yet."""
        with self._mutex:
            return self._segment_bytes + sum(self._closed.values())

    def append(self, record: dict[str, Any]) -> None:
        """Append a record; it then survives this process. Raises ``SpoolFullError``."""
        frame = _make_frame(record)
        with self._mutex:
            if self._segment_bytes + sum(self._closed.values()) + len(frame) > self._max_bytes:
                raise SpoolFullError(f"{self._max_bytes >> 20} MiB wait for the database")
            try:
                self._write(frame)
            except OSError as error:
                raise SpoolFullError(f"{self.directory}: {error.strerror}") from None

    def closed_segments(self) -> list[Path]:
        """Close the current segment, and list the segments that are complete, oldest first."""
        with self._mutex:
            if self._file is not None and self._segment_bytes:
                os.close(self._file)
                self._closed[self._path()] = self._segment_bytes
                self._file, self._segment_bytes = None, 0
            return list(self._closed)

    def delete_segment(self, segment: Path) -> None:
        """Delete a segment whose records are in PostgreSQL."""
        segment.unlink(missing_ok=True)
        with self._mutex:
            self._closed.pop(segment, None)

    def release(self) -> None:
        """Unlock the directory; it is deleted if empty, and otherwise left for another process to recover."""
        with self._mutex:
            if self._file is not None:
                os.close(self._file)
                if not self._segment_bytes:
                    self._path().unlink(missing_ok=True)
                self._file = None
            _unlock(self.directory, self._lock)

    def _path(self) -> Path:
        return self.directory / f"{self._number:08d}{SEGMENT_SUFFIX}"

    def _write(self, frame: bytes) -> None:
        if self._file is None:
            self._number += 1
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._file, self._segment_bytes = os.open(self._path(), flags, 0o600), 0
        remaining = memoryview(frame)
        try:
            while remaining:
                remaining = remaining[os.write(self._file, remaining) :]
        except OSError:
            # An incomplete frame would hide all frames appended after it.
            os.ftruncate(self._file, self._segment_bytes)
            raise
        self._segment_bytes += len(frame)


def read_segment(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a segment, up to the point where its writer was killed.

    A corrupt record before the end also ends it: the file is then kept with the suffix ``.damaged``, and the
    loss is logged.
    """
    with path.open("rb") as stream:
        while header := stream.read(_HEADER.size):
            length, checksum = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, 1)
            payload = stream.read(length) if length <= MAX_RECORD_BYTES else b""
            if len(payload) != length or zlib.crc32(payload) != checksum:
                # At the end of the file this is the frame of a killed writer, which was not acknowledged.
                if stream.read(1):
                    copy = path.with_suffix(f"{SEGMENT_SUFFIX}.damaged")
                    with suppress(OSError):
                        os.link(path, copy)
                    log.error("segment %s is corrupt; remaining records kept in %s", path, copy)
                return
            yield json.loads(payload)


def rewrite_segment(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Delete records from the segment of a dead process, whose directory has to be locked."""
    records = list(read_segment(path))
    kept = [record for record in records if is_kept(record)]
    if not kept:
        path.unlink(missing_ok=True)
    elif len(kept) < len(records):
        copy = path.with_suffix(".rewritten")
        copy.write_bytes(b"".join(map(_make_frame, kept)))
        copy.replace(path)


def _make_frame(record: dict[str, Any]) -> bytes:
    payload = _encode(record).encode()
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def orphaned_segments(root: Path, own: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Iterate over the directories of dead processes and their segments; each is locked meanwhile."""
    for directory in sorted(root.iterdir()) if root.is_dir() else ():
        if directory == own or not directory.is_dir() or (lock := _try_lock(directory)) is None:
            continue
        try:
            yield directory, sorted(directory.glob(f"*{SEGMENT_SUFFIX}"))
        finally:
            _unlock(directory, lock)


def _try_lock(directory: Path) -> int | None:
    """Lock the directory until this process ends; return None if another process holds the lock."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _unlock(directory: Path, lock: int) -> None:
    """Release the lock, and delete the directory if it contains nothing else."""
    with suppress(OSError):
        if {path.name for path in directory.iterdir()} == {"lock"}:
            (directory / "lock").unlink()
            directory.rmdir()
    os.close(lock)
