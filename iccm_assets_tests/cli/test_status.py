"""`iccm status`, with the metrics of both arms (A3)."""

from __future__ import annotations

import json

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.settings import Settings
from iccm_assets_tests.cli.conftest import Run


def request(conn: sa.Connection, name: str, assigned: str, **more: object) -> None:
    version = {"production": "v1", "canary": "v2"}[assigned]
    values = {
        "request_id": name,
        "session_id": name,
        "assigned_arm": assigned,
        "arm": assigned,
        "model_version": version,
    }
    conn.execute(t.requests.insert().values(**{**values, "status": "ok", "latency_ms": 120.0, **more}))


def test_an_empty_platform_has_a_status(run: Run, platform: Settings) -> None:
    output = run("status").output
    assert "No version in production yet" in output and "0 gateway processes are running." in output
    assert json.loads(run("status", "--json").stdout)["live"] == {"arms": [], "replicas": 0, "ready": {}}


def test_both_arms_are_shown_with_their_metrics(run: Run, engine: sa.Engine, platform: Settings) -> None:
    with engine.begin() as conn:
        for version, status in (("v1", "production"), ("v2", "canary")):
            conn.execute(
                t.model_versions.insert().values(version=version, status=status, digest=version, path=version)
            )
        statement = t.rollouts.insert().values(candidate="v2", production="v1", weight=0.1)
        rollout = conn.execute(statement.returning(t.rollouts.c.id)).scalar_one()
        for number in range(4):
            request(conn, f"p{number}", "production", rollout_id=rollout)
        request(conn, "c0", "canary", rollout_id=rollout)
        request(conn, "c1", "canary", rollout_id=rollout, arm="production", status="fallback")
        conn.execute(t.gateway_replicas.insert().values(replica="one", ready_versions=["v1", "v2"]))
        conn.execute(t.alerts.insert().values(key="k", severity="info", title="t"))
    output = run("status").output
    assert "1 gateway processes are running." in output and "Arms, last 24 hours" in output
    assert "120/120/120" in output and "0.500" in output
    assert "1 alerts are not delivered yet (iccm alerts list)." in output
    live = json.loads(run("status", "--json").stdout)["live"]
    assert (live["replicas"], live["ready"]) == (1, {"v1": 1, "v2": 1})
    production, canary = live["arms"]
    assert (production["arm"], production["requests"], production["error_rate"]) == ("production", 4, 0.0)
    assert (canary["version"], canary["requests"], canary["error_rate"]) == ("v2", 2, 0.5)
    assert canary["pass_rate"] is None and canary["latency_p95_ms"] == 120.0
