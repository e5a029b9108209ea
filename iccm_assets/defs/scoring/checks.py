"""Checks of `reconstructions`: are scores complete, and nearly all conclusive?"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from iccm_assets.judging.facts import ScoreCounts


@platform_check("reconstructions", "Was every text with a test suite scored?")
def no_missing_scores(conn, settings):
    from iccm_assets.judging import health

    scores, days = _recent_scores(conn, settings)
    return health.check_missing_scores(scores.with_suite, scores.missing, days)


@platform_check("reconstructions", "Do nearly all scored texts have a pass rate?")
def inconclusive_rate_is_low(conn, settings):
    from iccm_assets.judging import health

    scores, days = _recent_scores(conn, settings)
    return health.check_inconclusive_rate(scores.scored, scores.inconclusive, days)


def _recent_scores(conn, settings) -> tuple[ScoreCounts, int]:
    from iccm_assets.judging import facts
    from iccm_assets.store.clock import now

    days = settings.curation.lookback_days
    yesterday = now(conn).date() - timedelta(days=1)
    return facts.load_score_counts(conn, yesterday - timedelta(days=days - 1), yesterday), days
