"""`/metrics`: both arms and the rollout, from the database, without a scrape waiting for it (A3)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets.gateway import database_metrics
from iccm_assets.gateway.database_metrics import DatabaseCollector
from iccm_assets.gateway.metrics import MULTIPROCESS_DIR_ENV
from iccm_assets.reporting.live_traffic import load_live_traffic
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.gateways import (
    TIMEOUT_SECONDS,
    RunningGateway,
    eventually,
    gateway_with_traffic,
    metric_samples,
)


@pytest.fixture
def scraped(fresh: sa.Engine, tmp_path: Path) -> Iterator[tuple[sa.Engine, RunningGateway]]:
    with gateway_with_traffic(fresh, tmp_path / "home") as running:
        yield fresh, running


def test_metrics_of_arms_rollout_and_replicas_come_from_the_database(
    scraped: tuple[sa.Engine, RunningGateway],
) -> None:
    engine, running = scraped

    def scrape() -> Any:
        metrics = metric_samples(running.client.get("/metrics").text)
        return metrics if metrics.get(("iccm_arm_pass_rate", ("canary", "v2"))) is not None else None

    metrics = eventually(scrape, TIMEOUT_SECONDS)
    with engine.connect() as conn:
        arms = {arm.arm: arm for arm in load_live_traffic(conn, timedelta(hours=1)).arms}
    assert metrics["iccm_arm_pass_rate", ("canary", "v2")] == 0.5
    assert metrics["iccm_arm_pass_rate", ("production", "v1")] == 1.0
    assert metrics["iccm_arm_implementation_variance", ("canary", "v2")] == 0.02
    assert metrics["iccm_arm_api_compatibility", ("canary", "v2")] == 0.75
    assert metrics["iccm_arm_error_rate", ("canary", "v2")] == 0.0
    assert metrics["iccm_arm_requests", ("canary", "v2")] == arms["canary"].requests > 0
    sessions = metrics["iccm_arm_scored_sessions", ("canary", "v2")]
    assert sessions + metrics["iccm_arm_scored_sessions", ("production", "v1")] == 24
    quantiles = [
        metrics["iccm_arm_latency_seconds", ("production", quantile, "v1")]
        for quantile in ("0.5", "0.95", "0.99")
    ]
    assert 0 < quantiles[0] <= quantiles[1] <= quantiles[2]
    assert sum(arm.thumbs_up for arm in arms.values()) == 1
    assert metrics["iccm_rollout", ("v2", "v1", "1", "ramping")] == 1
    assert (metrics["iccm_rollout_weight", ()], metrics["iccm_rollout_stage", ()]) == (0.5, 2)
    assert 0 < metrics["iccm_rollout_lease_seconds", ()] <= 600
    assert (metrics["iccm_gateway_replicas", ()], metrics["iccm_gateway_replicas_ready", ("v2",)]) == (1, 1)
    assert metrics["iccm_production", ("v1",)] == metrics["iccm_database_metrics_up", ()] == 1


def test_a_scrape_does_not_wait_for_the_database(scraped: tuple[sa.Engine, RunningGateway]) -> None:
    engine, running = scraped
    eventually(lambda: "iccm_arm_pass_rate{" in running.client.get("/metrics").text, TIMEOUT_SECONDS)
    with engine.begin() as conn:  # the collector's next query waits for this one
        conn.execute(sa.text("lock table iccm.feedback in access exclusive mode"))
        time.sleep(1.5)
        for _ in range(5):  # each ends, or the client gives up, while the lock is held
            assert running.client.get("/metrics").status_code == 200
            assert running.request("while it waits").status_code == 200


def test_an_old_reading_is_not_exposed(engine: sa.Engine, settings: Settings) -> None:
    collector = DatabaseCollector(lambda: engine, settings)
    names = {family.name for family in collector.collect()}
    assert names == {"iccm_database_metrics_up"}
    with engine.connect() as conn:
        traffic = load_live_traffic(conn, timedelta(hours=1))
    collector._reading = (time.monotonic(), traffic, 3)
    fresh = {family.name: family.samples for family in collector.collect()}
    assert (
        fresh["iccm_database_metrics_up"][0].value == 1 and fresh["iccm_live_scoring_pending"][0].value == 3
    )
    collector._reading = (
        time.monotonic()
        - database_metrics.MAX_AGE_INTERVALS * settings.gateway.database_metrics_interval_seconds
        - 1,
        traffic,
        3,
    )
    old = {family.name: family.samples for family in collector.collect()}
    assert (
        set(old) == {"iccm_database_metrics_up", "iccm_database_metrics_age_seconds"}
        and old["iccm_database_metrics_up"][0].value == 0
    )


def test_an_unreachable_database_does_not_stop_the_collector(settings: Settings) -> None:
    attempts: list[int] = []

    def unreachable() -> sa.Engine:
        attempts.append(1)
        return create_engine_for("postgresql://nobody@127.0.0.1:9/nowhere")

    quick = settings.model_copy(
        update={"gateway": settings.gateway.model_copy(update={"database_metrics_interval_seconds": 0.05})}
    )
    collector = DatabaseCollector(unreachable, quick)
    collector.start()
    eventually(lambda: len(attempts) >= 3, TIMEOUT_SECONDS)
    collector.stop()
    assert {family.name for family in collector.collect()} == {"iccm_database_metrics_up"}


WORKER = """
from iccm_assets.gateway import database_metrics
from iccm_assets.gateway.metrics import Metrics

class StaticCollector(database_metrics.DatabaseCollector):
    def __init__(self):
        pass
    def collect(self):
        yield database_metrics.gauge("iccm_database_metrics_up", "Fresh.", 1.0)

metrics = Metrics(StaticCollector())
metrics.weight.set(0.1)
print(metrics.render().decode())
"""


def test_workers_that_share_a_port_expose_database_metrics_once(tmp_path: Path) -> None:
    environment = {**os.environ, MULTIPROCESS_DIR_ENV: str(tmp_path)}
    for _ in range(2):  # the second one finds the file of the first
        result = subprocess.run(
            [sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
    assert result.stdout.count("\niccm_database_metrics_up 1.0") == 1
    assert "iccm_gateway_canary_weight 0.1" in result.stdout
