"""The split between canary set, audit set and everything else (X3, F4).

The canary set is drawn before anything else. The audit set is drawn from another seed, without what the
canary set or the base model's training has; neither the gate nor the choice of a recipe reads it.
"""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from random import Random

from iccm_assets.settings import PACKAGED_AUDIT_SET
from iccm_assets.simulation.language.families import FAMILIES
from iccm_assets.simulation.language.generator import ProgramDraft, draw_program, structural_signature
from iccm_assets.simulation.language.grammar import parse

CANARY_SEED, AUDIT_SEED = 2025, 2026
RESERVED_PER_FAMILY = 64


def draw_distinct(name: str, count: int, banned: frozenset[str]) -> dict[str, tuple[ProgramDraft, ...]]:
    """Draw ``count`` programs of each family, all with different signatures and none with a banned one."""
    programs: dict[str, tuple[ProgramDraft, ...]] = {}
    for family in FAMILIES:
        rng = Random(f"{name} {family}")
        distinct: dict[str, ProgramDraft] = {}
        while len(distinct) < count:
            program = draw_program(family, rng)
            signature = structural_signature(program.document)
            if signature not in banned:
                distinct.setdefault(signature, program)
        programs[family] = tuple(distinct.values())
    return programs


@lru_cache(maxsize=2)
def reserved_programs(seed: int = CANARY_SEED) -> dict[str, tuple[ProgramDraft, ...]]:
    """Draw, by family, the programs reserved for the canary set, all with different signatures."""
    return draw_distinct(f"canary {seed}", RESERVED_PER_FAMILY, frozenset())


@lru_cache(maxsize=2)
def canary_signatures(seed: int = CANARY_SEED) -> frozenset[str]:
    """Return the signatures reserved for the canary set."""
    return frozenset(
        structural_signature(program.document)
        for programs in reserved_programs(seed).values()
        for program in programs
    )


@lru_cache(maxsize=2)
def reserved_signatures(seed: int = CANARY_SEED) -> frozenset[str]:
    """Return the signatures that nothing else in the simulation may have: of the canary and the audit set."""
    with gzip.open(PACKAGED_AUDIT_SET, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["requirements"] for line in lines]
    return canary_signatures(seed) | {structural_signature(parse(text)) for text in texts}
