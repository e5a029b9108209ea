"""What a command decides is in Dagster when the command ends, and agrees with the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from iccm_assets.cli.env import get_dagster_environment
from iccm_assets.cli.main import build_app
from iccm_assets.defs import partitions  # noqa: F401  # reads the first day once: not while a test sets it
from iccm_assets.evaluation import evaluation_worker
from iccm_assets.evaluation.paired_evaluation import EvaluatedVersion
from iccm_assets.settings import Settings, get_settings, load_settings
from iccm_assets_tests.factories.evaluations import BAD, GOOD, ORCHESTRA, FakeModel
from iccm_assets_tests.factories.rollouts import World


@pytest.fixture
def world(engine: sa.Engine, platform: Settings, tmp_path: Path) -> World:
    return World(engine, load_settings(), tmp_path / "models").bootstrap()


@pytest.fixture
def instance(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The instance of this home, which its UI shows."""
    for name, value in get_dagster_environment(world.settings).items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as opened:
        yield opened


@pytest.fixture
def iccm(platform: Settings) -> Iterator[Callable[..., Result]]:
    app = build_app("deploy", "evaluate", "rollback", "rollout")

    def call(*arguments: str) -> Result:
        get_settings.cache_clear()
        result = CliRunner().invoke(app, arguments, catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    yield call
    get_settings.cache_clear()


def shown(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    """The metadata of the asset's newest materialization, as the Overview of its page shows it."""
    [record] = instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
    assert record.asset_materialization is not None
    metadata = record.asset_materialization.metadata
    return {name: getattr(value, "value", None) for name, value in metadata.items()}


def gate(instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation | None:
    key = dg.AssetCheckKey(dg.AssetKey("canary_evaluation"), "quality_gate")
    record = instance.get_latest_asset_check_evaluation_record(key)
    return record.evaluation if record else None


def test_a_deployment_a_pause_and_a_rollback_are_shown_at_once(
    world: World, instance: dg.DagsterInstance, iccm: Callable[..., Result]
) -> None:
    iccm("deploy", world.candidate, "--force", "--reason", "a drill")
    state = shown(instance, "deployed_model_version")
    assert (state["version"], state["state"], state["weight"]) == (world.candidate, "ramping", 0.0)
    assert state["production_version"] == world.production
    iccm("rollout", "pause", "--reason", "lunch")
    state = shown(instance, "deployed_model_version")
    assert state["state"] == "paused" and "lunch" in state["reason"]
    assert json.loads(iccm("rollback", "--reason", "bad feeling", "--json").stdout)["rolled_back"]
    state = shown(instance, "deployed_model_version")
    assert (state["state"], state["production_version"]) == ("rolled_back", world.production)
    assert "bad feeling" in state["reason"]
    [status] = world.rows("select version from iccm.model_versions where status = 'production'")
    assert status.version == state["production_version"]


@pytest.mark.slow
def test_a_verdict_by_command_is_shown_at_once(
    world: World,
    instance: dg.DagsterInstance,
    iccm: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [{"call": "f", "args": [n], "expect": 2 * n} for n in (1, 2, 3)]
    items = [
        {
            "item": f"c{number}",
            "slice": "only",
            "source_code": f"def f(x): return x * 2  # {number}",
            "requirements": "double it",
            "test_suite": {"kind": "cases", "cases": cases},
        }
        for number in range(20)
    ]
    path = tmp_path / "canary.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    monkeypatch.setenv("ICCM_CANARY_SET", str(path))
    monkeypatch.setattr(evaluation_worker, "load_orchestra_from_settings", lambda settings: ORCHESTRA)
    monkeypatch.setattr(
        evaluation_worker,
        "_load_version",
        lambda version, settings: EvaluatedVersion(
            version, FakeModel(BAD if version.version == world.candidate else GOOD)
        ),
    )
    iccm("evaluate", world.candidate)
    [stored] = world.rows("select * from iccm.gate_verdicts order by id desc limit 1")
    evaluation, check = shown(instance, "canary_evaluation"), gate(instance)
    assert stored.status == evaluation["verdict"] == "fail"
    assert evaluation["improvement"] == pytest.approx(stored.improvement) and stored.improvement < 0
    assert (evaluation["candidate_version"], evaluation["production_version"]) == (
        world.candidate,
        world.production,
    )
    assert check is not None and not check.passed and "recovery" in check.metadata


def test_a_home_without_dagster_gets_none_by_a_command(world: World, iccm: Callable[..., Result]) -> None:
    iccm("deploy", world.candidate)
    assert not (world.settings.home / "dagster").exists()


def test_a_dagster_that_does_not_answer_fails_no_command(
    world: World,
    instance: dg.DagsterInstance,
    iccm: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> dg.DagsterInstance:
        raise ConnectionError("connection refused")

    monkeypatch.setattr("iccm_assets.cli.run_job._get_instance", refuse)
    result = iccm("deploy", world.candidate)
    assert result.exit_code == 0 and "connection refused" in result.output
    assert world.statuses()[world.candidate] == "canary"
