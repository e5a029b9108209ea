"""Reconstruction testing of the day's requirements (O1, J1-J3)."""

from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.capture.observing import observe_arrivals
from iccm_assets.defs.partitions import BACKFILL, DAILY, days_of
from iccm_assets.defs.resources import Platform
from iccm_assets.defs.schemas import RECONSTRUCTIONS, reconstructions_lineage, schema

if TYPE_CHECKING:
    from iccm_assets.judging.facts import DayScored


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=BACKFILL,
    deps=["conversations"],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=["team:ml-platform"],
    code_version="1",
    metadata={"dagster/table_name": "iccm.reconstructions", **schema(RECONSTRUCTIONS)},
)
def reconstructions(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """Re-implementations of the day's code from its requirements alone, with their test verdicts.

    Every requirements text with a test suite is given to the orchestra; the suite is run on each
    re-implementation in the sandbox. Scores what has no score yet, so it can be stopped and resumed.
    """
    from iccm_assets.judging.scoring import count_pending, score_pending

    days = days_of(context)
    total, done = count_pending(platform.engine, days), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        context.log.info(f"scored {done} of {total} requirements texts")

    report = score_pending(
        platform.engine, platform.orchestra, platform.settings, days=days, progress=progress
    )
    observe_arrivals(context, platform, days[1])
    _tell_days(context, platform)
    return dg.MaterializeResult(
        metadata={
            "newly_scored": report.scored,
            "newly_inconclusive": report.inconclusive,
            "bad_suites": report.bad_suites,
            "members_answered": report.answers["answered"],
            "members_unreadable": report.answers["unreadable"],
            "members_missing": report.answers["missing"],
            "orchestra": ", ".join(member.name for member in platform.orchestra.members),
            **reconstructions_lineage(),
        }
    )


def _tell_days(context: dg.AssetExecutionContext, platform: Platform) -> None:
    """Each day as it stands now, whoever scored it: numbers to plot, and how the pass rates are spread."""
    from iccm_assets.curation.pictures import MOST_PICTURED
    from iccm_assets.judging.facts import days_scored

    with platform.engine.connect() as conn:
        stories = days_scored(conn, *days_of(context))
    days = sorted(stories)
    for day in days:
        told = _scored(stories[day], platform, pictured=day in days[-MOST_PICTURED:])
        context.add_asset_metadata(told, partition_key=day)


def _scored(story: "DayScored", platform: Platform, pictured: bool) -> dict[str, object]:
    from iccm_assets.curation.pictures import histogram, markdown

    told: dict[str, object] = {
        "texts": story.texts,
        "scored": story.scored,
        "inconclusive": story.inconclusive,
        "dagster/partition_row_count": story.reconstructions,
    }
    if story.mean_test_pass_rate is not None:
        told["mean_test_pass_rate"] = story.mean_test_pass_rate
    if story.mean_variance is not None:
        told["mean_implementation_variance"] = story.mean_variance
    if pictured:
        picture = histogram(story.rates, platform.settings.curation.min_test_pass_rate)
        told["test_pass_rates"] = dg.MetadataValue.md(markdown(picture, "how the pass rates are spread"))
    return told
