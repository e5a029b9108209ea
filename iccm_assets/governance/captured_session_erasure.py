"""Erase from the sessions that a hook has captured on this machine and the platform has not imported. (V2)"""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.capture.claude_code.session_spool import SPOOL, list_session_files
from iccm_assets.capture.conversations import erased_session_key
from iccm_assets.governance.erasure import DataSubject

_ERASED = sa.text("select session_id from iccm.conversations where erased_at is not null")


def erase_captured_sessions(engine: sa.Engine, home: Path, subject: DataSubject | None) -> list[str]:
    """Delete the files of erased sessions, and those that name the subject; return what is out of reach."""
    files = list_session_files(home)
    if not files:
        return []
    with engine.connect() as conn:
        erased = set(conn.execute(_ERASED).scalars())
    name = subject.value if subject is not None and subject.kind == "session" else None
    remaining = 0
    for path, session in files.items():
        is_erased = session is not None and (session == name or erased_session_key(session) in erased)
        if is_erased or (name is not None and _holds(path, name)):
            path.unlink(missing_ok=True)
            path.with_suffix(".reason").unlink(missing_ok=True)
        else:
            remaining += 1
    if remaining and subject is not None and subject.kind == "user":
        return [
            f"{remaining} captured sessions in {home / SPOOL}, which name no user until they are imported"
        ]
    return []


def _holds(path: Path, session: str) -> bool:
    """Whether a file holds the session's id, as that of a session it was forked from does."""
    quoted = json.dumps(session).encode()
    try:
        with path.open("rb") as stream:
            return any(quoted in line for line in stream)
    except FileNotFoundError:
        return False
