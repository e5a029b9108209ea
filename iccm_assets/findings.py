"""What a check of the platform found: plain values, whoever shows them (U4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """Whether all is well, in one sentence with its numbers, and what to do when it is not.

    ``error`` is how bad a red one is: an error, or a warning. ``ids`` names rows to look at, never content.
    """

    passed: bool
    text: str
    recovery: str
    error: bool = True
    numbers: Mapping[str, float] = field(default_factory=dict)
    ids: tuple[str, ...] = ()


MOST_NAMED = 20


def named(ids: list[str] | list[int]) -> tuple[str, ...]:
    """The first of some ids, as text: enough to start looking."""
    return tuple(str(one) for one in ids[:MOST_NAMED])
