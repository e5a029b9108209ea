"""How far a rollout has counted, as the opaque text its state keeps (`State.cursor`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from iccm_assets.errors import InputError


@dataclass(frozen=True)
class Cursor:
    """Where the next observation begins.

    Requests stored by transactions below ``next`` are counted. Scored answers are told by their rows in
    `rollout_samples`; those with an id up to ``first`` were given before the rollout. Everything stored until
    ``settled`` is counted; what was stored until ``marked_at`` will be once all transactions below ``mark``
    have ended.
    """

    first: int
    next: int
    settled: datetime
    mark: int
    marked_at: datetime

    @classmethod
    def of(cls, text: str) -> Cursor | None:
        """The cursor in a state; None before the first observation. ``InputError`` when it is damaged."""
        if not text:
            return None
        try:
            stored = json.loads(text)
            times = {name: datetime.fromisoformat(stored[name]) for name in ("settled", "marked_at")}
            return cls(**{**stored, **times})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"cursor {text!r}: {error}") from None

    def __str__(self) -> str:
        times = {name: getattr(self, name).astimezone(UTC).isoformat() for name in ("settled", "marked_at")}
        return json.dumps({**asdict(self), **times})


def advanced(
    before: Cursor | None, *, first: int, until: int, oldest: int, newest: int, now: datetime
) -> Cursor:
    """The cursor after requests below ``until`` were counted. Pure.

    ``oldest`` is the id of the oldest transaction still running, ``newest`` the next one to be given out;
    they are equal while nobody writes. ``until`` is below ``oldest`` when there was more than one observation
    can take.
    """
    if before is None:
        before = Cursor(first, 0, now, newest, now)
    if until == oldest == newest:
        return Cursor(before.first, until, now, newest, now)
    if until >= before.mark:
        return Cursor(before.first, until, before.marked_at, newest, now)
    return Cursor(before.first, max(until, before.next), before.settled, before.mark, before.marked_at)
