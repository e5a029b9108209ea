"""Checks of `reconstructions`: scores are complete, and nearly all are conclusive."""

from iccm_assets.defs.check_factory import platform_check

no_missing_scores = platform_check(
    "reconstructions", "scoring.checks.no_missing_scores", "Was every text with a test suite scored?"
)
inconclusive_rate_is_low = platform_check(
    "reconstructions",
    "scoring.checks.inconclusive_rate_is_low",
    "Do nearly all scored texts have a pass rate?",
)
