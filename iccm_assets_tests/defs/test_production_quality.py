"""`production_quality` as Dagster runs it: a worker process, the real base model, a small canary set (T8)."""

from __future__ import annotations

import gzip

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.db import tables as t
from iccm_assets.defs.automation.schedules import production_quality_schedule
from iccm_assets.defs.monitoring.assets import production_quality
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout.deployment import ensure_production
from iccm_assets.settings import PACKAGED_CANARY_SET, get_settings
from iccm_assets_tests.factories.platform_rows import NOW, version

ITEMS = 24


def tick(platform) -> list[dg.RunRequest] | str:
    context = dg.build_schedule_context(scheduled_execution_time=NOW, resources={"platform": platform})
    result = production_quality_schedule.evaluate_tick(context)
    return result.skip_message or list(result.run_requests or [])


def test_every_six_hours_once_there_is_a_production_version(engine, platform) -> None:
    assert tick(platform) == "there is no production version yet"
    with engine.begin() as conn:
        version(conn, "v1", status="production")
    [request] = tick(platform)
    assert request.run_key == "2026-03-01T02:00"


@pytest.mark.slow
def test_production_is_measured_in_a_process_of_its_own_and_stored(
    engine, platform, instance, tmp_path, monkeypatch
) -> None:
    small = tmp_path / "canary_set.jsonl.gz"
    with gzip.open(PACKAGED_CANARY_SET, "rt") as whole, gzip.open(small, "wt") as few:
        few.writelines(line for line, _ in zip(whole, range(ITEMS), strict=False))
    monkeypatch.setenv("ICCM_CANARY_SET", str(small))
    get_settings.cache_clear()
    settings = get_settings()
    assert len(load_canary_set(settings.canary_set).items) == ITEMS
    ensure_production(engine, ModelStore(settings.home), settings)
    resources = {"platform": platform}
    done = dg.materialize([production_quality], instance=instance, resources=resources)
    assert done.success
    with engine.connect() as conn:
        rows = conn.execute(sa.select(t.quality_measurements).order_by(t.quality_measurements.c.set)).all()
    canary, holdout = rows
    assert (canary.n, canary.mean, canary.baseline_mean) == (ITEMS, canary.mean, canary.mean)
    assert 0.3 < canary.mean <= 1 and canary.evidence["path"] == "loaded for the measurement"
    assert (holdout.set, holdout.n, holdout.mean) == ("production_holdout", 0, None)
    [event] = done.asset_materializations_for_node("production_quality")
    assert event.metadata["canary_set_test_pass_rate"].value == canary.mean
    assert "0.000 below its baseline" in event.metadata["verdict"].value
