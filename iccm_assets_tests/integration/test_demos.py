"""The demos as a reader runs them: they succeed, and what they print about the model holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from iccm_assets_tests.factories.commands import ICCM, run
from iccm_assets_tests.factories.demo_platforms import temporary_home
from iccm_assets_tests.factories.processes import bare_environment

# One after the other: in the rollout's first stage a machine has to answer 1,500 sessions in a few minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.xdist_group("demos")]


def run_demo(*arguments: str) -> Any:
    with temporary_home("iccm-demo-") as folder:
        environment = bare_environment() | {"ICCM_HOME": str(folder / "iccm"), "COLUMNS": "160"}
        done = run([*ICCM, "demo", *arguments, "--json"], environment, 3500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_candidate_is_promoted_a_degraded_one_rolled_back_and_every_check_passes() -> None:
    report = run_demo()
    assert len(report["checks"]) >= 10
    assert [check for check in report["checks"] if not check["ok"]] == []
    assert report["rollout"]["state"] == "completed" and report["rollback"]["state"] == "rolled_back"
    [week] = report["weeks"]
    assert week["outcome"] == "gate_passed" and report["last"] == report["rollout"]["candidate"]


def test_several_weeks_end_with_a_version_better_than_the_base_that_forgot_nothing() -> None:
    report = run_demo("--weeks", "2")
    assert len(report["weeks"]) == 2 and report["is_improvement"] and report["base"] != report["last"]
