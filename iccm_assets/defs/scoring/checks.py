"""Checks of `test_suites` and `reconstructions`: suites are recorded and test something, scores complete."""

from iccm_assets.defs.check_factory import platform_check

no_missing_scores = platform_check(
    "reconstructions", "scoring.checks.no_missing_scores", "Every text with a test suite has been scored."
)
inconclusive_rate_is_low = platform_check(
    "reconstructions",
    "scoring.checks.inconclusive_rate_is_low",
    "At least 90 % of the scored texts with a usable test suite have a pass rate.",
)
suites_are_usable = platform_check(
    "reconstructions",
    "scoring.checks.suites_are_usable",
    "At least half of the test suites are evidence: they tell their source from a stub.",
)
suites_are_recorded = platform_check(
    "test_suites",
    "scoring.checks.suites_are_recorded",
    "At least half of the sources that came without tests have a usable recorded suite.",
)
