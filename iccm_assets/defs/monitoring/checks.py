"""Checks of `production_quality`."""

from iccm_assets.defs.check_factory import platform_check

production_quality_is_stable = platform_check(
    "production_quality",
    "monitoring.checks.production_quality_is_stable",
    "Production was measured in the last 13 hours and is as good as when it was deployed.",
)
