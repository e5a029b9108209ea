"""From the day's conversations to the training pool (F1-F4, P1-P6)."""

from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.partitions import BACKFILL, DAILY, PREVIOUS_DAY
from iccm_assets.defs.resources import Platform
from iccm_assets.defs.schemas import (
    FILTERED_CONVERSATIONS,
    TRAINING_POOL,
    filtered_lineage,
    pool_lineage,
    schema,
)
from iccm_assets.defs.show import table

if TYPE_CHECKING:
    from iccm_assets.curation.story import DayStory

# How many days the picture of the pool's materialization looks back.
PICTURED_DAYS = 30
OWNERS = ["team:ml-platform"]


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=BACKFILL,
    deps=["conversations", "reconstructions"],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=OWNERS,
    code_version="1",
    metadata={"dagster/table_name": "iccm.filtered_conversations", **schema(FILTERED_CONVERSATIONS)},
)
def filtered_conversations(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The day's conversations whose requirements demonstrably let others rebuild the code (F1).

    A pure function of one day: running it again changes nothing. What is left out is counted by reason
    and stands in `phase4_rejections`.
    """
    from iccm_assets.curation.filtering import filter_day
    from iccm_assets.curation.pictures import MOST_PICTURED
    from iccm_assets.curation.story import tell_days

    for day in sorted(context.partition_keys):
        report = filter_day(platform.engine, date.fromisoformat(day), platform.settings)
        context.log.info(f"{day}: {report.kept} of {report.conversations} conversations kept")
    days = [date.fromisoformat(day) for day in sorted(context.partition_keys)]
    with platform.engine.connect() as conn:
        stories = tell_days(conn, days)
    for day, story in stories.items():
        told = _filtered(story, platform, pictured=day in days[-MOST_PICTURED:])
        context.add_asset_metadata(told, partition_key=day.isoformat())
    return dg.MaterializeResult(metadata=filtered_lineage())


def _filtered(story: "DayStory", platform: Platform, pictured: bool) -> dict[str, object]:
    """What came in, what stays, what was left out and why."""
    from iccm_assets.curation.pictures import histogram, markdown

    lost = {name: count for name, count in story.reasons.items() if name != "duplicate"}
    told = {
        "captured": story.captured,
        "scored": story.scored,
        "dagster/partition_row_count": story.filtered,
        "filtered": story.filtered,
        "left_out": sum(lost.values()),
        **({"kept_share": story.filtered / story.captured} if story.captured else {}),
        **{f"left out: {name}": count for name, count in lost.items()},
        "reasons": table(story.left_out(without="duplicate"), "nothing was left out"),
    }
    if pictured:
        picture = histogram(story.rates, platform.settings.curation.min_test_pass_rate)
        told["test_pass_rates"] = dg.MetadataValue.md(markdown(picture, "pass rates of accepted texts"))
    return told


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=BACKFILL,
    deps=["filtered_conversations", dg.AssetDep("training_pool", partition_mapping=PREVIOUS_DAY)],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=OWNERS,
    pool="training_pool",
    code_version="1",
    metadata={"dagster/table_name": "iccm.phase4_training_data", **schema(TRAINING_POOL)},
)
def training_pool(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Examples the model may learn from, near-duplicates removed at cosine 0.9 (P1-P4).

    One greedy fold over the materialized days, best quality first: the same pool whatever the order in
    which days are launched, and the same again when a day is run again.
    """
    from iccm_assets.curation.pictures import days_of_data, markdown
    from iccm_assets.curation.pool import fold_days
    from iccm_assets.curation.story import before, tell_days
    from iccm_assets.models.embedding import Embedder

    days = [date.fromisoformat(day) for day in sorted(context.partition_keys)]
    report = fold_days(platform.engine, days, platform.settings, Embedder.load(platform.settings))
    with platform.engine.connect() as conn:
        stories = tell_days(conn, days)
        last = tell_days(conn, before(days[-1], PICTURED_DAYS))
    for day, story in stories.items():
        context.add_asset_metadata(_pooled(story), partition_key=day.isoformat())
    picture = markdown(days_of_data([last[day] for day in sorted(last)]), "where conversations went, by day")
    return dg.MaterializeResult(
        metadata={
            "this_run": f"{report.embedded} texts embedded, {report.refolded_days} days folded again, "
            f"{report.changed_rows} rows changed",
            "pool_size": report.pool_size,
            "last_days": dg.MetadataValue.md(picture),
            **pool_lineage(),
        }
    )


def _pooled(story: "DayStory") -> dict[str, object]:
    """The day's way from capture to the pool, and what deduplication removed: ids and similarities."""
    duplicates = [vars(one) for one in story.duplicates]
    return {
        "captured": story.captured,
        "scored": story.scored,
        "filtered": story.filtered,
        "duplicates_removed": story.removed,
        "kept": story.pool,
        "dagster/partition_row_count": story.pool,
        "funnel": table(story.funnel()),
        "lost_on_the_way": table(story.left_out(), "nothing"),
        "removed_as_duplicates": table(duplicates, "none"),
    }


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[filtered_conversations, training_pool])
