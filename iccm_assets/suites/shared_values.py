"""Plans whose arguments refer to shared values: find those of a plan, and add them to one.

A plan of the judge's runner may end with a dict of values by name. References among its arguments, and among
these values themselves, stand for the same object each time. (D2, J1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iccm_assets.suites.suite_values import list_references

_PARTS = {"call": 4, "new": 5}  # before the shared values


def get_shared(plan: tuple[Any, ...]) -> dict[str, Any]:
    """Return the shared values of a plan."""
    rest = plan[_PARTS.get(plan[0], len(plan)) :][:1]
    return rest[0] if rest and isinstance(rest[0], dict) else {}


def attach_shared(plan: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Add to a plan without any the shared values that it refers to, and those that these refer to."""
    names = dict.fromkeys(list_references(list(plan[2:])))
    pending = [name for name in names if name in values]
    while pending:
        further = [name for name in list_references(values[pending.pop()]) if name not in names]
        names |= dict.fromkeys(further)
        pending += [name for name in dict.fromkeys(further) if name in values]
    return (*plan, {name: values[name] for name in values if name in names}) if names else plan
