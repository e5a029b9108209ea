"""The result of a check of the platform, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

MAX_SAMPLE_IDS = 20


@dataclass(frozen=True)
class CheckResult:
    """Whether a check passed, the numbers in words, and the recovery if it did not.

    ``severity`` is that of a failure. ``sample_ids`` are ids of rows to inspect, never content.
    """

    passed: bool
    description: str
    recovery: str
    severity: Literal["error", "warning"] = "error"
    metrics: Mapping[str, float] = field(default_factory=dict)
    sample_ids: tuple[str, ...] = ()


def sample_ids(ids: Sequence[str] | Sequence[int]) -> tuple[str, ...]:
    """Return the first ids as text, at most ``MAX_SAMPLE_IDS``."""
    return tuple(str(row_id) for row_id in ids[:MAX_SAMPLE_IDS])
