"""Checks of `conversations`: volume, valid content, flushed spools."""

from iccm_assets.defs.check_factory import platform_check

daily_volume_is_normal = platform_check(
    "conversations",
    "capture.checks.daily_volume_is_normal",
    "Is yesterday's volume close to the 14-day average?",
)
content_is_valid = platform_check(
    "conversations", "capture.checks.content_is_valid", "Are the messages of the last week valid?"
)
spool_is_flushed = platform_check(
    "conversations", "capture.checks.spool_is_flushed", "Has every gateway flushed its spool to the database?"
)
