"""`iccm status`, with the metrics of both arms (A3)."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import Run


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


def test_both_arms_are_shown_with_their_metrics(
    run: Run, engine: sa.Engine, platform: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        metrics = {"training": {"counts": {"new": 30, "too_long": 3}}}
        conn.execute(
            t.model_versions.update().where(t.model_versions.c.version == "v2").values(metrics=metrics)
        )
        retrain = {"trigger": "manual", "trigger_key": "manual:1", "candidate_version": "v2"}
        conn.execute(t.phase4_training_runs.insert().values(**retrain))
        for number, status in enumerate(("usable", "weak", "weak")):
            conn.execute(
                t.test_suites.insert().values(
                    source_sha256=str(number), origin="attached", suite={"kind": "pytest"}, digest="d",
                    generator_version="1", status=status,
                )
            )  # fmt: skip
        scored = {"session_id": "p0", "request_id": "p0", "kind": "model", "text": "x", "test_pass_rate": 0.5}
        pytest_suite = {"test_suite": {"kind": "pytest"}, "test_suite_origin": "attached"}
        conn.execute(t.requirements.insert().values(**scored, **pytest_suite, scored_at=sa.func.iccm.now()))
    output = run("status").output
    assert "1 gateway process is running." in output and "Arms, last 24 hours" in output
    assert "retrain 1: 3 examples were longer than a token limit, and left out" in output
    assert "120/120/120" in output and "0.500" in output
    assert "1 alert is not delivered yet (iccm alerts list --pending)." in output
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run("status").stdout
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 80
    for words in ("sessions 1 (1 by pytest) 0", "p50/p95/p99 ms 120/120/120", "error rate 0.000 0.500"):
        assert words in " ".join(narrow.split())
    status = json.loads(run("status", "--json").stdout)
    assert [retrain["too_long"] for retrain in status["retrains"]] == [3]
    kinds = {"evidence": "pytest", "origin": "attached"}
    assert status["suites"] == [
        {**kinds, "status": "usable", "suites": 1}, {**kinds, "status": "weak", "suites": 2}
    ]  # fmt: skip
    assert "Test suites, measured in 7 days" in output and "1 (1 by pytest)" in output
    live = status["live"]
    assert (live["arms"][0]["scored_sessions"], live["arms"][0]["pytest_sessions"]) == (1, 1)
    assert (live["replicas"], live["ready"]) == (1, {"v1": 1, "v2": 1})
    production, canary = live["arms"]
    assert (production["arm"], production["requests"], production["error_rate"]) == ("production", 4, 0.0)
    assert (canary["version"], canary["requests"], canary["error_rate"]) == ("v2", 2, 0.5)
    assert canary["pass_rate"] is None and canary["latency_p95_ms"] == 120.0
