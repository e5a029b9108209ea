"""What was answered, on this machine's disk before the answer goes out, until PostgreSQL has it (G5).

Every process appends to segment files of its own in ``$ICCM_HOME/spool/<replica>/``; a frame is length,
CRC-32 and JSON. An append is one ``write``: it survives the process's death, however sudden. It is not
forced to the disk: a power cut may take what was answered since the last delivery, about a second.

A segment is delivered whole and then deleted; delivering it again changes nothing. Segments whose process
is dead (its lock on the directory is free) are delivered by whichever gateway process finds them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from iccm_assets.errors import IccmError

log = logging.getLogger("iccm.gateway")

_HEAD = struct.Struct("<II")
LARGEST_RECORD = 64 << 20
SUFFIX = ".log"


class SpoolFull(IccmError):
    """The answer could not be recorded and is not given; nothing acknowledged was lost."""


class Spool:
    """The spool of one process: ``append`` before acknowledging, ``closed_segments`` to deliver."""

    def __init__(self, root: Path, replica: str, max_bytes: int) -> None:
        self.root, self.directory = root, root / replica
        self._max = max_bytes
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owned = _locked(self.directory)
        if self._owned is None:
            raise IccmError(f"{self.directory} is in use by another process")
        self._mutex = threading.Lock()
        self._number = 0
        self._file: int | None = None
        self._size = 0
        self._waiting: dict[Path, int] = {}

    @property
    def size(self) -> int:
        """Bytes not delivered yet, of this process."""
        with self._mutex:
            return self._size + sum(self._waiting.values())

    def append(self, record: dict[str, Any]) -> None:
        """Record it; returns when it would survive this process. Raises ``SpoolFull``."""
        payload = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        frame = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        with self._mutex:
            if self._size + sum(self._waiting.values()) + len(frame) > self._max:
                raise SpoolFull(f"{self._max >> 20} MiB wait for the database")
            try:
                self._write(frame)
            except OSError as error:
                raise SpoolFull(f"{self.directory}: {error.strerror}") from None

    def closed_segments(self) -> list[Path]:
        """The segments nothing is appended to any more, oldest first; closes the present one."""
        with self._mutex:
            if self._file is not None and self._size:
                os.close(self._file)
                self._waiting[self._path()] = self._size
                self._file, self._size = None, 0
            return list(self._waiting)

    def delivered(self, segment: Path) -> None:
        """Delete a segment whose records PostgreSQL has."""
        segment.unlink(missing_ok=True)
        with self._mutex:
            self._waiting.pop(segment, None)

    def release(self) -> None:
        """Give the directory up; an empty one is removed, a full one is for whoever adopts it."""
        with self._mutex:
            if self._file is not None:
                os.close(self._file)
                if not self._size:
                    self._path().unlink(missing_ok=True)
                self._file = None
            if self._owned is not None:
                _unlock(self.directory, self._owned)
                self._owned = None

    def _path(self) -> Path:
        return self.directory / f"{self._number:08d}{SUFFIX}"

    def _write(self, frame: bytes) -> None:
        if self._file is None:
            self._number += 1
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._file, self._size = os.open(self._path(), flags, 0o600), 0
        view = memoryview(frame)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            # Half a frame in the middle would hide all that is appended behind it.
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(frame)


def read_segment(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a segment, up to where its writer was killed.

    A damaged record in the middle ends it too: the file is then kept beside, with ``.damaged`` behind its
    name, and the loss is logged.
    """
    with path.open("rb") as stream:
        while head := stream.read(_HEAD.size):
            length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 1)
            payload = stream.read(length) if length <= LARGEST_RECORD else b""
            if len(payload) != length or zlib.crc32(payload) != checksum:
                _report(path, bool(stream.read(1)))
                return
            yield json.loads(payload)


def orphans(root: Path, own: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Directories of dead processes, with their segments; each is locked while it is looked at."""
    if not root.is_dir():
        return
    for directory in sorted(root.iterdir()):
        if directory == own or not directory.is_dir():
            continue
        lock = _locked(directory)
        if lock is None:
            continue
        try:
            yield directory, sorted(directory.glob(f"*{SUFFIX}"))
        finally:
            _unlock(directory, lock)


def _report(path: Path, more: bool) -> None:
    if not more:
        return  # the end of a killed writer: what it had not written was not acknowledged
    kept = path.with_suffix(f"{SUFFIX}.damaged")
    with suppress(OSError):
        os.link(path, kept)
    log.error("%s is damaged in the middle: what lies behind is not delivered, it is kept as %s", path, kept)


def _locked(directory: Path) -> int | None:
    """A lock on the directory that ends with this process, or None when somebody has it."""
    try:
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _unlock(directory: Path, handle: int) -> None:
    """Give the lock back; a directory with nothing left in it goes."""
    with suppress(OSError):
        if {path.name for path in directory.iterdir()} == {"lock"}:
            (directory / "lock").unlink()
            directory.rmdir()
    os.close(handle)
