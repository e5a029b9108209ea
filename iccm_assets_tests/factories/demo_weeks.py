"""Results of a demo's weeks."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from iccm_assets.demo.weekly_cycle import WeekResult
from iccm_assets.registry.training_runs import TrainingRun
from iccm_assets.simulation.developers.traffic_summary import TrafficSummary
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES

DAY = date(2026, 3, 1)


def week(number: int, status: str | None, production: str, **facts: Any) -> WeekResult:
    mix = dict.fromkeys((*BASE_FAMILIES, *NEW_FAMILIES), 10)
    new = 10 * len(NEW_FAMILIES)
    held = TrafficSummary(production, sum(mix.values()), 44, new, 9, 90, 70, 12, 30, 5, mix)
    at = datetime(2026, 3, 1, 2, tzinfo=UTC)
    run = None
    if status:
        run = TrainingRun(
            id=number, trigger="weekly", trigger_key=f"weekly:{number}", attempt=1, fence=1, heartbeat_at=at,
            emergency=False, status=status, timestamp=at, base_version="v1-24ccf5ac",
            candidate_version="v2-411c0800", dataset_digest=None, config={}, improvement=0.031,
            notes=facts.get("notes"), error=None, dagster_run_id=None,
        )  # fmt: skip
    return WeekResult(
        number=number,
        first=DAY + timedelta(days=7 * number - 6),
        last=DAY + timedelta(days=7 * number),
        traffic=held,
        late_sessions=5,
        trigger="112 new examples, 50 required",
        run=run,
        funnel={
            "captured": 200,
            "scored": 170,
            "filtered": 130,
            "pool": 121,
            "first_response_pass_rate": 0.612,
        },
        trained_on={"origin pool": 100, "origin pinned": 90, "origin sample": 400},
        production=production,
        pass_rate=0.782,
        seconds={"traffic": 40.0, "data": 60.0, "retrain": 130.0},
    )
