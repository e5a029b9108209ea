"""Which families there are: the shipped model knows the base ones, only production sees the new (X1)."""

from __future__ import annotations

from iccm_assets.reference.families.fresh import CYCLE, LEDGER
from iccm_assets.reference.families.lists import SIEVE, TALLY
from iccm_assets.reference.families.numbers import CODES, LIMITS, PRICING, TIERS
from iccm_assets.reference.families.texts import CHECKS, CLEANING
from iccm_assets.reference.families.writing import Family

_BASE = (TIERS, LIMITS, PRICING, CODES, CLEANING, CHECKS, SIEVE, TALLY)
_NEW = (CYCLE, LEDGER)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_BASE, *_NEW)}
BASE_FAMILIES: tuple[str, ...] = tuple(family.name for family in _BASE)
NEW_FAMILIES: tuple[str, ...] = tuple(family.name for family in _NEW)
