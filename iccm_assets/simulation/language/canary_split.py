"""The split between canary set and traffic, decided before anything else is drawn (X3, F4)."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from iccm_assets.simulation.language.families import FAMILIES
from iccm_assets.simulation.language.generator import ProgramDraft, draw_program, structural_signature

CANARY_SEED = 2025
RESERVED_PER_FAMILY = 64


@lru_cache(maxsize=2)
def reserved_programs(seed: int = CANARY_SEED) -> dict[str, tuple[ProgramDraft, ...]]:
    """Draw, by family, the programs reserved for the canary set, all with different signatures."""
    programs: dict[str, tuple[ProgramDraft, ...]] = {}
    for family in FAMILIES:
        rng = Random(f"canary {seed} {family}")
        distinct: dict[str, ProgramDraft] = {}
        while len(distinct) < RESERVED_PER_FAMILY:
            program = draw_program(family, rng)
            distinct.setdefault(structural_signature(program.document), program)
        programs[family] = tuple(distinct.values())
    return programs


@lru_cache(maxsize=2)
def reserved_signatures(seed: int = CANARY_SEED) -> frozenset[str]:
    """Return the signatures that nothing else in the simulation may have."""
    return frozenset(
        structural_signature(program.document)
        for programs in reserved_programs(seed).values()
        for program in programs
    )
