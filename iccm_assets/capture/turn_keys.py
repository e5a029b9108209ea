"""Keys of turns in files that give their turns no ids: each names a turn and all above it."""

from __future__ import annotations

import hashlib
import json


class KeyChain:
    """Derives the key of a turn from that of the turn above it, so that a copied beginning has the same keys.

    ``seed``: what conversations that are no copies of each other do not share.
    """

    def __init__(self, seed: str = "") -> None:
        self.last = seed

    def add(self, *parts: object) -> str:
        """Return the key of the next turn: a digest, so that no rule takes it for a secret."""
        content = json.dumps([self.last, *parts], sort_keys=True)
        self.last = "m" + hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:19]
        return self.last
