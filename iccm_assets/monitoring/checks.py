"""Check of production quality: its last measurement against its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from iccm_assets.check_result import CheckResult
from iccm_assets.settings import Settings

# Two rounds of the six-hourly measurement, and time to make it.
MAX_QUALITY_AGE_HOURS = 13.0
MAX_QUALITY_DROP = 0.05


@dataclass(frozen=True)
class LatestQuality:
    """The latest measurement of production, ``hours`` ago; drops by set.

    A deployment and a rollback to this version count as a measurement: both rely on earlier numbers.
    """

    version: str
    hours: float
    holdout_items: int
    drops: dict[str, float]


def load_latest_quality(conn: sa.Connection) -> LatestQuality | None:
    """Load the latest measurement of the production version; None while there is none."""
    rows = conn.execute(
        sa.text(
            """
            select v.version, q."set", q.n, q.quality_drop,
                extract(epoch from iccm.now() - greatest(
                    coalesce(v.deployed_at, iccm.now()), q.measured_at,
                    (select max(e."timestamp") from iccm.deployment_events e
                     where e.version = v.version and e.weight = 1)
                )) / 3600 as hours
            from iccm.model_versions v left join lateral (
                select distinct on ("set") "set", n, baseline_mean - mean as quality_drop, measured_at
                from iccm.quality_measurements where version = v.version
                order by "set", measured_at desc
            ) q on true
            where v.status = 'production'
            """
        )
    ).all()
    if not rows:
        return None
    return LatestQuality(
        version=rows[0].version,
        hours=float(min(row.hours for row in rows)),
        holdout_items=sum(row.n for row in rows if row.set == "production_holdout"),
        drops={row.set: row.quality_drop for row in rows if row.quality_drop is not None},
    )


def check_production_quality(
    version: str, hours: float, holdout: int, dropped_sets: Sequence[str]
) -> CheckResult:
    """Check that production was measured recently and is as good as its baseline (T8).

    ``hours`` since its last measurement or, without one, its deployment; on ``dropped_sets`` the last
    measurement is more than ``MAX_QUALITY_DROP`` below the baseline.
    """
    drop = (
        f"more than {MAX_QUALITY_DROP:g} below its baseline on {', '.join(dropped_sets)}"
        if dropped_sets
        else "no drop"
    )
    return CheckResult(
        hours <= MAX_QUALITY_AGE_HOURS and not dropped_sets,
        f"{version}: measured or deployed {hours:.1f} h ago, {holdout} holdout sessions; {drop}",
        "Not measured for two rounds: check that `production_quality_schedule` and the daemon are running; "
        "materialize `production_quality` to measure now, the log of its run names the obstacle. A "
        "significant drop starts an emergency retrain; the ticks of `quality_degradation_sensor` log with "
        "numbers why not. `iccm rollback` restores the previous version immediately.",
        severity="warning",
        metrics={"hours_since": round(hours, 2), "holdout_sessions": float(holdout)},
        sample_ids=tuple(dropped_sets),
    )


def production_quality_is_stable(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Check the newest measurement of the production version."""
    latest = load_latest_quality(conn)
    if latest is None:
        return CheckResult(True, "nothing is in production yet", "")
    dropped = [name for name, drop in latest.drops.items() if drop > MAX_QUALITY_DROP]
    return check_production_quality(latest.version, latest.hours, latest.holdout_items, dropped)
