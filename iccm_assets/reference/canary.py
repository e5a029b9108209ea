"""The split between canary set and traffic, decided before anything else is drawn (X3, F4)."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from iccm_assets.reference.generator import Sketch, shape, sketch
from iccm_assets.reference.world import FAMILIES

CANARY_SEED = 2025
RESERVED_PER_FAMILY = 64


@lru_cache(maxsize=2)
def reserved(seed: int = CANARY_SEED) -> dict[str, tuple[Sketch, ...]]:
    """Draw, by family, the programs reserved for the canary set, all with different signatures."""
    programs: dict[str, tuple[Sketch, ...]] = {}
    for family in FAMILIES:
        rng = Random(f"canary {seed} {family}")
        distinct: dict[str, Sketch] = {}
        while len(distinct) < RESERVED_PER_FAMILY:
            program = sketch(family, rng)
            distinct.setdefault(shape(program.document), program)
        programs[family] = tuple(distinct.values())
    return programs


@lru_cache(maxsize=2)
def reserved_shapes(seed: int = CANARY_SEED) -> frozenset[str]:
    """Return the signatures that nothing else in the simulation may have."""
    return frozenset(shape(program.document) for programs in reserved(seed).values() for program in programs)
