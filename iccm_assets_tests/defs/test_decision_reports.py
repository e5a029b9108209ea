"""What is decided outside a Dagster run reaches its assets and checks, once, and agrees with the database."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._core.test_utils import create_run_for_test, instance_for_test

from iccm_assets.db import tables as t
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.definitions import defs
from iccm_assets.defs.automation.decision_reports import EVALUATION, LIVE_CHECKS, report_decisions
from iccm_assets.defs.automation.sensors import decision_report_sensor
from iccm_assets.defs.evaluation.assets import NO_MISSING_ITEMS, QUALITY_GATE
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.rollout import controller, deployment, rollback
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories.rollouts import World, short
from iccm_assets_tests.factories.verdicts import store_verdict

Report = Callable[[], list[str]]


@pytest.fixture
def world(engine: sa.Engine, settings: Settings, tmp_path: Path) -> World:
    settings = load_settings(profile="production", home=settings.home, database_url=settings.database_url)
    return World(engine, short(settings), tmp_path / "models").bootstrap()


@pytest.fixture
def report(world: World, instance: dg.DagsterInstance) -> Report:
    def call() -> list[str]:
        with world.engine.begin() as conn:
            return report_decisions(conn, world.settings, instance)

    return call


def shown(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    """The metadata of the asset's newest materialization, which its Overview shows."""
    [record] = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
    assert record.asset_materialization is not None
    metadata = record.asset_materialization.metadata
    return {
        name: value if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in metadata.items()
    }


def count(instance: dg.DagsterInstance, asset: str) -> int:
    return len(instance.fetch_materializations(dg.AssetKey(asset), limit=100).records)


def evaluation(instance: dg.DagsterInstance, asset: str, name: str) -> Any:
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    record = instance.get_latest_asset_check_evaluation_record(key)
    return record and record.evaluation


def test_the_first_production_version_is_shown_with_all_its_checks(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    report()
    state = shown(instance, "deployed_model_version")
    assert state["production_version"] == state["version"] == world.production
    assert (state["state"], state["weight"], state["event"]) == ("production", 1.0, "bootstrapped")
    for check in LIVE_CHECKS[dg.AssetKey("deployed_model_version")]:
        result = evaluation(instance, "deployed_model_version", check.rsplit(".", 1)[1])
        assert result.passed and result.target_materialization_data is not None
    assert report() == []


def test_a_rollout_is_shown_from_its_opening_to_its_end(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    world.open()
    for stage, weight in ((1, 0.1), (2, 0.5), (3, 1.0)):
        world.stage(stage)
        report()
        state = shown(instance, "deployed_model_version")
        assert (state["version"], state["stage"], state["weight"]) == (world.candidate, stage, weight)
    assert state["production_version"] == world.candidate and state["state"] == "baking"
    world.until("completed")
    report()
    state = shown(instance, "deployed_model_version")
    assert (state["state"], state["weight"], state["production_version"]) == (
        "completed",
        1.0,
        world.candidate,
    )
    assert state["timeline"].records[0].data["event"] == "completed"
    assert report() == []


def test_commands_on_a_rollout_are_shown_with_their_actor(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    world.open()
    world.step()
    for verb, expected in (("pause", "paused"), ("resume", "ramping"), ("abort", "aborted")):
        controller.execute_command(world.engine, world.settings, verb, actor="user:ada", note="a drill")
        assert report()
        state = shown(instance, "deployed_model_version")
        assert (state["state"], state["actor"]) == (expected, "user:ada") and "a drill" in state["reason"]
    assert state["weight"] == 0.0 and state["production_version"] == world.production
    assert "waiting_for" not in state


def test_a_long_reason_is_shown_as_markdown_by_a_report_and_by_a_run(
    world: World, platform: PlatformResource, report: Report, instance: dg.DagsterInstance
) -> None:
    from iccm_assets.defs.rollout.assets import deployed_model_version

    def reason() -> Any:
        [record] = instance.fetch_materializations(dg.AssetKey("deployed_model_version"), limit=1).records
        assert record.asset_materialization is not None
        return record.asset_materialization.metadata["reason"]

    world.open()
    controller.execute_command(world.engine, world.settings, "pause", actor="user:ada", note="a drill " * 20)
    report()
    assert isinstance(reason(), dg.MarkdownMetadataValue) and "a drill a drill" in str(reason().value)
    result = dg.materialize(
        [deployed_model_version],
        instance=instance,
        resources={"platform": platform},
        run_config={"ops": {"deployed_model_version": {"config": {"version": world.candidate}}}},
    )
    assert result.success and isinstance(reason(), dg.MarkdownMetadataValue)
    controller.execute_command(world.engine, world.settings, "abort", actor="user:ada", note="over")
    report()
    assert isinstance(reason(), dg.TextMetadataValue)


def test_a_deployment_without_a_rollout_and_its_rollback_are_shown(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    deployment.deploy(world.engine, world.candidate, actor="user:ada", note="no gateway yet")
    report()
    state = shown(instance, "deployed_model_version")
    assert (state["production_version"], state["event"]) == (world.candidate, "promoted")
    assert count(instance, "production_quality") == 0  # nothing is known of either version
    rollback.roll_back(world.engine, world.settings, actor="user:ada", reason="bad feeling")
    report()
    state = shown(instance, "deployed_model_version")
    assert (state["production_version"], state["version"]) == (world.production, world.production)
    assert (state["event"], state["weight"], state["actor"]) == ("rolled_back", 1.0, "user:ada")
    assert "bad feeling" in state["reason"]


@pytest.mark.parametrize(
    ("kind", "verdict"), [("worse", "fail"), ("better", "pass"), ("gap", "inconclusive")]
)
def test_a_verdict_by_command_reaches_the_evaluation_and_its_gate(
    world: World, report: Report, instance: dg.DagsterInstance, kind: str, verdict: str
) -> None:
    assert store_verdict(world.engine, world.candidate, world.production, kind) == verdict
    report()
    metadata, gate = (
        shown(instance, "canary_evaluation"),
        evaluation(instance, "canary_evaluation", "quality_gate"),
    )
    assert (metadata["candidate_version"], metadata["verdict"]) == (world.candidate, verdict)
    assert "numbers" in metadata["forgetting_matrix"] and metadata["candidate_test_pass_rate"] <= 1
    assert gate.passed == (verdict == "pass") and gate.blocking
    assert ("recovery" in gate.metadata) == (verdict != "pass")
    missing = evaluation(instance, "canary_evaluation", "no_missing_items")
    assert missing.passed == (kind != "gap")
    before = count(instance, "canary_evaluation")
    assert report() == [] and count(instance, "canary_evaluation") == before


def test_every_verdict_since_the_last_report_is_reported_in_order(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    store_verdict(world.engine, world.candidate, world.production, "better")
    report()
    for kind in ("worse", "equal", "better"):
        store_verdict(world.engine, world.candidate, world.production, kind)
    assert [line.rsplit(" ", 1)[1] for line in report() if line.startswith("verdict")] == [
        "fail",
        "fail",
        "pass",
    ]
    assert shown(instance, "canary_evaluation")["verdict"] == "pass"


def test_the_verdict_of_a_run_is_left_to_the_run_unless_it_died(world: World, settings: Settings) -> None:
    with instance_for_test() as instance:

        def report() -> list[str]:
            with world.engine.begin() as conn:
                return [
                    line for line in report_decisions(conn, world.settings, instance) if "verdict" in line
                ]

        store_verdict(world.engine, world.candidate, world.production, "better")
        report()
        run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
        store_verdict(world.engine, world.candidate, world.production, "worse", run.run_id)
        assert report() == []
        instance.report_run_failed(run)
        [line] = report()
        assert line.endswith("fail") and report() == []


def test_what_a_run_reports_itself_is_not_reported_again(
    world: World, platform: PlatformResource, report: Report, instance: dg.DagsterInstance
) -> None:
    from iccm_assets.defs.rollout.assets import deployed_model_version

    report()
    run_config = {"ops": {"deployed_model_version": {"config": {"version": world.candidate}}}}
    result = dg.materialize(
        [deployed_model_version],
        instance=instance,
        resources={"platform": platform},
        run_config=run_config,
    )
    assert result.success
    before = count(instance, "deployed_model_version")
    state = shown(instance, "deployed_model_version")
    assert (state["state"], state["weight"], state["version"]) == ("ramping", 0.0, world.candidate)
    # The run evaluates no checks of the asset: the report does.
    assert all(line.startswith("check ") for line in report())
    assert count(instance, "deployed_model_version") == before


def test_a_check_is_reported_when_its_result_changes_and_only_then(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    report()
    with world.engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set status = 'canary' where status <> 'production'"))
    assert report() == ["check statuses_match_rollout: failed"] and report() == []
    with world.engine.begin() as conn:
        conn.execute(sa.text("update iccm.model_versions set status = 'candidate' where status = 'canary'"))
    assert report() == ["check statuses_match_rollout: passed"]
    assert evaluation(instance, "deployed_model_version", "statuses_match_rollout").passed


def test_a_check_that_a_run_planned_is_waited_for_and_reported_when_the_run_ends_without_it(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    report()
    run = instance.create_run_for_job(defs().get_repository_def().get_job("production_quality_job"))
    assert report() == []
    instance.report_run_failed(run)
    assert "check exactly_one_production_version: passed" in report()
    assert report() == []


def test_quality_follows_the_version_in_production(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    def measure(version: str, mean: float) -> None:
        with world.engine.begin() as conn:
            conn.execute(
                t.quality_measurements.insert().values(
                    version=version, set="canary_set", n=700, mean=mean, baseline_mean=mean, judge_version="j"
                )
            )

    report()
    assert count(instance, "production_quality") == 0  # nothing is known of it
    measure(world.production, 0.8)
    report()
    assert shown(instance, "production_quality")["canary_set_test_pass_rate"] == 0.8
    with world.engine.begin() as conn:
        conn.execute(
            t.model_versions.update()
            .where(t.model_versions.c.version == world.candidate)
            .values(metrics={"evaluation": {"test_pass_rate": 0.9, "items": 760}})
        )
    deployment.deploy(world.engine, world.candidate, actor="user:ada")
    report()
    quality = shown(instance, "production_quality")
    assert (quality["version"], quality["canary_set_test_pass_rate"]) == (world.candidate, 0.9)
    assert "not measured through its serving path yet" in quality["source"]
    rollback.roll_back(world.engine, world.settings, actor="user:ada")
    report()
    quality = shown(instance, "production_quality")
    assert (quality["version"], quality["canary_set_test_pass_rate"]) == (world.production, 0.8)
    assert evaluation(instance, "production_quality", "production_quality_is_stable").passed
    assert report() == []


def test_a_rollback_to_a_version_measured_long_ago_is_no_alarm(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    world.wait(30 * 86400)
    deployment.deploy(world.engine, world.candidate, actor="user:ada")
    rollback.roll_back(world.engine, world.settings, actor="user:ada")
    report()
    from iccm_assets.monitoring.checks import load_latest_quality

    with world.engine.connect() as conn:
        latest = load_latest_quality(conn)
    assert latest is not None and latest.version == world.production and latest.hours < 1
    world.wait(14 * 3600)
    report()
    assert not evaluation(instance, "production_quality", "production_quality_is_stable").passed


def test_concurrent_reporters_report_once(world: World, report: Report, instance: dg.DagsterInstance) -> None:
    store_verdict(world.engine, world.candidate, world.production, "worse")
    with ThreadPoolExecutor(4) as pool:
        lines = [line for result in pool.map(lambda _: report(), range(4)) for line in result]
    assert len(lines) == len(set(lines))
    assert count(instance, "deployed_model_version") == count(instance, "canary_evaluation") == 1


def test_another_database_below_the_same_instance_is_reported_anew(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    store_verdict(world.engine, world.candidate, world.production, "better")
    report()
    with world.engine.begin() as conn:  # as a demo that has started again: ids count from 1
        conn.execute(sa.text("delete from iccm.gate_verdicts"))
        conn.execute(sa.text("alter table iccm.gate_verdicts alter column id restart"))
    store_verdict(world.engine, world.candidate, world.production, "worse")
    report()
    assert shown(instance, "canary_evaluation")["verdict"] == "fail"


def test_the_sensor_reports_and_says_what(
    world: World, platform: PlatformResource, instance: dg.DagsterInstance
) -> None:
    def tick() -> str:
        with dg.build_sensor_context(instance=instance, resources={"platform": platform}) as context:
            return decision_report_sensor.evaluate_tick(context).skip_message or ""

    assert f"{world.production} is in production" in tick()
    assert tick() == "the assets show what the database holds"
    with world.engine.begin() as conn:
        acquire_lock(conn, Lock.DAGSTER_REPORTS)
        assert tick() == "a command is reporting"


def test_every_check_of_a_reported_asset_is_reported() -> None:
    graph = defs().get_repository_def().asset_graph
    for asset in ("deployed_model_version", "production_quality"):
        names = {function.rsplit(".", 1)[1] for function in LIVE_CHECKS[dg.AssetKey(asset)]}
        assert names == {key.name for key in graph.asset_check_keys if key.asset_key == dg.AssetKey(asset)}
    evaluated = {
        key.name for key in graph.asset_check_keys if key.asset_key == dg.AssetKey("canary_evaluation")
    }
    assert evaluated == {"quality_gate", "no_missing_items"}


def test_every_asset_check_is_evaluated_by_the_platform_itself() -> None:
    repository = defs().get_repository_def()
    evaluated = {
        dg.AssetCheckKey(asset, function.rsplit(".", 1)[1])
        for asset, functions in LIVE_CHECKS.items()
        for function in functions
    }
    for name in ("daily_data_job", "retrain_job", "production_quality_job"):
        nodes = {node.name for node in repository.get_job(name).nodes}
        evaluated |= {
            key
            for key in repository.asset_graph.asset_check_keys
            if f"{key.asset_key.to_user_string()}_{key.name}" in nodes
        }
    # The evaluation returns the results of its own two.
    evaluated |= {dg.AssetCheckKey(EVALUATION, name) for name in (QUALITY_GATE, NO_MISSING_ITEMS)}
    assert repository.asset_graph.asset_check_keys - evaluated == set()


def test_a_damaged_rollout_is_shown_as_unreadable(
    world: World, report: Report, instance: dg.DagsterInstance
) -> None:
    world.open()
    with world.engine.begin() as conn:
        conn.execute(sa.text("""update iccm.rollouts set evidence = '{"evidence": 1}'"""))
    assert any(line.startswith("check ") for line in report())
    state = shown(instance, "deployed_model_version")
    assert state["state"] == "unreadable" and "rollout 1" in state["reason"]
    assert state["production_version"] == world.production
