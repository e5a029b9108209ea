"""How far a rollout has counted requests and scores, as the opaque text in its state (`State.watermark`)."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from iccm_assets.errors import InputError


@dataclass(frozen=True)
class Cursor:
    """Where the next observation begins.

    Requests stored by transactions below ``next_xid`` are counted. Scored responses are counted by their rows
    in `rollout_samples`; those with an id up to ``first_requirement_id`` were given before the rollout.
    Everything stored until ``settled_at`` is counted; everything stored until ``high_watermark_at`` will be
    once all transactions below ``high_watermark`` have ended.
    """

    first: int
    next: int
    settled: AwareDatetime
    mark: int
    marked_at: AwareDatetime

    @classmethod
    def of(cls, text: str) -> Cursor | None:
        """Parse a state's watermark; None before the first observation. ``InputError`` when it is damaged."""
        try:
            return _WATERMARK.validate_json(text) if text else None
        except ValidationError as error:
            raise InputError(f"watermark {text!r}: {error.errors()[0]['msg']}") from None

    def __str__(self) -> str:
        return _WATERMARK.dump_json(self).decode()


_WATERMARK = TypeAdapter(Cursor)


def advanced(
    before: Cursor | None, *, first: int, until: int, oldest: int, newest: int, now: datetime
) -> Cursor:
    """Return the watermark after requests below ``until`` were counted.

    ``oldest`` is the id of the oldest transaction still running, ``newest`` the next one to be assigned; they
    are equal while nobody writes. ``until`` is below ``oldest`` when there was more than one observation can
    take.
    """
    if before is None:
        before = Cursor(first, 0, now, newest, now)
    if until == oldest == newest:
        return Cursor(before.first, until, now, newest, now)
    if until >= before.mark:
        return Cursor(before.first, until, before.marked_at, newest, now)
    return Cursor(before.first, max(until, before.next), before.settled, before.mark, before.marked_at)
