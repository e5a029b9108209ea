"""Checks of `reconstructions`: scores are complete and nearly all conclusive, and suites test something."""

from iccm_assets.defs.check_factory import platform_check

no_missing_scores = platform_check(
    "reconstructions", "scoring.checks.no_missing_scores", "Was every text with a test suite scored?"
)
inconclusive_rate_is_low = platform_check(
    "reconstructions",
    "scoring.checks.inconclusive_rate_is_low",
    "Do nearly all texts with a usable test suite have a pass rate?",
)
suites_are_usable = platform_check(
    "reconstructions", "scoring.checks.suites_are_usable", "Do most test suites test their source?"
)
