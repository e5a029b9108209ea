"""Partitions, backfill and freshness policies of the assets, and their owners."""

from datetime import date, timedelta

import dagster as dg

from iccm_assets.settings import load_settings

_SETTINGS = load_settings()
OWNERS = _SETTINGS.owners.split(",")

# Read when the definitions load, and never from the database: a code location of any process, on any day, has
# the same partitions.
DEFAULT_FIRST_DAY = date(2025, 1, 1)
FIRST_DAY = _SETTINGS.first_day or DEFAULT_FIRST_DAY
daily_partitions = dg.DailyPartitionsDefinition(start_date=FIRST_DAY.isoformat(), timezone="UTC")

# A day of the pool needs the same day's filtered rows and the pool as of the day before.
previous_day_mapping = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

# A backfill of a range of days is one run, not one run (and one 30 s daemon tick) a day; `dagster asset
# materialize --partition-range` requires this policy too. The run after a stopped one resumes it: scores are
# stored one by one, and filter and deduplication are cheap.
single_run_backfill = dg.BackfillPolicy.single_run()

# Retrain assets are expected weekly: a warning after 8 days, a failure after three weeks, when weeks
# with too few examples no longer explain it. Daily assets have a check of yesterday's partition instead: any
# partition, however old, satisfies a freshness policy. The base model and the canary set do not age.
weekly_freshness = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=22), warn_window=timedelta(days=8)
)
# The daily run reports the conversations of yesterday, if there were any: a weekend without is usual.
arrivals_freshness = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=8), warn_window=timedelta(days=3, hours=12)
)
# Production is measured every six hours; the check of the asset allows for two rounds, too.
six_hourly_freshness = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(hours=13), warn_window=timedelta(hours=7)
)


def partition_date_range(context: dg.AssetExecutionContext) -> tuple[date, date]:
    """First and last day of the run's partitions, both inclusive."""
    keys = sorted(context.partition_keys)
    return date.fromisoformat(keys[0]), date.fromisoformat(keys[-1])
