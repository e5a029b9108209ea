"""Reconstruction tests of the day's requirements."""

from collections import Counter
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.capture.observations import observe_daily_arrivals
from iccm_assets.defs.column_schemas import RECONSTRUCTIONS, column_schema, reconstructions_lineage
from iccm_assets.defs.metadata import table_metadata
from iccm_assets.defs.partitions import OWNERS, daily_partitions, partition_date_range, single_run_backfill
from iccm_assets.defs.resources import PlatformResource

if TYPE_CHECKING:
    from iccm_assets.scoring.checks import DailyScores


@dg.asset(
    partitions_def=daily_partitions,
    backfill_policy=single_run_backfill,
    deps=["conversations"],
    group_name="scoring",
    kinds={"python", "postgres"},
    owners=OWNERS,
    code_version="1",
    metadata={"dagster/table_name": "iccm.reconstructions", **column_schema(RECONSTRUCTIONS)},
)
def reconstructions(
    context: dg.AssetExecutionContext, platform: PlatformResource
) -> dg.MaterializeResult[None]:
    """Re-implementations of the day's code from its requirements alone, with their test verdicts.

    The orchestra reconstructs the code from every requirements text with a test suite; the suite runs on
    each reconstruction in the sandbox. Only texts without a score are scored: a stopped run is resumed.
    """
    from iccm_assets.scoring.scoring_pass import score_unscored
    from iccm_assets.scoring.scoring_queue import count_rows, unscored_requirements

    days = partition_date_range(context)
    total, scored = count_rows(platform.engine, unscored_requirements(days)), 0

    def progress(count: int) -> None:
        nonlocal scored
        scored += count
        context.log.info(f"scored {scored} of {total} requirements texts")

    report = score_unscored(
        platform.engine, platform.orchestra, platform.settings, days=days, progress=progress
    )
    observe_daily_arrivals(context, platform, days[1])
    _add_day_metadata(context, platform)
    return dg.MaterializeResult(
        metadata={
            "newly_scored": report.scored,
            "newly_inconclusive": report.inconclusive,
            "invalid_suites": report.invalid_suites,
            **{f"suites: {status}": count for status, count in sorted(report.unusable_suites.items())},
            "members_answered": report.answers["answered"],
            "members_unreadable": report.answers["unreadable"],
            "members_unavailable": report.answers["missing"],
            "orchestra": ", ".join(member.name for member in platform.orchestra.members),
            **reconstructions_lineage(),
        }
    )


def _add_day_metadata(context: dg.AssetExecutionContext, platform: PlatformResource) -> None:
    """Add the current scores of each day, whichever run scored them: numbers, and a histogram."""
    from iccm_assets.reporting.plots import MAX_PLOTS
    from iccm_assets.scoring.checks import load_daily_scores

    with platform.engine.connect() as conn:
        days = load_daily_scores(conn, *partition_date_range(context))
    with_plot = sorted(days)[-MAX_PLOTS:]
    for key in sorted(days):
        metadata = _day_metadata(days[key], platform, with_plot=key in with_plot)
        context.add_asset_metadata(metadata, partition_key=key)


def _day_metadata(day: "DailyScores", platform: PlatformResource, with_plot: bool) -> dict[str, object]:
    from iccm_assets.reporting.formatting import markdown_image
    from iccm_assets.reporting.plots import plot_histogram

    metadata: dict[str, object] = {
        "texts": day.texts,
        "scored": day.scored,
        "inconclusive": day.inconclusive,
        "dagster/partition_row_count": day.reconstructions,
        "mean_test_pass_rate": day.mean_test_pass_rate,
        "mean_implementation_variance": day.mean_variance,
        "suites": table_metadata(day.suites, "no test suites"),
        **{f"suites: {name}": count for name, count in _count_suites(day).items()},
    }
    metadata = {name: value for name, value in metadata.items() if value is not None}
    if with_plot:
        plot = plot_histogram(day.rates, platform.settings.curation.min_test_pass_rate)
        metadata["test_pass_rates"] = dg.MetadataValue.md(markdown_image(plot, "distribution of pass rates"))
    return metadata


def _count_suites(day: "DailyScores") -> dict[str, int]:
    """The day's texts by status of their suites, and its scored texts by kind of evidence."""
    counts: Counter[str] = Counter()
    for row in day.suites:
        counts[f"{row['status']}"] += row["texts"]
        counts[f"scored by {row['evidence']}"] += row["scored"]
    return dict(sorted(counts.items()))
