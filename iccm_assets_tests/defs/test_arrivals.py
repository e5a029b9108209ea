"""Arrivals are reported once a day, with the days before beside them (U1)."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import sqlalchemy as sa
from dagster._core.test_utils import instance_for_test

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.db.clock import now
from iccm_assets.definitions import defs
from iccm_assets.defs.capture.arrivals import DISPLAY_DAYS
from iccm_assets.defs.resources import PlatformResource

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
CONVERSATIONS = dg.AssetKey("conversations")


def reports(platform: PlatformResource, first, last) -> list[dg.AssetMaterialization | dg.AssetObservation]:
    """The arrivals that a run of ``reconstructions`` for some days reports, by either kind of event."""
    job = (
        defs()
        .get_repository_def()
        .get_maybe_subset_job_def(
            "__ASSET_JOB", asset_selection={dg.AssetKey("reconstructions")}, asset_check_selection=set()
        )
    )
    tags = {
        "dagster/asset_partition_range_start": first.isoformat(),
        "dagster/asset_partition_range_end": last.isoformat(),
    }
    with instance_for_test() as instance:
        assert job.execute_in_process(instance=instance, tags=tags, run_config=QUIET).success
        materialized = instance.fetch_materializations(CONVERSATIONS, limit=50).records
        observed = instance.fetch_observations(CONVERSATIONS, limit=50).records
    return [
        *(record.asset_materialization for record in materialized),
        *(record.asset_observation for record in observed),
    ]


def test_a_run_that_ends_with_yesterday_reports_it_once_and_others_nothing(
    engine: sa.Engine, platform: PlatformResource
) -> None:
    with engine.begin() as conn:
        yesterday = now(conn) - timedelta(days=1)
        for number, origin in enumerate(["gateway", "gateway", "import"]):
            upsert_conversation(
                conn,
                Conversation(
                    session_id=f"s{number}",
                    user_id="u",
                    timestamp=yesterday,
                    messages=[{"role": "user", "content": "hello"}],
                    origin=origin,
                ),
            )
    day = yesterday.date()
    [report] = reports(platform, day - timedelta(days=2), day)
    assert isinstance(report, dg.AssetMaterialization), "conversations are fresh when some arrive"
    metadata = {name: value.value for name, value in report.metadata.items() if name != "daily_history"}
    assert metadata == {
        "day": day.isoformat(),
        "arrived": 3,
        "users": 1,
        "with_test_suite": 0,
        "from_gateway": 2,
        "from_import": 1,
    }
    assert len(report.metadata["daily_history"].records) == DISPLAY_DAYS
    assert reports(platform, day - timedelta(days=9), day - timedelta(days=8)) == []


def test_a_day_without_arrivals_does_not_make_conversations_fresh(
    engine: sa.Engine, platform: PlatformResource
) -> None:
    with engine.connect() as conn:
        yesterday = now(conn).date() - timedelta(days=1)
    [report] = reports(platform, yesterday, yesterday)
    assert isinstance(report, dg.AssetObservation) and report.metadata["arrived"].value == 0
