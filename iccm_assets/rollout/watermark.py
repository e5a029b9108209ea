"""The position up to which a rollout has counted requests and scores: the text `State.watermark`."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from iccm_assets.errors import InputError


@dataclass(frozen=True)
class Watermark:
    """Where the next observation begins.

    Requests stored by transactions below ``next_xid`` are counted. Scored responses are counted by their rows
    in `rollout_samples`; those with an id up to ``first_requirement_id`` were given before the rollout.
    Everything stored until ``settled_at`` is counted; everything stored until ``high_watermark_at`` will be
    once all transactions below ``high_watermark`` have ended.
    """

    first_requirement_id: int
    next_xid: int
    settled_at: AwareDatetime
    high_watermark: int
    high_watermark_at: AwareDatetime

    @classmethod
    def parse(cls, text: str) -> Watermark | None:
        """Parse a state's watermark; None before the first observation. ``InputError`` when it is damaged."""
        try:
            return _WATERMARK.validate_json(text) if text else None
        except ValidationError as error:
            raise InputError(f"watermark {text!r}: {error.errors()[0]['msg']}") from None

    def __str__(self) -> str:
        return _WATERMARK.dump_json(self).decode()


_WATERMARK = TypeAdapter(Watermark)


def advance(
    before: Watermark | None, *, first: int, until: int, oldest: int, newest: int, now: datetime
) -> Watermark:
    """Return the watermark after requests below ``until`` were counted.

    ``oldest`` is the id of the oldest transaction still running, ``newest`` the next one to be assigned; they
    are equal while no transaction writes. ``until`` is below ``oldest`` when there was more than one
    observation can take.
    """
    if before is None:
        before = Watermark(first, 0, now, newest, now)
    if until == oldest == newest:
        return Watermark(before.first_requirement_id, until, now, newest, now)
    if until >= before.high_watermark:
        return Watermark(before.first_requirement_id, until, before.high_watermark_at, newest, now)
    return Watermark(
        before.first_requirement_id,
        max(until, before.next_xid),
        before.settled_at,
        before.high_watermark,
        before.high_watermark_at,
    )
