"""The demos as a reader runs them: they succeed, and what they print about the model holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from iccm_assets_tests.factories.commands import ICCM, run
from iccm_assets_tests.factories.demo_platforms import temporary_home
from iccm_assets_tests.factories.processes import bare_environment

# One after the other: in the rollout's first stage a machine has to answer 2,400 sessions in a few minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.xdist_group("demos")]


def run_demo(*arguments: str, exit_codes: tuple[int, ...] = (0,)) -> tuple[Any, int]:
    with temporary_home("iccm-demo-") as folder:
        environment = bare_environment() | {"ICCM_HOME": str(folder / "iccm"), "COLUMNS": "160"}
        done = run([*ICCM, "demo", *arguments, "--json"], environment, 3500)
    assert done.returncode in exit_codes, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout), done.returncode


def test_a_candidate_is_promoted_a_degraded_one_rolled_back_and_every_check_passes() -> None:
    report, _ = run_demo()
    assert len(report["checks"]) >= 10
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert report["rollout"]["state"] == "completed" and report["rollback"]["state"] == "rolled_back"
    [week] = report["weeks"]
    assert week["outcome"] == "gate_passed" and report["last"] == report["rollout"]["candidate"]


def test_several_weeks_end_with_a_version_better_than_the_base_or_say_what_was_lost() -> None:
    # Whether a slice is lost is measured, and differs between runs; the gain does not.
    report, exit_code = run_demo("--weeks", "2", exit_codes=(0, 1))
    comparison = report["comparison"]
    assert len(report["weeks"]) == 2 and all(week["run"]["improvement"] for week in report["weeks"])
    assert report["base"] != report["last"] and comparison["low"] > 0.0
    rules = [comparison[name] for name in ("improvement", "no_forgetting", "no_pooled_forgetting")]
    lost = [rule["reason"] for rule in rules if rule["outcome"] != "pass"]
    assert report["is_improvement"] == (exit_code == 0) == (not lost)
    assert not lost or report["reason"] == "; ".join(lost)
