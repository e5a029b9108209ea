"""The result of a check of the platform, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_SAMPLE_IDS = 20


@dataclass(frozen=True)
class CheckResult:
    """Whether a check passed, described with its numbers, and the recovery when it did not.

    ``error``: a failure is an error, else a warning. ``ids`` name rows to look at, never content.
    """

    passed: bool
    description: str
    recovery: str
    error: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)
    sample_ids: tuple[str, ...] = ()


def sample_ids(ids: Sequence[str] | Sequence[int]) -> tuple[str, ...]:
    """Return the first ids as text, at most ``MOST_NAMED``."""
    return tuple(str(row_id) for row_id in ids[:MAX_SAMPLE_IDS])
