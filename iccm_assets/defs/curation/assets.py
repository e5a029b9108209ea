"""From the day's conversations to the training pool."""

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.code_versions import code_version
from iccm_assets.defs.column_schemas import (
    FILTERED_CONVERSATIONS,
    TRAINING_POOL,
    column_schema,
    filtered_conversations_lineage,
    training_pool_lineage,
)
from iccm_assets.defs.metadata import table_metadata
from iccm_assets.defs.partitions import OWNERS, daily_partitions, previous_day_mapping, single_run_backfill
from iccm_assets.defs.resources import PlatformResource

if TYPE_CHECKING:
    from iccm_assets.reporting.daily_funnel import DailyFunnel

# How many days the plot of the pool's materialization shows.
PLOTTED_DAYS = 30


@dg.asset(
    partitions_def=daily_partitions,
    backfill_policy=single_run_backfill,
    deps=["conversations", "reconstructions"],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=OWNERS,
    code_version=code_version(
        *("curation.filter_policy", "curation.filtering", "curation.decontamination"),
        *("curation.code_fingerprints", "curation.contained_items", "capture.extraction"),
    ),
    metadata={"dagster/table_name": "iccm.filtered_conversations", **column_schema(FILTERED_CONVERSATIONS)},
)
def filtered_conversations(
    context: dg.AssetExecutionContext, platform: PlatformResource
) -> dg.MaterializeResult[None]:
    """The day's conversations whose requirements demonstrably let others rebuild the code.

    A pure function of one day: materializing it again changes nothing. Rejected conversations are counted
    by reason and stored in `phase4_rejections`.
    """
    from iccm_assets.curation.filtering import filter_day
    from iccm_assets.reporting.daily_funnel import load_daily_funnels
    from iccm_assets.reporting.plots import MAX_PLOTS

    days = [date.fromisoformat(key) for key in sorted(context.partition_keys)]
    for day in days:
        report = filter_day(platform.engine, day, platform.settings)
        context.log.info(f"{day}: {report.kept} of {report.conversations} conversations passed the filter")
    with platform.engine.connect() as conn:
        funnels = load_daily_funnels(conn, days)
    for day, funnel in funnels.items():
        metadata = _filter_metadata(funnel, platform, with_plot=day in days[-MAX_PLOTS:])
        context.add_asset_metadata(metadata, partition_key=day.isoformat())
    return dg.MaterializeResult(metadata=filtered_conversations_lineage())


def _filter_metadata(funnel: "DailyFunnel", platform: PlatformResource, with_plot: bool) -> dict[str, object]:
    """The day's counts, its rejections by reason and, ``with_plot``, a histogram of the pass rates."""
    from iccm_assets.reporting.formatting import markdown_image, snake_case_keys
    from iccm_assets.reporting.plots import plot_histogram

    rejected = {name: count for name, count in funnel.reasons.items() if name != "duplicate"}
    metadata = {
        "captured": funnel.captured,
        "scored": funnel.scored,
        "dagster/partition_row_count": funnel.filtered,
        "filtered": funnel.filtered,
        "rejected": sum(rejected.values()),
        **({"retained_share": funnel.filtered / funnel.captured} if funnel.captured else {}),
        **snake_case_keys(rejected, "rejected"),
        "reasons": table_metadata(funnel.rejections(excluding="duplicate"), "no rejections"),
        **_evidence_metadata(funnel.filtered_evidence),
    }
    if with_plot:
        plot = plot_histogram(funnel.rates, platform.settings.curation.min_test_pass_rate)
        metadata["test_pass_rates"] = dg.MetadataValue.md(
            markdown_image(plot, "pass rates of accepted texts")
        )
    return metadata


@dg.asset(
    partitions_def=daily_partitions,
    backfill_policy=single_run_backfill,
    deps=["filtered_conversations", dg.AssetDep("training_pool", partition_mapping=previous_day_mapping)],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=OWNERS,
    pool="training_pool",
    code_version=code_version(
        *("curation.training_pool", "curation.pool_rows", "curation.pool_decisions"),
        *("curation.greedy_dedup", "curation.duplicate_search"),
        *("curation.similarity", "curation.text_vectors", "curation.opposites", "curation.embeddings"),
    ),
    metadata={"dagster/table_name": "iccm.phase4_training_data", **column_schema(TRAINING_POOL)},
)
def training_pool(
    context: dg.AssetExecutionContext, platform: PlatformResource
) -> dg.MaterializeResult[None]:
    """Training examples, with near-duplicates removed at cosine similarity 0.9.

    One greedy pass over the materialized days, best quality first: the result does not depend on the order
    in which days are materialized, and materializing a day again changes nothing.
    """
    from iccm_assets.curation.training_pool import rebuild_pool
    from iccm_assets.models.embedding import Embedder
    from iccm_assets.reporting.daily_funnel import last_days, load_daily_funnels
    from iccm_assets.reporting.formatting import markdown_image
    from iccm_assets.reporting.plots import plot_daily_funnel

    days = [date.fromisoformat(key) for key in sorted(context.partition_keys)]
    report = rebuild_pool(platform.engine, days, platform.settings, Embedder.load(platform.settings))
    with platform.engine.connect() as conn:
        funnels = load_daily_funnels(conn, days)
        history = load_daily_funnels(conn, last_days(days[-1], PLOTTED_DAYS))
    for day, funnel in funnels.items():
        context.add_asset_metadata(_pool_metadata(funnel), partition_key=day.isoformat())
    plot = markdown_image(
        plot_daily_funnel([history[day] for day in sorted(history)]), "conversations by day and outcome"
    )
    return dg.MaterializeResult(
        metadata={
            "run_summary": f"{report.embedded} texts embedded, {report.rebuilt_days} days rebuilt, "
            f"{report.changed_rows} rows changed",
            "pool_size": report.pool_size,
            "daily_history": dg.MetadataValue.md(plot),
            **training_pool_lineage(),
        }
    )


def _evidence_metadata(counts: "Mapping[tuple[str, str], int]") -> dict[str, object]:
    """The day's examples by kind of evidence (pytest is the weaker one) and by origin of their suites."""
    from iccm_assets.reporting.daily_funnel import evidence_rows
    from iccm_assets.reporting.formatting import snake_case_keys

    kinds = {kind: 0 for kind, _ in counts}
    for (kind, _), count in counts.items():
        kinds[kind] += count
    return {
        **snake_case_keys(kinds, "evidence"),
        "evidence": table_metadata(evidence_rows(counts), "no examples"),
    }


def _pool_metadata(funnel: "DailyFunnel") -> dict[str, object]:
    """The day's funnel from capture to the pool, and the removed duplicates: ids and similarities."""
    return {
        "captured": funnel.captured,
        "scored": funnel.scored,
        "filtered": funnel.filtered,
        "duplicates_removed": funnel.removed,
        "differing_duplicates": funnel.differing,
        "retained": funnel.pool,
        "dagster/partition_row_count": funnel.pool,
        "funnel": table_metadata(funnel.steps()),
        "rejections": table_metadata(funnel.rejections(), "no rejections"),
        **_evidence_metadata(funnel.pool_evidence),
        "removed_as_duplicates": table_metadata(funnel.duplicates),
    }
