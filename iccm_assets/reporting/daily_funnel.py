"""The funnel of a day's conversations, from capture to the pool, with the rejections (U3).

Numbers and ids only: they are written to Dagster's event log, which must not contain conversation text (V2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, text

from iccm_assets.db.clock import start_of_day

# The most similar duplicates of a day are listed.
MAX_LISTED = 50


@dataclass
class DailyFunnel:
    """One UTC day: captured ≥ scored ≥ filtered ≥ pool, and the rejections by reason.

    ``duplicates`` are rows of conversation_id, duplicate_of and similarity; ``rates`` the pass rates of the
    accepted texts. ``filtered_evidence`` and ``pool_evidence`` count the examples by the kind of their suite
    and its origin.
    """

    day: date
    captured: int = 0
    scored: int = 0
    filtered: int = 0
    pool: int = 0
    differing: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    filtered_evidence: dict[tuple[str, str], int] = field(default_factory=dict)
    pool_evidence: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """Number of near-duplicates removed."""
        return self.reasons.get("duplicate", 0)

    def steps(self) -> list[dict[str, object]]:
        """Return one row per step: the number of conversations and their share of the captured ones."""
        steps = {
            "captured": self.captured,
            "scored": self.scored,
            "filtered": self.filtered,
            "in_the_pool": self.pool,
        }
        return [
            {
                "step": name,
                "conversations": count,
                "of_captured": f"{count / self.captured:.0%}" if self.captured else "–",
            }
            for name, count in steps.items()
        ]

    def rejections(self, excluding: str = "") -> list[dict[str, object]]:
        """Return one row per reason except ``excluding``, most frequent first."""
        ordered = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        return [{"reason": name, "conversations": count} for name, count in ordered if name != excluding]


def evidence_rows(counts: Mapping[tuple[str, str], int]) -> list[dict[str, object]]:
    """Return one row per kind of evidence and origin of its suites."""
    return [
        {"evidence": kind, "suite_origin": origin, "conversations": count}
        for (kind, origin), count in sorted(counts.items())
    ]


def last_days(day: date, days: int) -> list[date]:
    """Return the last ``days`` days up to and including ``day``, oldest first."""
    return [day - timedelta(days=back) for back in reversed(range(days))]


def load_daily_funnels(conn: Connection, days: Sequence[date]) -> dict[date, DailyFunnel]:
    """Load the funnels of some days from the current tables."""
    funnels = {day: DailyFunnel(day) for day in days}
    if not funnels:
        return funnels
    window = {"start": start_of_day(min(days)), "end": start_of_day(max(days) + timedelta(days=1))}
    values = {"days": list(days), "max_rows": MAX_LISTED, **window}
    for day, *counts in conn.execute(_COUNTS, values):
        funnel = funnels[day]
        funnel.captured, funnel.scored, funnel.filtered, funnel.pool, funnel.differing, funnel.rates = counts
    for day, reason, count in conn.execute(_REASONS, values):
        funnels[day].reasons[reason] = count
    for day, pooled, evidence, origin, count in conn.execute(_EVIDENCE, values):
        examples = funnels[day].pool_evidence if pooled else funnels[day].filtered_evidence
        examples[evidence, origin] = count
    for row in conn.execute(_DUPLICATES, values).mappings():
        funnels[row["day"]].duplicates.append({name: value for name, value in row.items() if name != "day"})
    return funnels


_COUNTS = text(
    """
    with captured as (
        select (c."timestamp" at time zone 'UTC')::date as day, count(*) as captured,
            count(a.scored_at) as scored,
            array_agg(a.test_pass_rate) filter (where a.test_pass_rate is not null) as rates
        from iccm.conversations c
        left join iccm.requirements a on a.session_id = c.session_id and a.kind = 'accepted'
        where c."timestamp" >= :start and c."timestamp" < :end
        group by 1
    )
    select d.day, coalesce(c.captured, 0), coalesce(c.scored, 0),
        (select count(*) from iccm.filtered_conversations f where f.day = d.day),
        (select count(*) from iccm.phase4_training_data p where p.day = d.day),
        (select count(r.differences) from iccm.phase4_rejections r where r.day = d.day),
        coalesce(c.rates, '{}')
    from unnest(cast(:days as date[])) as d (day) left join captured c using (day)
    """
)
# One reason per conversation: the filter's, or that it is a duplicate.
_REASONS = text(
    """
    select day, case stage when 'dedup' then 'duplicate' else reason end, count(*)
    from iccm.phase4_rejections where day = any(:days) group by 1, 2
    """
)
_EVIDENCE = text(
    """
    select day, false, evidence, test_suite_origin, count(*)
    from iccm.filtered_conversations where day = any(:days) group by day, evidence, test_suite_origin
    union all
    select day, true, evidence, test_suite_origin, count(*)
    from iccm.phase4_training_data where day = any(:days) group by day, evidence, test_suite_origin
    """
)
_DUPLICATES = text(
    """
    select day, conversation_id, duplicate_of, similarity,
        coalesce(array_to_string(differences, ', '), '') as differences from (
        select r.*, row_number() over (partition by day order by similarity desc, conversation_id) as rank
        from iccm.phase4_rejections r where day = any(:days) and stage = 'dedup'
    ) as ranked
    where rank <= :max_rows order by day, rank
    """
)
