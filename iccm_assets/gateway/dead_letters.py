"""Keep the records that cannot be stored, with the reason, in ``$ICCM_HOME/spool/dead_letters.jsonl``."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def dead_letters_path(spool: Path) -> Path:
    """Return the file's path below the directory of all spools."""
    return spool / "dead_letters.jsonl"


def append_dead_letter(spool: Path, record: Mapping[str, Any]) -> None:
    """Append a record; other processes may append at the same time."""
    with _locked(dead_letters_path(spool)) as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def delete_dead_letters(spool: Path, is_deleted: Callable[[Mapping[str, Any]], bool]) -> int:
    """Delete the records for which this holds, and return their number.

    The file is overwritten in place, because gateways may be waiting for the lock on it.
    """
    path = dead_letters_path(spool)
    if not path.exists():
        return 0
    with _locked(path) as stream:
        lines = stream.read().splitlines(keepends=True)
        kept = [line for line in lines if not is_deleted(json.loads(line))]
        if len(kept) < len(lines):
            stream.seek(0)
            stream.write(b"".join(kept))
            stream.truncate()
    return len(lines) - len(kept)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream
