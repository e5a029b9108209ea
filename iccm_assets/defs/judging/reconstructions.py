"""Reconstruction testing of the day's requirements (O1, J1-J3)."""

import dagster as dg

from iccm_assets.defs.partitions import BACKFILL, DAILY, days_of
from iccm_assets.defs.resources import Platform


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=BACKFILL,
    deps=["conversations"],
    group_name="curation",
    kinds={"python", "postgres"},
    owners=["team:ml-platform"],
    code_version="1",
    metadata={"dagster/table_name": "iccm.reconstructions"},
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
    mean = sum(report.rates) / len(report.rates) if report.rates else None
    return dg.MaterializeResult(
        metadata={
            "scored": report.scored,
            "inconclusive": report.inconclusive,
            "bad_suites": report.bad_suites,
            "orchestra": ", ".join(member.name for member in platform.orchestra.members),
            **({"mean_test_pass_rate": mean} if mean is not None else {}),
        }
    )
