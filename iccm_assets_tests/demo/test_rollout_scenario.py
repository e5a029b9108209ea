"""Developers, live scoring and controller at once, on a real gateway: a failing candidate is rolled back."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from io import StringIO

import pytest
import sqlalchemy as sa
from rich.console import Console

from iccm_assets.db import tables as t
from iccm_assets.db.notify import notify_routing
from iccm_assets.demo import rollout_report, rollout_scenario
from iccm_assets.demo.acceptance_checks import check_responses
from iccm_assets.rollout.policy import Policy
from iccm_assets.settings import load_settings
from iccm_assets.simulation.developers.live_sessions import make_code_base
from iccm_assets_tests.factories.demo_weeks import week
from iccm_assets_tests.factories.gateways import gateway, two_versions


def insert_rollout(engine: sa.Engine, policy: Policy) -> int:
    with engine.begin() as conn:
        made = conn.execute(
            t.rollouts.insert()
            .values(candidate="v2", production="v1", policy=asdict(policy))
            .returning(t.rollouts.c.id)
        ).scalar_one()
        notify_routing(conn)
    return int(made)


@pytest.mark.slow
def test_a_failing_candidate_is_rolled_back_and_every_developer_is_answered(engine, tmp_path) -> None:
    two_versions(engine)
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    settings = load_settings(home=tmp_path, database_url=url)
    rollout = insert_rollout(engine, Policy.from_settings(settings.rollout, settings.evaluation))
    assert rollout_scenario.get_live_rollout_id(engine) == rollout
    with gateway(url, tmp_path, faults={"v2": "error"}) as running:
        modules = make_code_base(1, date(2026, 3, 1))[:12]
        context = rollout_scenario.ScenarioContext(engine, settings, running.url, "", modules, 1)
        record, replies = rollout_scenario.run_rollout(context, rollout)
    assert (record.state, record.weight, record.production) == ("rolled_back", 0.0, "v1")
    assert (
        record.events[-1]["notes"].startswith("error_rate_spike")
        and record.events[-1]["actor"] == "controller"
    )
    [split] = record.splits
    assert split.fallbacks == split.canary_requests >= settings.rollout.health_requests
    assert (split.weight, split.failed, split.both_arms) == (0.1, 0, 0)
    assert check_responses([replies]).ok and replies.arms["production"] == sum(replies.arms.values())
    assert [row["reason"] for row in record.rollbacks] == ["error_rate_spike"]
    assert "Model Rollback" in [row["title"] for row in record.alerts]
    assert rollout_scenario.get_live_rollout_id(engine) is None


def test_a_rollout_that_does_not_end_is_aborted_and_reported(engine, tmp_path, monkeypatch) -> None:
    two_versions(engine)
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    settings = load_settings(home=tmp_path, database_url=url)
    rollout = insert_rollout(engine, Policy.from_settings(settings.rollout, settings.evaluation))
    monkeypatch.setattr(rollout_scenario, "TIMEOUT_SECONDS", 2.0)
    with gateway(url, tmp_path) as running:
        result = week(1, "gate_passed", "v1")
        report = rollout_scenario.run_scenario(engine, settings, running.url, "", 1, result)
    assert f"rollout {rollout} is " in str(report.error) and "after 2 s" in str(report.error)
    assert rollout_scenario.get_live_rollout_id(engine) is None
    assert report.seconds["traffic"] == 40.0
    assert [check.name for check in report.checks if not check.ok] == ["the rollouts ended"]
    console = Console(file=StringIO(), width=120)
    rollout_report.print_rollout_report(report, console)
    assert "quality gate passed" in console.file.getvalue() and "after 2 s" in console.file.getvalue()
