"""Which arm a session belongs to (G2). Pure, and the same on every replica."""

from __future__ import annotations

import hashlib
from typing import Literal

Arm = Literal["production", "canary"]


def position(rollout_id: int, session_key: str) -> float:
    """Where a session lies in [0, 1), evenly spread, drawn anew for every rollout."""
    key = f"{rollout_id}:{session_key}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"iccm-split").digest(), "big")
    # 53 bits are what a float holds exactly: the greatest position stays below 1.
    return (number >> 11) / (1 << 53)


def arm_of(rollout_id: int, session_key: str, weight: float) -> Arm:
    """The canary arm for a share ``weight`` of all sessions; raising it only adds sessions."""
    return "canary" if position(rollout_id, session_key) < weight else "production"
