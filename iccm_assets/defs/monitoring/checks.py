"""Checks of `production_quality`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.check_result import CheckResult
    from iccm_assets.settings import Settings


@platform_check("production_quality", "Was production measured recently, and is it as good as when deployed?")
def production_quality_is_stable(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.check_result import CheckResult
    from iccm_assets.monitoring import checks

    latest = checks.load_latest_quality(conn)
    if latest is None:
        return CheckResult(True, "nothing is in production yet", "")
    dropped = [name for name, drop in latest.drops.items() if drop > checks.MAX_QUALITY_DROP]
    return checks.check_production_quality(latest.version, latest.hours, latest.holdout_items, dropped)
