"""Which functions belong to the canary set, decided before anything else is drawn (X3, F4)."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from iccm_assets.reference.generator import Sketch, shape, sketch
from iccm_assets.reference.world import FAMILIES

CANARY_SEED = 2025
RESERVED_PER_FAMILY = 64


@lru_cache(maxsize=2)
def reserved(seed: int = CANARY_SEED) -> dict[str, tuple[Sketch, ...]]:
    """By family, the functions kept apart for the canary set, all of different shape."""
    kept: dict[str, tuple[Sketch, ...]] = {}
    for family in FAMILIES:
        rng = Random(f"canary {seed} {family}")
        found: dict[str, Sketch] = {}
        while len(found) < RESERVED_PER_FAMILY:
            item = sketch(family, rng)
            found.setdefault(shape(item.draft.document), item)
        kept[family] = tuple(found.values())
    return kept


@lru_cache(maxsize=2)
def reserved_shapes(seed: int = CANARY_SEED) -> frozenset[str]:
    """The shapes nothing else in the world may have."""
    return frozenset(shape(item.draft.document) for items in reserved(seed).values() for item in items)
