"""Drift of the domain mix over simulated days (X4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.errors import UsageError

DRIFT_FORMAT = (
    "Write it as FROM:TO (shares of new domains, 0.2:0.7), SHARE, NAME@DAY, or several with commas."
)


@dataclass(frozen=True)
class Drift:
    """Fraction of sessions about new domains, from the first day to the last, and when a domain appears.

    ``appears`` maps a new domain to the day, counted from 1, on which its first session is possible; a domain
    that is not named exists from the first day.
    """

    start: float = 0.5
    end: float = 0.5
    appears: tuple[tuple[str, int], ...] = ()

    def get_share(self, day: int, days: int) -> float:
        """Return the fraction on ``day`` (from 1) of ``days``, interpolated linearly."""
        return self.start + (self.end - self.start) * ((day - 1) / (days - 1) if days > 1 else 0.0)

    def list_present(self, day: int, domains: Sequence[str]) -> list[str]:
        """Return those of the new domains that have appeared by ``day``."""
        first = dict(self.appears)
        return [name for name in domains if first.get(name, 1) <= day]


def parse_drift(text: str, domains: Sequence[str], days: int) -> Drift:
    """Parse ``--drift``, e.g. ``0.2:0.7``, ``cycle@10`` or ``0.1:0.5,cycle@3,ledger@10``.

    Raises ``UsageError`` that names the invalid part.
    """
    shares: tuple[float, float] | None = None
    appears: dict[str, int] = {}
    for part in map(str.strip, text.split(",")):
        if "@" in part:
            name, day = _appearance(part, domains, days)
            if name in appears:
                raise UsageError(f"--drift names {name} twice")
            appears[name] = day
        elif shares is not None:
            raise UsageError(f"--drift {text!r} sets the share of new domains twice", hint=DRIFT_FORMAT)
        else:
            shares = _shares(part)
    start, end = shares or (Drift.start, Drift.end)
    return Drift(start, end, tuple(sorted(appears.items())))


def make_weekly_drift(domains: Sequence[str], weeks: int, start: float = 0.4, end: float = 0.6) -> Drift:
    """Return the drift of a demo: an increasing fraction of sessions about new domains.

    Two thirds of the domains exist from the first day; the others appear one by one over the later weeks.
    """
    if weeks == 1:
        return Drift()
    later = domains[-(-2 * len(domains) // 3) :]
    first = {name: 8 + 7 * (index * (weeks - 1) // len(later)) for index, name in enumerate(later)}
    return Drift(start, end, tuple(sorted(first.items())))


def _shares(part: str) -> tuple[float, float]:
    first, colon, last = part.partition(":")
    try:
        start = float(first)
        end = float(last) if colon else start
    except ValueError:
        raise UsageError(f"--drift: {part!r} is neither a share nor NAME@DAY", hint=DRIFT_FORMAT) from None
    if not (0.0 <= start <= 1.0 and 0.0 <= end <= 1.0):
        raise UsageError(f"--drift: a share must be between 0 and 1, not {part}", hint=DRIFT_FORMAT)
    return start, end


def _appearance(part: str, domains: Sequence[str], days: int) -> tuple[str, int]:
    name, _, day = part.partition("@")
    if name not in domains:
        raise UsageError(
            f"--drift: {name!r} is not a new domain; they are {', '.join(domains)}", hint=DRIFT_FORMAT
        )
    if not (re.fullmatch(r"[0-9]{1,4}", day) and 1 <= int(day) <= days):
        raise UsageError(f"--drift: {part}: the day must be a number from 1 to {days}", hint=DRIFT_FORMAT)
    return name, int(day)
