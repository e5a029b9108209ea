"""Deployment depends on the verdict of exactly this version; every change is one transaction (E4, M1)."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.registry import versions
from iccm_assets.rollout import deployment


def verdict(status: str, production: str = "v1") -> dict[str, Any]:
    return {"status": status, "reasons": ["improvement: +0.05"], "production": production}


@pytest.mark.parametrize(
    ("status", "verdict", "force", "allowed", "words"),
    [
        ("candidate", verdict("pass"), None, True, "pass"),
        ("candidate", verdict("fail"), None, False, "says fail"),
        ("inconclusive", verdict("inconclusive"), None, False, "says inconclusive"),
        ("candidate", None, None, False, "never evaluated"),
        ("candidate", verdict("pass", "v0"), None, False, "compares it with v0"),
        ("rolled_back", verdict("pass"), None, False, "status rolled_back"),
        ("retired", verdict("pass"), None, False, "status retired"),
        ("gate_failed", verdict("fail"), "the gate is wrong about this", True, "forced by a person"),
        ("candidate", None, "no time", True, "forced by a person"),
        ("production", verdict("pass"), "again", False, "in production already"),
    ],
)
def test_only_a_passing_verdict_against_todays_production_or_a_recorded_reason_allows_it(
    status: str, verdict: dict[str, Any] | None, force: str | None, allowed: bool, words: str
) -> None:
    decision = deployment.authorization_decision("v2", status, "v1", verdict, force)
    assert decision.allowed is allowed
    assert words in decision.reason


def test_no_deployment_brings_erased_data_into_service_without_a_persons_reason() -> None:
    refused = deployment.authorization_decision("v2", "candidate", "v1", verdict("pass"), None, erased=3)
    assert not refused.allowed and "was trained on 3 conversations erased since" in refused.reason
    assert deployment.authorization_decision(
        "v2", "candidate", "v1", verdict("pass"), "worth it", erased=3
    ).allowed


@pytest.fixture
def candidate(engine: sa.Engine) -> str:
    with engine.begin() as conn:
        base = deployment.bootstrap(conn, digest="a" * 64, path="/models/a", base_model="base")
        return versions.register_version(
            conn, digest="b" * 64, path="/models/b", parent=base.version, status="candidate"
        ).version


def store_verdict(engine: sa.Engine, version: str, status: str) -> None:
    with engine.begin() as conn:
        serving = versions.get_production_version(conn)
        assert serving is not None
        conn.execute(
            t.gate_verdicts.insert().values(
                version=version,
                production_version=serving.version,
                status=status,
                verdict={"status": status, "reasons": ["improvement: +0.05"]},
                canary_set_digest="c",
                orchestra="o",
                judge_version="j",
            )
        )


def test_a_passed_candidate_takes_over_in_one_transaction_with_its_event(
    engine: sa.Engine, candidate: str
) -> None:
    store_verdict(engine, candidate, "pass")
    promoted, _ = deployment.deploy(engine, candidate, actor="test")
    assert promoted.status == "production" and promoted.deployed_at is not None
    with engine.connect() as conn:
        statuses = dict(
            conn.execute(sa.select(t.model_versions.c.version, t.model_versions.c.status)).tuples().all()
        )
        events = conn.execute(sa.select(t.deployment_events).order_by(t.deployment_events.c.id)).all()
    assert sorted(statuses.values()) == ["production", "retired"]
    assert [(event.event_type, event.version, event.weight) for event in events][-1] == (
        "promoted",
        candidate,
        1.0,
    )
    assert events[-1].evidence["verdict"] == "pass" and events[-1].actor == "test"


@pytest.mark.parametrize("status", ["fail", "inconclusive", None])
def test_a_refused_candidate_changes_nothing(engine: sa.Engine, candidate: str, status: str | None) -> None:
    if status:
        store_verdict(engine, candidate, status)
    with pytest.raises(OperationNotAllowedError, match="is not deployed"):
        deployment.deploy(engine, candidate, actor="test")
    with engine.connect() as conn:
        serving = versions.get_production_version(conn)
        assert serving is not None and serving.version != candidate
        count = sa.select(sa.func.count()).select_from(t.deployment_events)
        assert conn.execute(count).scalar_one() == 1


def test_the_newest_verdict_counts_not_the_best(engine: sa.Engine, candidate: str) -> None:
    store_verdict(engine, candidate, "pass")
    store_verdict(engine, candidate, "fail")
    with pytest.raises(OperationNotAllowedError, match="says fail"):
        deployment.deploy(engine, candidate, actor="test")


def test_a_forced_deployment_records_who_and_why(engine: sa.Engine, candidate: str) -> None:
    store_verdict(engine, candidate, "fail")
    deployment.deploy(engine, candidate, actor="user:ada", force_reason="outage")
    with engine.connect() as conn:
        event = conn.execute(
            sa.select(t.deployment_events).order_by(t.deployment_events.c.id.desc()).limit(1)
        ).one()
    assert (event.event_type, event.actor) == ("forced", "user:ada")
    assert "outage" in event.notes and event.evidence["forced"] is True


def test_bootstrapping_twice_keeps_the_first_production_version(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        first = deployment.bootstrap(conn, digest="a" * 64, path="/models/a", base_model="base")
        second = deployment.bootstrap(conn, digest="c" * 64, path="/models/c", base_model="other")
    assert first == second
