"""Checks of `conversations`: volume, valid content, flushed spools."""

from iccm_assets.defs.check_factory import platform_check

daily_volume_is_normal = platform_check(
    "conversations",
    "capture.checks.daily_volume_is_normal",
    "Yesterday's volume is at least a fifth of the median of the 14 days before it.",
)
content_is_valid = platform_check(
    "conversations",
    "capture.checks.content_is_valid",
    "At least 98 % of the newest conversations of the last week hold valid messages.",
)
spool_is_flushed = platform_check(
    "conversations",
    "capture.checks.spool_is_flushed",
    "Every gateway of this machine has flushed its spool to the database.",
)
