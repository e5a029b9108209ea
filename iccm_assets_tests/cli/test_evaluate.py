"""`iccm evaluate --replay`, and the version names of `evaluate` and `deploy`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.errors import InputError, OperationNotAllowedError, VersionNotFoundError
from iccm_assets.settings import Settings
from iccm_assets_tests.factories import verdicts
from iccm_assets_tests.factories.commands import Run


@pytest.fixture
def judged(platform: Settings, engine: sa.Engine) -> Settings:
    """A platform with ten past candidates under its own gate."""
    verdicts.store_verdicts(engine, platform.evaluation)
    return platform


def test_a_replay_lists_changed_verdicts_and_stores_nothing(
    run: Run, judged: Settings, engine: sa.Engine, tmp_path: Path
) -> None:
    before = verdicts.read_tables(engine)
    first, again = (run("evaluate", option, "--json").stdout for option in ("--replay", "--rejudge"))
    assert first == again
    report = json.loads(first)
    assert (len(report["verdicts"]), report["flips"], report["unreadable"]) == (10, [], [])
    assert all(verdict["identical"] for verdict in report["verdicts"])
    assert report["gate"]["max_slice_drop"] == judged.evaluation.max_slice_drop
    path = tmp_path / "gate.toml"
    path.write_text("max_slice_drop = 0.21\n")
    other = json.loads(run("evaluate", "--replay", "--gate", str(path), "--json").stdout)
    assert [(verdict["version"], verdict["before"], verdict["after"]) for verdict in other["flips"]] == [
        ("forgetful", "fail", "pass")
    ]
    printed = run("evaluate", "--replay", "--set", "max_slice_drop=0.21").stdout
    assert "on forgetful: fail → pass: " in printed
    assert "gate then and now: max_slice_drop 0.05 → 0.21" in printed
    assert "10 stored verdicts replayed, 1 changed, 0 cannot be read; nothing was stored." in printed
    assert verdicts.read_tables(engine) == before


def test_damaged_evidence_is_named(run: Run, judged: Settings, engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.gate_verdicts set evidence = '{}' where version = 'slow'"))
    printed = run("evaluate", "--replay").stdout
    assert "on slow: stored gate evidence: " in printed and "1 cannot be read" in printed


def test_invalid_arguments_are_reported_in_one_line(run: Run, judged: Settings) -> None:
    with pytest.raises(InputError, match="no number wish"):
        run("evaluate", "--replay", "--set", "wish=1")
    with pytest.raises(InputError, match="require --replay"):
        run("evaluate", "--set", "max_slice_drop=0.1")
    with pytest.raises(InputError, match="each verdict's own threshold"):
        run("evaluate", "--replay", "--emergency")
    with pytest.raises(VersionNotFoundError, match="'v9'"):
        run("evaluate", "v9", "--rejudge")  # the alias


def test_production_is_accepted_as_a_version_name(run: Run, judged: Settings) -> None:
    with pytest.raises(OperationNotAllowedError, match="base is the version in production"):
        run("evaluate", "production")
    assert json.loads(run("evaluate", "production", "--replay", "--json").stdout)["verdicts"] == []
    with pytest.raises(OperationNotAllowedError, match="base is in production already"):
        run("deploy", "production")
    with pytest.raises(VersionNotFoundError, match="There are: "):
        run("deploy", "v9", "--force", "--reason", "why")
