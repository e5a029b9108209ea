"""The one partitions definition: UTC days. Today's partition exists only once the day is over."""

from datetime import date

import dagster as dg

DAILY = dg.DailyPartitionsDefinition(start_date="2025-01-01", timezone="UTC")

# A day of the pool needs the same day's filtered rows and the pool as it stood the day before.
PREVIOUS_DAY = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

# A backfill of any range of days is a handful of runs, not one run (and one daemon tick) a day.
BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=30)


def days_of(context: dg.AssetExecutionContext) -> tuple[date, date]:
    """First and last day of the run's partitions, inclusive."""
    keys = sorted(context.partition_keys)
    return date.fromisoformat(keys[0]), date.fromisoformat(keys[-1])
