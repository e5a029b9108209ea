"""Sessions that are held out of training permanently (F3)."""

from __future__ import annotations

import hashlib


def is_in_holdout(session_id: str, fraction: float) -> bool:
    """Return whether a session is in the holdout: a fixed ``share`` of sessions, by a hash of the id.

    The same result everywhere and always; a larger share only adds sessions.
    """
    digest = hashlib.blake2b(session_id.encode("utf-8"), digest_size=8, person=b"iccm-held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
