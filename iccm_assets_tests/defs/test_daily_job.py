"""The daily job leaves its days current: checks are green, nothing is planned again, and counts add up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.data_version import StaleStatus
from dagster._core.test_utils import instance_for_test
from dagster._utils.test.data_versions import get_stale_status_resolver

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.db.clock import now
from iccm_assets.definitions import defs
from iccm_assets.defs.automation.schedules import daily_data_schedule
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.settings import get_settings
from iccm_assets_tests.factories.scorable_rows import SOURCE, SUITE, VACUOUS_PYTEST, make_orchestra, make_text
from iccm_assets_tests.factories.training_pools import HashEmbedder, write_canary_set

pytestmark = pytest.mark.timeout(600)  # long for its few tests: it starts early
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DAILY = ("reconstructions", "filtered_conversations", "training_pool")


@pytest.fixture
def daily_platform(platform: PlatformResource, monkeypatch: pytest.MonkeyPatch, tmp_path) -> PlatformResource:
    """A platform with a small embedder, an orchestra of two members, and a canary set of one item."""
    item = {"item": "i", "slice": "s", "source_code": "pass", "requirements": "none shall."}
    monkeypatch.setenv("ICCM_CANARY_SET", write_canary_set(tmp_path / "canary.jsonl", [item]))
    get_settings.cache_clear()
    monkeypatch.setattr("iccm_assets.models.embedding.Embedder.load", lambda settings: HashEmbedder())
    monkeypatch.setattr(
        "iccm_assets.scoring.orchestra.load_orchestra_from_settings", lambda settings: make_orchestra()
    )
    return platform


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with instance_for_test() as made:
        yield made


def arrive(engine: sa.Engine, session: str, day: date, suite: Any = SUITE, text: str = "") -> None:
    conversation = Conversation(
        session_id=session,
        user_id=f"user of {session}",
        messages=[{"role": "user", "content": "?"}],
        timestamp=datetime.combine(day, time(12), UTC),
        requirements=text or make_text(session),
        source_code=SOURCE,
        test_suite=suite,
        origin="simulated",
    )
    with engine.begin() as conn:
        upsert_conversation(conn, conversation)


def run_planned(platform: PlatformResource, instance: dg.DagsterInstance, today: date) -> list[str]:
    """Run what the schedule requests at 01:00 of ``today``; return the days."""
    at = datetime.combine(today, time(1), UTC)
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=at, resources={"platform": platform}
    ) as context:
        tick = daily_data_schedule.evaluate_tick(context)
    job, days = defs().resolve_job_def("daily_data_job"), []
    for request in tick.run_requests or []:
        assert job.execute_in_process(instance=instance, tags=request.tags, run_config=QUIET).success
        first, last = (
            date.fromisoformat(request.tags[f"dagster/asset_partition_range_{end}"])
            for end in ("start", "end")
        )
        days += [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    return days


def failed_checks(instance: dg.DagsterInstance) -> dict[str, str]:
    keys = list(defs().get_repository_def().asset_graph.asset_check_keys)
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    evaluations = [record.evaluation for record in records.values() if record.evaluation]
    assert evaluations
    return {item.check_name: item.description or "" for item in evaluations if not item.passed}


def test_after_the_daily_run_nothing_is_planned_again_and_no_check_of_it_is_red(
    engine: sa.Engine, daily_platform: PlatformResource, instance: dg.DagsterInstance
) -> None:
    with engine.connect() as conn:
        today = now(conn).date()
    yesterday = today - timedelta(days=1)
    for back in (3, 1):
        for number in range(3):
            arrive(engine, f"s{back}-{number}", today - timedelta(days=back))
    days = [(today - timedelta(days=back)).isoformat() for back in (3, 1)]
    assert run_planned(daily_platform, instance, today) == days
    assert failed_checks(instance) == {}
    assert run_planned(daily_platform, instance, today) == [], "a second night has nothing to do"

    with engine.begin() as conn:  # with the time of yesterday, although it arrives now
        conn.execute(
            sa.text("insert into iccm.feedback (session_id, rating, created_at) values ('s3-0', -1, :at)"),
            {"at": datetime.combine(yesterday, time(12), UTC)},
        )
    job = (
        defs()
        .get_repository_def()
        .get_maybe_subset_job_def(
            "__ASSET_JOB",
            asset_selection=set(),
            asset_check_selection={
                dg.AssetCheckKey(dg.AssetKey("filtered_conversations"), "partitions_are_fresh")
            },
        )
    )
    assert job.execute_in_process(instance=instance, run_config=QUIET).success
    failed = failed_checks(instance)
    assert set(failed) == {"partitions_are_fresh"} and days[0] in failed["partitions_are_fresh"]
    assert days[1] not in failed["partitions_are_fresh"]
    assert run_planned(daily_platform, instance, today) == days[:1]
    assert failed_checks(instance) == {}


@pytest.mark.slow
def test_the_arrivals_of_later_days_do_not_make_earlier_days_stale(
    engine: sa.Engine, daily_platform: PlatformResource, instance: dg.DagsterInstance
) -> None:
    with engine.connect() as conn:
        yesterday = now(conn).date() - timedelta(days=1)
    before = yesterday - timedelta(days=1)
    for session, day in (("a", before), ("b", yesterday)):
        arrive(engine, session, day)
    job = defs().resolve_job_def("daily_data_job")
    for day in (before, yesterday):
        tags = {"dagster/partition": day.isoformat()}
        assert job.execute_in_process(instance=instance, tags=tags, run_config=QUIET).success
    assert instance.get_latest_materialization_event(dg.AssetKey("conversations")) is not None
    assets = set(defs().get_repository_def().assets_defs_by_key.values())
    resolver = get_stale_status_resolver(instance, list(assets))
    for asset in DAILY:
        for day in (before, yesterday):
            assert resolver.get_status(dg.AssetKey(asset), day.isoformat()) == StaleStatus.FRESH, (asset, day)


def test_the_counts_of_a_run_add_up_and_all_metadata_has_names_in_snake_case(
    engine: sa.Engine, daily_platform: PlatformResource, instance: dg.DagsterInstance
) -> None:
    with engine.connect() as conn:
        yesterday = now(conn).date() - timedelta(days=1)
    for number in range(4):
        arrive(engine, f"plain-{number}", yesterday)
    arrive(engine, "same-0", yesterday, text=make_text("same"))
    arrive(engine, "same-1", yesterday, text=make_text("same"))
    arrive(engine, "vacuous", yesterday, suite=VACUOUS_PYTEST)
    arrive(engine, "unsuitable", yesterday, suite=None)
    job = defs().resolve_job_def("daily_data_job")
    tags = {"dagster/partition": yesterday.isoformat()}
    result = job.execute_in_process(instance=instance, tags=tags, run_config=QUIET)
    assert result.success
    shown: dict[str, dict[str, Any]] = {}
    for event in result.all_events:
        if event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            assert materialization.asset_key
            shown[materialization.asset_key.to_user_string()] = dict(materialization.metadata)
        if event.event_type_value == "ASSET_CHECK_EVALUATION":
            evaluation = event.asset_check_evaluation_data
            shown[evaluation.check_name] = dict(evaluation.metadata)
    names = {name for metadata in shown.values() for name in metadata}
    tables = [value for metadata in shown.values() for value in metadata.values()]
    columns = [value.schema.columns for value in tables if isinstance(value, dg.TableMetadataValue)]
    names |= {column.name for table in columns for column in table}
    assert len(names) > 40
    assert sorted(name for name in names if not re.fullmatch(r"(dagster/)?[a-z][a-z0-9_]*", name)) == []

    counts = {name: value.value for name, value in shown["reconstructions"].items()}
    skipped = counts["run_texts_with_invalid_suite"] + counts["run_texts_skipped"]
    assert counts["run_texts"] == 8  # the unsuitable one on a suite recorded from its source
    assert counts["run_texts"] == counts["run_texts_scored"] + counts["run_texts_inconclusive"] + skipped
    unsent = counts["run_texts_reused"] + counts["run_texts_with_unusable_suite"] + skipped
    assert counts["run_texts"] == counts["run_texts_sent"] + unsent and counts["run_texts_sent"] == 7
    responses = sum(counts[f"run_responses_{outcome}"] for outcome in ("answered", "unreadable", "missing"))
    assert responses == 2 * counts["run_texts_sent"]
    parts = ("texts_scored", "texts_inconclusive", "texts_unscored")
    assert counts["texts"] == sum(counts[part] for part in parts) == 8
    by_suite = [value for name, value in counts.items() if name.startswith("texts_suite_")]
    assert sum(by_suite) == counts["texts"]

    counts = {name: value.value for name, value in shown["filtered_conversations"].items()}
    by_reason = [value for name, value in counts.items() if name.startswith("rejected_")]
    assert counts["captured"] == counts["filtered"] + counts["rejected"] == 8
    assert counts["rejected"] == sum(by_reason)
    counts = {name: value.value for name, value in shown["training_pool"].items()}
    assert counts["filtered"] == counts["retained"] + counts["duplicates_removed"]
    assert counts["captured"] == 8
