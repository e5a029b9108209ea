"""Checks of `production_quality`."""

from iccm_assets.defs.check_factory import platform_check

production_quality_is_stable = platform_check(
    "production_quality",
    "monitoring.checks.production_quality_is_stable",
    "Was production measured recently, and is it as good as when deployed?",
)
