"""When assets are made: UTC days, whose partition exists once the day is over, or about weekly."""

from datetime import date, timedelta

import dagster as dg

DAILY = dg.DailyPartitionsDefinition(start_date="2025-01-01", timezone="UTC")

# A day of the pool needs the same day's filtered rows and the pool as it stood the day before.
PREVIOUS_DAY = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

# A backfill of any range of days is one run, not one run (and one daemon tick) a day; `dagster asset
# materialize --partition-range` asks for this policy too. A run that is stopped is resumed by the next:
# scores are kept, and filter and fold are cheap.
BACKFILL = dg.BackfillPolicy.single_run()

# What a retrain makes is expected weekly: late after a week and a day, stale after three weeks, when quiet
# weeks (T1) no longer explain it. Daily assets have a check of yesterday's partition instead: a policy is
# satisfied by any partition, however old.
WEEKLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=22), warn_window=timedelta(days=8))


def days_of(context: dg.AssetExecutionContext) -> tuple[date, date]:
    """First and last day of the run's partitions, inclusive."""
    keys = sorted(context.partition_keys)
    return date.fromisoformat(keys[0]), date.fromisoformat(keys[-1])
