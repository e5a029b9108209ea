"""All families: the packaged model is trained on the base ones, only production sees the new ones (X1)."""

from __future__ import annotations

from iccm_assets.simulation.language.families.common import Family
from iccm_assets.simulation.language.families.guards import GUARDS
from iccm_assets.simulation.language.families.lists import SIEVE, TALLY
from iccm_assets.simulation.language.families.new_domains import CYCLE, ENDS, LEDGER, RULES, SHARES
from iccm_assets.simulation.language.families.numbers import BANDS, CODES, LIMITS, PRICING, TIERS
from iccm_assets.simulation.language.families.objects import GAUGES, QUEUES, STACKS
from iccm_assets.simulation.language.families.texts import CHECKS, CLEANING, FORMS

_BASE = (
    TIERS, LIMITS, PRICING, CODES, CLEANING, CHECKS, SIEVE, TALLY, BANDS, FORMS, GUARDS, GAUGES, STACKS,
)  # fmt: skip
_NEW = (CYCLE, LEDGER, SHARES, RULES, ENDS, QUEUES)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_BASE, *_NEW)}
BASE_FAMILIES = tuple(family.name for family in _BASE)
NEW_FAMILIES = tuple(family.name for family in _NEW)
