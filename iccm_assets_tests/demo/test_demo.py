"""The demo from its first version to its end: one clock for all of it, and Dagster shows how it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from rich.console import Console

from iccm_assets.cli.env import get_dagster_environment
from iccm_assets.cli.run_job import JobResult
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.demo import demo, demo_report, reset, rollout_scenario, weekly_cycle, weeks_report
from iccm_assets.demo.acceptance_checks import AcceptanceCheck
from iccm_assets.demo.rollout_report import RolloutReport
from iccm_assets.errors import IccmError
from iccm_assets.reporting.traffic_history import serving_periods, versions_served_at
from iccm_assets.settings import Settings, load_settings
from iccm_assets.simulation.developers import developers
from iccm_assets_tests.factories.demo_weeks import week
from iccm_assets_tests.factories.rollouts import World, short


@pytest.fixture
def world(engine: sa.Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A platform on which a demo has run, whose week, traffic and models are made up."""
    made = World(
        engine, short(load_settings(home=settings.home, database_url=settings.database_url)), tmp_path
    )
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    monkeypatch.setenv("ICCM_DATABASE_URL", str(settings.database_url))
    for name, value in get_dagster_environment(made.settings).items():
        monkeypatch.setenv(name, value)

    def run_week(*arguments: Any, **_options: Any) -> tuple[Any, JobResult, list[Any]]:
        weekly_cycle.set_platform_clock(engine, arguments[5])
        made.open()
        return week(1, "gate_passed", made.production), JobResult("run", True), []

    jobs: list[str] = []

    def run_scenario(*_arguments: Any, before_rollback: Callable[[], object]) -> RolloutReport:
        made.until("completed")
        before_rollback()
        return RolloutReport([])

    def run_job(name: str, **_options: Any) -> JobResult:
        jobs.append(name)
        return JobResult("run", True)

    monkeypatch.setattr(reset, "reset_platform", lambda settings: None)
    monkeypatch.setattr(developers, "plan_conversations", lambda *_arguments, **_options: [])
    monkeypatch.setattr(demo, "ensure_production_version", lambda settings: made.bootstrap().production)
    monkeypatch.setattr(demo, "run_gateway", lambda settings: nullcontext("http://127.0.0.1:9"))
    monkeypatch.setattr(weekly_cycle, "run_week", run_week)
    monkeypatch.setattr(weekly_cycle, "embed_canary_set", lambda *_arguments: None)
    monkeypatch.setattr(rollout_scenario, "run_scenario", run_scenario)
    monkeypatch.setattr(demo, "run_job", run_job)
    monkeypatch.setattr(demo, "_report", lambda *_arguments: None)
    demo._run(made.settings, 1, 5, 7, demo._parse_drift("", 1, 7), 1, with_rollout=True, as_json=False)
    assert jobs == ["production_quality_job"], "its asset has a materialization"
    return made


def test_the_version_that_serves_after_a_demo_serves_until_now(world: World) -> None:
    with world.engine.connect() as conn:
        *_, newest = serving_periods(conn, world.candidate)
        base, *_ = serving_periods(conn, world.production)
        serving, timestamp = versions_served_at(conn, now(conn)), now(conn)
    assert (newest.until, newest.weight) == (None, 1.0) and base.since < newest.since < timestamp
    assert [served.version for served in serving] == [world.candidate]
    created = world.rows("select version from iccm.model_versions order by created_at")
    assert [row.version for row in created] == [world.production, world.candidate]


def test_dagster_shows_how_the_rollout_of_a_demo_ended(world: World) -> None:
    with dg.DagsterInstance.get() as instance:
        asset = dg.AssetKey("deployed_model_version")
        [record] = instance.fetch_materializations(asset, limit=1).records
        assert record.asset_materialization is not None
        state = {name: value.value for name, value in record.asset_materialization.metadata.items()}
        check = dg.AssetCheckKey(asset, "exactly_one_production_version")
        evaluated = instance.get_latest_asset_check_evaluation_record(check)
    assert (state["version"], state["state"], state["weight"]) == (world.candidate, "completed", 1.0)
    assert state["production_version"] == world.candidate and "waiting_for" not in state
    assert evaluated is not None and evaluated.evaluation is not None and evaluated.evaluation.passed


def skipped_week() -> weekly_cycle.WeekResult:
    made = week(1, "skipped", "v1", notes="0 of 20 new examples, too few to train on")
    assert made.run is not None
    return replace(made, run=replace(made.run, improvement=None))


def add_missing_reconstruction(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        text = {"session_id": "s", "kind": "accepted", "text": "f shall return 1."}
        made = conn.execute(
            t.requirements.insert().values(**text).returning(t.requirements.c.id)
        ).scalar_one()
        conn.execute(
            t.reconstructions.insert().values(
                requirement_id=made, reconstructor="openai:http://h/v1#a", status="missing", reason="refused"
            )
        )


def test_a_demo_without_a_verdict_fails_with_the_cause(
    engine: sa.Engine, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    def end() -> str:
        with pytest.raises(IccmError, match=r"no candidate was evaluated \(skipped\)") as error:
            demo._report(engine, settings, [skipped_week()], None, None, 1.0, as_json=False)
        assert "Funnel" in capsys.readouterr().out
        return str(error.value)

    assert "0 of 20 new examples" in end() and "More --conversations" in end()
    add_missing_reconstruction(engine)
    text = end()
    assert "no text was scored; openai:http://h/v1#a: refused (1 texts)" in text
    assert "`iccm orchestra check`" in text and "0 of 20" not in text


def test_a_demo_whose_rollout_fails_reports_everything_before_it_fails(
    engine: sa.Engine,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = [AcceptanceCheck("the quality gate passed", True, "yes")]
    checks.append(AcceptanceCheck("the rollouts ended", False, "after 900 s"))
    rollouts = RolloutReport(checks, error=IccmError("rollout 1 is ramping after 900 s"))
    monkeypatch.setattr(demo, "_base_version", lambda engine: "v1")
    monkeypatch.setattr(weeks_report, "compare_with_base", lambda *_arguments: None)
    monkeypatch.setattr(weeks_report, "to_json", lambda weeks, comparison: {"weeks": len(weeks)})
    weeks = [week(1, "gate_failed", "v1")]
    with pytest.raises(IccmError, match="ramping after 900 s"):
        demo._report(engine, settings, weeks, None, rollouts, 1.0, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["weeks"] == 1 and [check["ok"] for check in report["checks"]] == [True, False]
    assert "1 of 2 acceptance checks passed" in report["summary"]


def test_the_ends_of_the_training_curve_are_means_of_epochs(engine: sa.Engine, tmp_path: Path) -> None:
    """A single step of few examples may be far from them."""
    steps = [(0.5, 0.001), (1.0, 0.999), (1.5, 0.4), (2.0, 0.2)]
    history: list[dict[str, Any]] = [{"epoch": epoch, "loss": loss} for epoch, loss in steps]
    history += [{"epoch": 1.0, "validation_loss": 0.35}, {"epoch": 2.0, "validation_loss": 0.25}]
    (tmp_path / "training_history.json").write_text(json.dumps(history), "utf-8")
    values = {"version": "v2", "status": "candidate", "digest": "d", "path": str(tmp_path)}
    console = Console(file=StringIO(), width=120)
    with engine.begin() as conn:
        conn.execute(t.model_versions.insert().values(**values))
        demo_report._print_training(conn, "v2", console)
    training, validation = console.file.getvalue().splitlines()[-2:]
    assert re.fullmatch(r"  training loss    0\.500 \S+ 0\.300  \(means of the first .* 4 steps\)", training)
    assert re.fullmatch(r"  validation loss  0\.350 \S+ 0\.250  \(best .*\)", validation)


def test_the_summary_of_slices_names_gains_losses_and_how_many_fell() -> None:
    changes = {"rules": 0.636, "ends": 0.264, "sieve": -0.068, "same": 0.0, demo_report.ALL_ITEMS: 0.0265}
    summary = demo_report.summarize_slices([{"slice": name, "change": c} for name, c in changes.items()])
    assert summary == "Largest gains: rules +0.636, ends +0.264. 1 of 4 slices fell: sieve -0.068."
