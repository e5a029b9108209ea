"""Checks of `reconstructions`: are scores complete, and nearly all conclusive?"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.check_result import CheckResult
    from iccm_assets.scoring.checks import ScoreCounts
    from iccm_assets.settings import Settings


@platform_check("reconstructions", "Was every text with a test suite scored?")
def no_missing_scores(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.scoring import checks

    scores, days = _recent_scores(conn, settings)
    return checks.check_missing_scores(scores.with_suite, scores.missing, days)


@platform_check("reconstructions", "Do nearly all scored texts have a pass rate?")
def inconclusive_rate_is_low(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.scoring import checks

    scores, days = _recent_scores(conn, settings)
    return checks.check_inconclusive_rate(scores.scored, scores.inconclusive, days)


def _recent_scores(conn: Connection, settings: Settings) -> tuple[ScoreCounts, int]:
    from iccm_assets.db.clock import now
    from iccm_assets.scoring import checks

    days = settings.curation.lookback_days
    yesterday = now(conn).date() - timedelta(days=1)
    return checks.load_score_counts(conn, yesterday - timedelta(days=days - 1), yesterday), days
