"""The record of all erasures outside the database, so that a restored backup is erased again. (V4)

`erasures.jsonl` holds hashes and times, no names and no text. It lies in the home and wherever backups were
written to, in a directory or below a URL, which the database remembers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.atomic_directories import fsync
from iccm_assets.db import tables as t
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.errors import InputError, StorageError
from iccm_assets.governance.erasure import RecordedErasure, erase_again, load_recorded_erasures
from iccm_assets.object_storage import open_url, translated_errors, write_object

LEDGER_FILE = "erasures.jsonl"
_KEY = "backups"
_LINE = TypeAdapter(RecordedErasure)


def record_erasures(engine: sa.Engine, home: Path) -> list[str]:
    """Write every erasure of the database to all ledgers; return what is out of reach.

    A ledger in the home must be writable: raises ``OSError``.
    """
    out_of_reach = []
    with engine.begin() as conn:
        acquire_lock(conn, Lock.ERASURE)  # one writer at a time
        erasures = load_recorded_erasures(conn)
        if not erasures:
            return []
        home.mkdir(parents=True, exist_ok=True)
        write_ledger(home, erasures)
        for directory in load_directories(conn):
            try:
                write_ledger(directory, erasures)
            except (OSError, InputError, StorageError) as error:
                out_of_reach.append(
                    f"backups in {directory}, whose {LEDGER_FILE} cannot be written"
                    f" ({getattr(error, 'strerror', None) or error}): a restore of them needs this home's"
                )
    return out_of_reach


def read_ledger(directory: str | Path) -> list[RecordedErasure]:
    """Read the ledger of a directory or below a URL, empty if there is none; ``InputError`` when damaged."""
    path = f"{directory}/{LEDGER_FILE}"
    lines = (_read_text(path) or "").splitlines()
    try:
        return [_LINE.validate_json(line) for line in lines]
    except ValidationError as error:
        raise InputError(f"{path} is damaged ({error.errors()[0]['msg']})") from None


def _read_text(path: str) -> str | None:
    if "://" not in path:
        return Path(path).read_text(encoding="utf-8") if Path(path).exists() else None
    with translated_errors(path):
        fs, key = open_url(path)
        try:
            return bytes(fs.cat_file(key)).decode("utf-8")
        except FileNotFoundError:
            return None


def write_ledger(location: str | Path, erasures: Iterable[RecordedErasure]) -> None:
    """Add erasures to the ledger of a directory or below a URL, which is replaced as a whole."""
    known = merge_erasures(read_ledger(location), erasures)
    if "://" in str(location):
        url = f"{location}/{LEDGER_FILE}"
        with translated_errors(url, writing=True):
            fs, key = open_url(url)
            write_object(fs, key, b"".join(_LINE.dump_json(erasure) + b"\n" for erasure in known))
        return
    directory = Path(location)
    path, partial = directory / LEDGER_FILE, directory / f".{LEDGER_FILE}.{os.getpid()}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.writelines(_LINE.dump_json(erasure) + b"\n" for erasure in known)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    fsync(directory)


def repeat_erasures(conn: sa.Connection, recorded: Iterable[RecordedErasure], actor: str) -> list[int]:
    """Erase again what the database does not know to be erased; return the conversations of each erasure."""
    applied = set(map(get_identity, load_recorded_erasures(conn)))
    return [erase_again(conn, each, actor) for each in recorded if get_identity(each) not in applied]


def merge_erasures(*lists: Iterable[RecordedErasure]) -> list[RecordedErasure]:
    """Return each erasure once, oldest first."""
    known = {get_identity(erasure): erasure for erasures in lists for erasure in erasures}
    return [known[key] for key in sorted(known)]


def get_identity(erasure: RecordedErasure) -> tuple[datetime, str]:
    """Return what an erasure has in common with its copies in other databases."""
    return erasure.erased_at, erasure.subject_sha256


def load_directories(conn: sa.Connection) -> list[str]:
    """Return the directories that backups of this database were written to."""
    return list(load_backup_facts(conn).get("directories", ()))


def load_backup_facts(conn: sa.Connection) -> dict[str, Any]:
    """Return the facts that the database has about its backups: `platform`, its id, and `directories`."""
    value = conn.execute(sa.select(t.platform.c.value).where(t.platform.c.key == _KEY)).scalar_one_or_none()
    return value or {}


def store_backup_facts(conn: sa.Connection, facts: dict[str, Any]) -> None:
    """Replace these facts."""
    statement = insert(t.platform).values(key=_KEY, value=facts)
    conn.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"value": facts}))
