"""The one partitions definition: UTC days. Today's partition exists only once the day is over."""

from datetime import date

import dagster as dg

DAILY = dg.DailyPartitionsDefinition(start_date="2025-01-01", timezone="UTC")

# A day of the pool needs the same day's filtered rows and the pool as it stood the day before.
PREVIOUS_DAY = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

# A backfill of any range of days is one run, not one run (and one daemon tick) a day; `dagster asset
# materialize --partition-range` asks for this policy too. A run that is stopped is resumed by the next:
# scores are kept, and filter and fold are cheap.
BACKFILL = dg.BackfillPolicy.single_run()


def days_of(context: dg.AssetExecutionContext) -> tuple[date, date]:
    """First and last day of the run's partitions, inclusive."""
    keys = sorted(context.partition_keys)
    return date.fromisoformat(keys[0]), date.fromisoformat(keys[-1])
