"""Checks of `conversations`: volume, valid content, flushed spools."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.check_result import CheckResult
    from iccm_assets.settings import Settings

BASELINE_DAYS = 14


@platform_check("conversations", "Is yesterday's volume close to the 14-day average?")
def daily_volume_is_normal(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.capture import checks
    from iccm_assets.db.clock import now

    yesterday = now(conn).date() - timedelta(days=1)
    days = checks.load_daily_volumes(conn, yesterday - timedelta(days=BASELINE_DAYS), yesterday)
    *baseline, last = [day.total for day in days]
    return checks.check_daily_volume(baseline, last)


@platform_check("conversations", "Are the messages of the last week valid?")
def content_is_valid(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.capture import checks
    from iccm_assets.db.clock import now

    return checks.check_content(*checks.find_invalid_conversations(conn, now(conn) - timedelta(days=7)))


@platform_check("conversations", "Has every gateway flushed its spool to the database?")
def spool_is_flushed(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.capture import checks

    return checks.check_spool(*checks.get_spool_state(settings.home / "spool"))
