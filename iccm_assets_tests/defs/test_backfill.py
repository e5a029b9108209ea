"""A backfill of 90 days is a handful of runs and leaves the pool that 90 daily runs leave (U5, P4)."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.test_utils import instance_for_test

from iccm_assets.capture.conversations import sha256_of_source
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db.database import create_engine_for
from iccm_assets.definitions import defs
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.settings import get_settings
from iccm_assets_tests.factories.training_pools import HashEmbedder, dump_tables, write_canary_set

FIRST, DAYS, PER_DAY = date(2026, 1, 1), 90, 20
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def fill(engine: sa.Engine) -> None:
    """Scored conversations, some of them held out, of bad quality or near-duplicates across days."""
    conversations, requirements = [], []
    for number in range(DAYS * PER_DAY):
        day = FIRST + timedelta(days=number // PER_DAY)
        session = f"session-{number}"
        text = f"w{number * 7919 % 700} shall be {number % 50}."
        source = f"def f(): return {number}"
        conversations.append(
            {
                "id": number + 1,
                "session_id": session,
                "timestamp": datetime(day.year, day.month, day.day, 9, tzinfo=UTC),
                "content": json.dumps([{"role": "user", "content": "write it down"}]),
                "metadata": json.dumps({"source_code": source}),
            }
        )
        requirements.append(
            {
                "id": number + 1,
                "session_id": session,
                "text": text,
                "source_sha256": sha256_of_source(source),
                "rate": 0.5 if number % 9 == 0 else 0.8 + number % 20 / 100,
            }
        )
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                """insert into iccm.conversations (id, session_id, "timestamp", content, metadata, origin)
                   values (:id, :session_id, :timestamp, :content, :metadata, 'simulated')"""
            ),
            conversations,
        )
        conn.execute(
            sa.text(
                """insert into iccm.requirements (session_id, conversation_id, kind, text, source_sha256,
                       test_suite, test_suite_origin, test_pass_rate, implementation_variance, scored_at)
                   values (:session_id, :id, 'accepted', :text, :source_sha256,
                       '{"kind": "cases"}', 'attached', :rate, 0, iccm.now())"""
            ),
            requirements,
        )


def outcome(engine: sa.Engine) -> list[list[str]]:
    from iccm_assets.db import tables as t

    with engine.begin() as conn:  # when it was folded is the only thing that may differ
        conn.execute(sa.text("update iccm.pool_days set rebuilt_at = 'epoch'"))
        conn.execute(sa.text("update iccm.filtered_days set filtered_at = 'epoch'"))
    return dump_tables(
        engine, t.filtered_conversations, t.phase4_training_data, t.phase4_rejections, t.pool_days
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_backfill_of_90_days_is_two_runs_and_equals_90_daily_ones(
    engine: sa.Engine, new_database, platform: PlatformResource, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """In Dagster the backfill; the daily runs are the same two calls day by day, in another database.

    As Dagster splits an asset backfill: the self-dependent pool is a run of its own.
    """
    path = write_canary_set(
        tmp_path / "canary.jsonl", [{"item": "i", "source_code": "pass", "requirements": "none shall."}]
    )
    monkeypatch.setenv("ICCM_CANARY_SET", path)
    get_settings.cache_clear()
    monkeypatch.setattr("iccm_assets.models.embedding.Embedder.load", lambda settings: HashEmbedder())
    fill(engine)
    repository = defs().get_repository_def()
    tags = {
        "dagster/asset_partition_range_start": FIRST.isoformat(),
        "dagster/asset_partition_range_end": (FIRST + timedelta(days=DAYS - 1)).isoformat(),
    }
    with instance_for_test() as instance:
        for assets in (["reconstructions", "filtered_conversations"], ["training_pool"]):
            job = repository.get_maybe_subset_job_def(
                "__ASSET_JOB",
                asset_selection={dg.AssetKey(name) for name in assets},
                asset_check_selection=set(),
            )
            assert job.execute_in_process(instance=instance, tags=tags, run_config=QUIET).success
        pool = dg.AssetKey("training_pool")
        assert len(instance.get_materialized_partitions(pool)) == DAYS
        assert instance.get_runs_count() == 2
        last = instance.fetch_materializations(dg.AssetRecordsFilter(pool, ["2026-03-31"]), limit=1)
        story = last.records[0].asset_materialization.metadata
    assert story["captured"].value == story["scored"].value == PER_DAY
    held_out = sum(is_in_holdout(f"session-{n}", 0.15) for n in range((DAYS - 1) * PER_DAY, DAYS * PER_DAY))
    reasons = {record.data["reason"]: record.data["conversations"] for record in story["rejections"].records}
    assert reasons["held_out"] == held_out
    assert sum(reasons.values()) + story["retained"].value == PER_DAY
    assert story["duplicates_removed"].value == reasons.get("duplicate", 0)

    daily = create_engine_for(new_database())
    fill(daily)
    embedder, settings = HashEmbedder(), get_settings()
    for number in range(DAYS):
        day = FIRST + timedelta(days=number)
        filter_day(daily, day, settings, embedder)
        rebuild_pool(daily, [day], settings, embedder)
    assert outcome(daily) == outcome(engine)
    kept, removed = (len(rows) for rows in (outcome(daily)[1], outcome(daily)[2]))
    assert kept > 300 and removed > 300
    daily.dispose()
