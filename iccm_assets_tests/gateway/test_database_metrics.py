"""`/metrics`: both arms' figures and the rollout, from the database, without a scrape waiting for it (A3)."""

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
from prometheus_client.parser import text_string_to_metric_families

from iccm_assets.db import tables as t
from iccm_assets.db.database import create_engine_for
from iccm_assets.gateway import database_metrics
from iccm_assets.gateway.database_metrics import DatabaseCollector
from iccm_assets.gateway.metrics import MULTIPROCESS_DIR_ENV
from iccm_assets.reporting.live_traffic import load_live_traffic
from iccm_assets.settings import Settings
from iccm_assets_tests.gateway import factories
from iccm_assets_tests.gateway.factories import eventually, gateway

PATIENCE = 120.0  # seconds; only ends a broken test
SUITE = {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}


@pytest.fixture
def scraped(fresh: sa.Engine, tmp_path: Path) -> Iterator[tuple[sa.Engine, factories.Running]]:
    """A gateway with a rollout at 50 %, requests on both arms, and scores; it reads its figures often."""
    url = fresh.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with fresh.begin() as conn:
        factories.rollout(conn, 0.5, stage=2)
    with gateway(url, tmp_path / "home", ICCM_GATEWAY__DATABASE_METRICS_INTERVAL_SECONDS="1") as running:
        eventually(lambda: running.routing()["rollout"]["effective_weight"] == 0.5, PATIENCE)
        for number in range(24):
            assert running.ask(f"s{number}", request_id=f"r{number}", tests=SUITE).status_code == 200
        assert running.client.post("/v1/feedback", json={"request_id": "r0", "rating": 1}).status_code == 200
        stored = "select from iccm.requirements where kind = 'model' union all select from iccm.feedback"
        eventually(lambda: len(factories.rows(fresh, stored)) == 25, PATIENCE)
        with fresh.begin() as conn:
            r = t.requirements
            conn.execute(
                r.update().where(r.c.kind == "model").values(
                    test_pass_rate=sa.case((r.c.arm == "canary", 0.5), else_=1.0),
                    scored_at=sa.text("iccm.now()"), implementation_variance=0.02, api_compatibility=0.75,
                )
            )  # fmt: skip
        yield fresh, running


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and the values of their labels, in the order of the labels' names."""
    return {
        (one.name, tuple(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_arms_rollout_and_replicas_are_told_from_the_database(
    scraped: tuple[sa.Engine, factories.Running],
) -> None:
    engine, running = scraped

    def told() -> Any:
        found = samples(running.client.get("/metrics").text)
        return found if found.get(("iccm_arm_pass_rate", ("canary", "v2"))) is not None else None

    found = eventually(told, PATIENCE)
    with engine.connect() as conn:
        arms = {one.arm: one for one in load_live_traffic(conn, timedelta(hours=1)).arms}
    assert found["iccm_arm_pass_rate", ("canary", "v2")] == 0.5
    assert found["iccm_arm_pass_rate", ("production", "v1")] == 1.0
    assert found["iccm_arm_implementation_variance", ("canary", "v2")] == 0.02
    assert found["iccm_arm_api_compatibility", ("canary", "v2")] == 0.75
    assert found["iccm_arm_error_rate", ("canary", "v2")] == 0.0
    assert found["iccm_arm_requests", ("canary", "v2")] == arms["canary"].requests > 0
    sessions = found["iccm_arm_scored_sessions", ("canary", "v2")]
    assert sessions + found["iccm_arm_scored_sessions", ("production", "v1")] == 24
    quantiles = [
        found["iccm_arm_latency_seconds", ("production", one, "v1")] for one in ("0.5", "0.95", "0.99")
    ]
    assert 0 < quantiles[0] <= quantiles[1] <= quantiles[2]
    assert sum(one.thumbs_up for one in arms.values()) == 1
    assert found["iccm_rollout", ("v2", "v1", "1", "ramping")] == 1
    assert (found["iccm_rollout_weight", ()], found["iccm_rollout_stage", ()]) == (0.5, 2)
    assert 0 < found["iccm_rollout_lease_seconds", ()] <= 600
    assert (found["iccm_gateway_replicas", ()], found["iccm_gateway_replicas_ready", ("v2",)]) == (1, 1)
    assert found["iccm_production", ("v1",)] == found["iccm_database_metrics_up", ()] == 1


def test_a_scrape_does_not_wait_for_the_database(scraped: tuple[sa.Engine, factories.Running]) -> None:
    engine, running = scraped
    eventually(lambda: "iccm_arm_pass_rate{" in running.client.get("/metrics").text, PATIENCE)
    with engine.begin() as conn:  # the figures' next query waits for this one
        conn.execute(sa.text("lock table iccm.feedback in access exclusive mode"))
        time.sleep(1.5)
        for _ in range(5):  # each ends, or the client gives up, while the lock is held
            assert running.client.get("/metrics").status_code == 200
            assert running.ask("while it waits").status_code == 200


def test_what_is_too_old_is_not_told(engine: sa.Engine, settings: Settings) -> None:
    told = DatabaseCollector(lambda: engine, settings)
    names = {family.name for family in told.collect()}
    assert names == {"iccm_database_metrics_up"}
    with engine.connect() as conn:
        found = load_live_traffic(conn, timedelta(hours=1))
    told._reading = (time.monotonic(), found, 3)
    fresh = {family.name: family.samples for family in told.collect()}
    assert (
        fresh["iccm_database_metrics_up"][0].value == 1 and fresh["iccm_live_scoring_pending"][0].value == 3
    )
    told._reading = (
        time.monotonic()
        - database_metrics.MAX_AGE_INTERVALS * settings.gateway.database_metrics_interval_seconds
        - 1,
        found,
        3,
    )
    old = {family.name: family.samples for family in told.collect()}
    assert (
        set(old) == {"iccm_database_metrics_up", "iccm_database_metrics_age_seconds"}
        and old["iccm_database_metrics_up"][0].value == 0
    )


def test_a_database_that_is_away_ends_no_reading(settings: Settings) -> None:
    asked: list[int] = []

    def away() -> sa.Engine:
        asked.append(1)
        return create_engine_for("postgresql://nobody@127.0.0.1:9/nowhere")

    quick = settings.model_copy(
        update={"gateway": settings.gateway.model_copy(update={"database_metrics_interval_seconds": 0.05})}
    )
    told = DatabaseCollector(away, quick)
    told.start()
    eventually(lambda: len(asked) >= 3, PATIENCE)
    told.stop()
    assert {family.name for family in told.collect()} == {"iccm_database_metrics_up"}


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


def test_workers_that_share_a_port_tell_it_once(tmp_path: Path) -> None:
    environment = {**os.environ, MULTIPROCESS_DIR_ENV: str(tmp_path)}
    for _ in range(2):  # the second one finds the file of the first
        done = subprocess.run(
            [sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("\niccm_database_metrics_up 1.0") == 1
    assert "iccm_gateway_canary_weight 0.1" in done.stdout
