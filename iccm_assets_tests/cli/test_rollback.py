"""`iccm rollout show|pause|resume|approve|abort`, `iccm rollback`, `iccm deploy`, on a real database (R9)."""

from __future__ import annotations

import getpass
import json
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.errors import (
    InputError,
    ModelError,
    OperationNotAllowedError,
    RecordNotFoundError,
    UsageError,
)
from iccm_assets.settings import Settings, get_settings, load_settings
from iccm_assets_tests.factories.rollouts import World

ME = f"user:{getpass.getuser()}"


@pytest.fixture
def world(engine: sa.Engine, platform: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name, value in {"FIRST_STAGE_HOURS": "0.1", "REPLAY_THRESHOLD_SESSIONS": "0"}.items():
        monkeypatch.setenv(f"ICCM_ROLLOUT__{name}", value)
    return World(engine, load_settings(), tmp_path / "models").bootstrap()


def iccm(*arguments: str) -> Result:
    app = build_app("deploy", "rollback", "rollout")
    get_settings.cache_clear()
    try:
        result = CliRunner().invoke(app, arguments, catch_exceptions=True)
    finally:
        get_settings.cache_clear()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def iccm_json(*arguments: str) -> dict:
    return json.loads(iccm(*arguments, "--json").stdout)


def test_deploying_opens_a_rollout_that_show_explains(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordNotFoundError, match="no rollout yet"):
        iccm("rollout", "show")
    deployment = iccm_json("deploy", world.candidate)
    assert deployment["status"] == "canary" and deployment["rollout"] == 1
    state = iccm_json("rollout", "show")
    assert state["waiting_for"][0] == "every gateway replica to have the candidate ready"
    assert (state["state"], state["weight"], state["lease_seconds_left"]) == ("ramping", 0.0, None)
    world.beat()
    world.tick()
    world.ask(arm="canary", rate=0.9)
    world.wait(60)
    world.beat()
    world.tick()
    state = iccm_json("rollout", "show", "1")
    assert state["weight_now"] == 0.1 and state["canary"]["pass_rate"] == 0.9
    assert state["answers"] == {"counted": 1} and state["forecast_hours"] > 0
    assert {row["test"] for row in state["tests"]} >= {"drop_first", "health_floor", "errors"}
    assert all(row["e_value"] < row["threshold"] for row in state["tests"])
    assert [row["event_type"] for row in state["events"]] == ["opened", "started"]
    shown = iccm("rollout", "show").stdout
    assert (
        "1 of 30 scored canary-arm sessions" in shown and "waiting for:" in shown and "health_floor" in shown
    )
    monkeypatch.setenv("COLUMNS", "80")
    shown = iccm("rollout", "show").stdout
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    assert re.search(r"healthy for 6\d s of \d+ (s|min|h),", shown)
    assert re.search(r"^errors +0\.\d{3} +1333 *$", shown, re.MULTILINE)
    with pytest.raises(RecordNotFoundError, match="no rollout 9"):
        iccm("rollout", "show", "9" * 30)
    for watch in ("nan", "inf", "0"):
        with pytest.raises(UsageError, match="--watch"):
            iccm("rollout", "show", "--watch", watch)


def test_commands_are_recorded_with_the_system_user(world: World) -> None:
    iccm("deploy", world.candidate)
    world.beat()
    world.tick()
    assert "paused" in iccm("rollout", "pause", "--reason", "[lunch]").stdout
    assert iccm_json("rollout", "resume")["state"] == "ramping"
    assert iccm_json("rollout", "approve")["state"] == "ramping"
    assert iccm_json("rollout", "abort", "--reason", "not today")["state"] == "aborted"
    rows = world.rows(
        "select event_type, actor, notes from iccm.deployment_events where actor = :me order by id", me=ME
    )
    assert [row.event_type for row in rows] == ["opened", "paused", "resumed", "approved", "aborted"]
    assert "[lunch]" in rows[1].notes and "not today" in rows[-1].notes
    with pytest.raises(OperationNotAllowedError, match="no rollout is live"):
        iccm("rollout", "pause")
    iccm("rollout", "show", "--watch", "0.1")  # what is over is shown once


def test_rollback_rolls_back_the_candidate_and_a_second_one_has_no_target(world: World) -> None:
    iccm("deploy", world.candidate)
    done = iccm_json("rollback", "--reason", "bad feeling")
    assert (done["rolled_back"], done["serving"]) == (world.candidate, world.production)
    with pytest.raises(OperationNotAllowedError, match="no previous production version"):
        iccm("rollback")


def test_skipping_the_rollout_requires_a_reason_and_records_it(world: World) -> None:
    for flag in ("--skip-rollout", "--force"):
        with pytest.raises(InputError, match=f"{flag} requires --reason"):
            iccm("deploy", world.candidate, flag)
    done = iccm_json("deploy", world.candidate, "--skip-rollout", "--reason", "no gateway yet")
    assert (done["status"], done["rollout"]) == ("production", None)
    [event] = world.rows("select * from iccm.deployment_events order by id desc limit 1")
    assert (event.event_type, event.actor) == ("promoted", ME)
    assert event.evidence["without_rollout"] == "no gateway yet" and "no gateway yet" in event.notes
    assert iccm_json("rollback")["serving"] == world.production


def test_a_forced_version_skips_the_gate_and_not_the_rollout(world: World) -> None:
    worse = world.version("c", verdict="fail", status="gate_failed")
    with pytest.raises(OperationNotAllowedError, match="says fail"):
        iccm("deploy", worse)
    deployment = iccm_json("deploy", worse, "--force", "--reason", "a drill")
    assert deployment["rollout"] == 1 and world.statuses()[world.production] == "production"


def test_a_forced_version_without_a_rollout_has_to_load_first(world: World) -> None:
    unknown = world.version("c", verdict=None)
    with pytest.raises(ModelError, match=r"c has no config\.json"):
        iccm("deploy", unknown, "--force", "--skip-rollout", "--reason", "outage")
    assert world.statuses()[world.production] == "production"
