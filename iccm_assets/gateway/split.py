"""Assign sessions to arms: a pure function that gives the same result on every replica (G2)."""

from __future__ import annotations

import hashlib
from typing import Literal

Arm = Literal["production", "canary"]


def session_bucket(rollout_id: int, session_key: str) -> float:
    """Hash a session to [0, 1): uniformly, and independently for every rollout."""
    key = f"{rollout_id}:{session_key}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"iccm-split").digest(), "big")
    # A float represents 53 bits exactly, so the largest result stays below 1.
    return (number >> 11) / (1 << 53)


def assign_arm(rollout_id: int, session_key: str, weight: float) -> Arm:
    """Assign ``weight`` of all sessions to the canary arm; a larger weight only adds sessions."""
    return "canary" if session_bucket(rollout_id, session_key) < weight else "production"
