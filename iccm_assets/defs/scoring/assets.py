"""Recorded test suites, and reconstruction tests, of the day's requirements."""

from collections import Counter
from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.capture.arrivals import report_daily_arrivals
from iccm_assets.defs.code_versions import code_version
from iccm_assets.defs.column_schemas import (
    RECONSTRUCTIONS,
    TEST_SUITES,
    TEST_SUITES_FROM,
    column_lineage,
    column_schema,
    reconstructions_lineage,
)
from iccm_assets.defs.metadata import table_metadata
from iccm_assets.defs.partitions import OWNERS, daily_partitions, partition_date_range, single_run_backfill
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.workers import WorkerClient

if TYPE_CHECKING:
    from iccm_assets.scoring.checks import DailyScores
    from iccm_assets.scoring.suite_recordings import DailySuites


@dg.asset(
    partitions_def=daily_partitions,
    backfill_policy=single_run_backfill,
    deps=["conversations"],
    group_name="scoring",
    kinds={"python", "postgres"},
    owners=OWNERS,
    code_version=code_version(
        *("suites.suite_recording", "suites.recorded_inputs", "suites.recorded_cases", "suites.input_values"),
        *("suites.suite_strength", "scoring.suite_recordings"),
    ),
    metadata={"dagster/table_name": "iccm.test_suites", **column_schema(TEST_SUITES)},
)
def test_suites(
    context: dg.AssetExecutionContext, platform: PlatformResource, workers: dg.ResourceParam[WorkerClient]
) -> dg.MaterializeResult[None]:
    """Test suites for the day's code that came without tests, recorded from the code itself.

    The code runs in the sandbox on generated inputs, and its answers become the expectations. Each suite is
    measured; only a usable one is evidence. Sources are recorded once: a stopped run is resumed.
    """
    from iccm_assets.reporting.formatting import snake_case_keys
    from iccm_assets.scoring.suite_recordings import load_daily_suites

    days = partition_date_range(context)
    counts = workers.perform(context, platform, "iccm_assets.scoring.recording_worker", _request(days))
    with platform.engine.connect() as conn:
        suites = load_daily_suites(conn, *days)
    for key in sorted(suites):
        context.add_asset_metadata(_suite_metadata(suites[key]), partition_key=key)
    return dg.MaterializeResult(
        metadata={**snake_case_keys(counts, "run"), **column_lineage(TEST_SUITES_FROM)}
    )


def _request(days: tuple[date, date]) -> dict[str, object]:
    return {"days": [day.isoformat() for day in days]}


def _suite_metadata(day: "DailySuites") -> dict[str, object]:
    from iccm_assets.reporting.formatting import markdown_image
    from iccm_assets.reporting.plots import plot_histogram
    from iccm_assets.suites.suite_strength import MIN_STRENGTH

    metadata: dict[str, object] = {
        "sources": day.sources,
        **{f"sources_with_{origin}_suite": count for origin, count in day.by_origin.items()},
        "sources_without_usable_suite": day.without_usable,
        "usable_share": (day.sources - day.without_usable) / day.sources,
        "reasons": table_metadata(day.reasons, "every source has a usable suite"),
        "dagster/partition_row_count": day.sources,
    }
    if day.strengths:
        plot = plot_histogram(day.strengths, MIN_STRENGTH["recorded"], "recorded suites", "strength")
        metadata["strengths"] = dg.MetadataValue.md(markdown_image(plot, "distribution of strengths"))
    return metadata


@dg.asset(
    partitions_def=daily_partitions,
    backfill_policy=single_run_backfill,
    deps=["conversations", "test_suites"],
    group_name="scoring",
    kinds={"python", "postgres"},
    owners=OWNERS,
    code_version=code_version(
        *("scoring.scoring", "scoring.reconstruction", "scoring.chat_endpoints", "scoring.answer_code"),
        *("suites.suite_runner", "suites.suite_strength"),  # the versions of the judge and of recorded suites
    ),
    metadata={"dagster/table_name": "iccm.reconstructions", **column_schema(RECONSTRUCTIONS)},
)
def reconstructions(
    context: dg.AssetExecutionContext, platform: PlatformResource, workers: dg.ResourceParam[WorkerClient]
) -> dg.MaterializeResult[None]:
    """Re-implementations of the day's code from its requirements alone, with their test verdicts.

    The orchestra reconstructs the code from every requirements text with a test suite; the suite runs on
    each reconstruction in the sandbox. Only texts without a score are scored: a stopped run is resumed.
    """
    from iccm_assets.reporting.formatting import snake_case_keys
    from iccm_assets.scoring.scoring_pass import ScoringReport
    from iccm_assets.scoring.scoring_queue import count_rows, unscored_requirements

    days = partition_date_range(context)
    total = count_rows(platform.engine, unscored_requirements(days))
    context.log.info(f"{total} requirements texts wait for a score")
    values = workers.perform(context, platform, "iccm_assets.scoring.scoring_worker", _request(days))
    report = ScoringReport.from_dict(values)
    report_daily_arrivals(context, platform, days[1])
    _add_day_metadata(context, platform)
    return dg.MaterializeResult(
        metadata={
            **snake_case_keys(report.counts(), "run"),
            **snake_case_keys(report.unusable_suites, "run_suites"),
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
    from iccm_assets.reporting.formatting import markdown_image, snake_case_keys
    from iccm_assets.reporting.plots import plot_histogram

    metadata: dict[str, object] = {
        "texts": day.texts,
        "texts_scored": len(day.rates),
        "texts_inconclusive": day.inconclusive,
        "texts_unscored": day.texts - day.scored,
        "dagster/partition_row_count": day.reconstructions,
        "mean_test_pass_rate": day.mean_test_pass_rate,
        "mean_implementation_variance": day.mean_variance,
        "suites": table_metadata(day.suites, "no test suites"),
        **snake_case_keys(_count_texts(day)),
    }
    metadata = {name: value for name, value in metadata.items() if value is not None}
    if with_plot:
        plot = plot_histogram(day.rates, platform.settings.curation.min_test_pass_rate)
        metadata["test_pass_rates"] = dg.MetadataValue.md(markdown_image(plot, "distribution of pass rates"))
    return metadata


def _count_texts(day: "DailyScores") -> dict[str, int]:
    """The day's texts by status of their suites, and its scored texts by kind of evidence."""
    counts: Counter[str] = Counter()
    for row in day.suites:
        counts[f"texts_suite_{row['status']}"] += row["texts"]
        counts[f"texts_scored_by_{row['evidence']}"] += row["scored"]
    return counts
