"""What became of a day's conversations, in numbers and ids: the funnel and what fell out of it (U3).

Numbers and ids only: this is written to Dagster's event log, which holds no conversation text (V2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import sqlalchemy as sa

from iccm_assets.capture.arrivals import midnight

# Of the removed duplicates of a day, the most similar ones are listed.
MOST_LISTED = 50


@dataclass(frozen=True)
class Duplicate:
    """A row deduplication removed, the kept one it is like, and how much."""

    conversation_id: int
    duplicate_of: int
    similarity: float


@dataclass
class DayStory:
    """One UTC day: captured ≥ scored ≥ filtered ≥ pool, and why the rest was left out, by reason."""

    day: date
    captured: int = 0
    scored: int = 0
    filtered: int = 0
    pool: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    duplicates: list[Duplicate] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def removed(self) -> int:
        """Near-duplicates removed."""
        return self.reasons.get("duplicate", 0)

    def funnel(self) -> list[dict[str, object]]:
        """One row per step: what reached it, and its share of the captured."""
        steps = (
            ("captured", self.captured),
            ("scored", self.scored),
            ("filtered", self.filtered),
            ("in the pool", self.pool),
        )
        return [
            {
                "step": name,
                "conversations": n,
                "of captured": f"{n / self.captured:.0%}" if self.captured else "–",
            }
            for name, n in steps
        ]

    def left_out(self, without: str = "") -> list[dict[str, object]]:
        """One row per reason but ``without``, most frequent first."""
        ordered = sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        return [{"reason": name, "conversations": count} for name, count in ordered if name != without]


def before(day: date, days: int) -> list[date]:
    """The last ``days`` days up to and with one, oldest first."""
    return [day - timedelta(days=back) for back in reversed(range(days))]


def tell_days(conn: sa.Connection, days: Sequence[date]) -> dict[date, DayStory]:
    """The stories of some days, as the tables stand now."""
    stories = {day: DayStory(day) for day in days}
    if not stories:
        return stories
    for day, captured, scored, rates in conn.execute(_CAPTURED, _window(days)):
        if day in stories:
            stories[day].captured, stories[day].scored = captured, scored
            stories[day].rates = list(rates or [])
    for table, name in (("filtered_conversations", "filtered"), ("phase4_training_data", "pool")):
        counted = sa.text(f"select day, count(*) from iccm.{table} where day = any(:days) group by day")
        for day, count in conn.execute(counted, {"days": list(days)}):
            setattr(stories[day], name, count)
    for day, reason, count in conn.execute(_REASONS, {"days": list(days)}):
        stories[day].reasons[reason] = count
    for day, *duplicate in conn.execute(_DUPLICATES, {"days": list(days), "most": MOST_LISTED}):
        stories[day].duplicates.append(Duplicate(*duplicate))
    return stories


def _window(days: Sequence[date]) -> dict[str, object]:
    return {"start": midnight(min(days)), "end": midnight(max(days) + timedelta(days=1))}


_CAPTURED = sa.text(
    """
    select (c."timestamp" at time zone 'UTC')::date, count(*), count(a.scored_at),
        array_agg(a.test_pass_rate) filter (where a.test_pass_rate is not null)
    from iccm.conversations c
    left join iccm.requirements a on a.session_id = c.session_id and a.kind = 'accepted'
    where c."timestamp" >= :start and c."timestamp" < :end
    group by 1
    """
)
# One reason a conversation: the filter's, or that it is a duplicate.
_REASONS = sa.text(
    """
    select day, case stage when 'dedup' then 'duplicate' else reason end, count(*)
    from iccm.phase4_rejections where day = any(:days) group by 1, 2
    """
)
_DUPLICATES = sa.text(
    """
    select day, conversation_id, duplicate_of, similarity from (
        select r.*, row_number() over (partition by day order by similarity desc, conversation_id) as place
        from iccm.phase4_rejections r where day = any(:days) and stage = 'dedup'
    ) as ranked
    where place <= :most order by day, place
    """
)
