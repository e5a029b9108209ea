"""From the day's conversations to the training pool (F1-F4, P1-P6)."""

from datetime import date

import dagster as dg

from iccm_assets.defs.partitions import BACKFILL, DAILY, PREVIOUS_DAY
from iccm_assets.defs.resources import Platform

OWNERS = ["team:ml-platform"]


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=BACKFILL,
    deps=["conversations", "reconstructions"],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=OWNERS,
    code_version="1",
    metadata={"dagster/table_name": "iccm.filtered_conversations"},
)
def filtered_conversations(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The day's conversations whose requirements demonstrably let others rebuild the code (F1).

    A pure function of one day: running it again changes nothing. What is left out is counted by reason
    and stands in `phase4_rejections`.
    """
    from iccm_assets.curation.filtering import filter_day

    for day in sorted(context.partition_keys):
        report = filter_day(platform.engine, date.fromisoformat(day), platform.settings)
        context.log.info(f"{day}: {report.kept} of {report.conversations} conversations kept")
        context.add_asset_metadata(
            {
                "conversations": report.conversations,
                "dagster/partition_row_count": report.kept,
                "rejected": sum(report.rejected.values()),
                "reasons": dg.MetadataValue.json(report.rejected),
            },
            partition_key=day,
        )
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=BACKFILL,
    deps=["filtered_conversations", dg.AssetDep("training_pool", partition_mapping=PREVIOUS_DAY)],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=OWNERS,
    pool="training_pool",
    code_version="1",
    metadata={"dagster/table_name": "iccm.phase4_training_data"},
)
def training_pool(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Examples the model may learn from, near-duplicates removed at cosine 0.9 (P1-P4).

    One greedy fold over the materialized days, best quality first: the same pool whatever the order in
    which days are launched, and the same again when a day is run again.
    """
    from iccm_assets.curation.pool import fold_days
    from iccm_assets.models.embedding import Embedder

    days = [date.fromisoformat(day) for day in sorted(context.partition_keys)]
    report = fold_days(platform.engine, days, platform.settings, Embedder.load(platform.settings))
    return dg.MaterializeResult(metadata=report.metadata())


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[filtered_conversations, training_pool])
