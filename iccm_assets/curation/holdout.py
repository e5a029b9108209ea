"""Which sessions are held out of training for ever (F3)."""

from __future__ import annotations

import hashlib


def is_held_out(session_id: str, share: float) -> bool:
    """A sticky ``share`` of sessions, by a hash of the id: the same answer everywhere and always.

    A larger share only adds sessions.
    """
    digest = hashlib.blake2b(session_id.encode("utf-8"), digest_size=8, person=b"iccm-held-out").digest()
    return int.from_bytes(digest, "big") < share * 2**64
