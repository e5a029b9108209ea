"""Exit status 0 means that what was asked for happened; 3 that the command ran and its answer is no."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.cli import run_job
from iccm_assets.evaluation import evaluation_report, evaluation_worker
from iccm_assets.evaluation.quality_gate import evaluate_gate
from iccm_assets.settings import Settings
from iccm_assets.training import reproducibility
from iccm_assets.training.reproducibility import ReproductionReport
from iccm_assets_tests.factories import verdicts
from iccm_assets_tests.factories.commands import Run
from iccm_assets_tests.factories.platform_rows import version


@pytest.mark.parametrize(
    ("kind", "status", "exit_code"), [("better", "pass", 0), ("worse", "fail", 3), ("gap", "inconclusive", 3)]
)
def test_evaluate_exits_0_only_if_the_gate_passes(
    kind: str,
    status: str,
    exit_code: int,
    run: Run,
    platform: Settings,
    engine: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with engine.begin() as conn:
        version(conn, "base", status="production")
        version(conn, kind, "base")
    verdict = evaluate_gate(verdicts.build_evidence(kind), platform.evaluation)
    outcome = SimpleNamespace(production=SimpleNamespace(version="base"), verdict=verdict)
    monkeypatch.setattr(evaluation_worker, "evaluate", lambda *_args, **_options: outcome)
    for name, value in (("summarize_versions", {}), ("slice_rows", []), ("describe_holdout", "")):
        monkeypatch.setattr(evaluation_report, name, lambda _outcome, value=value: value)
    assert f"{status}: " in run("evaluate", kind, exit_code=exit_code).stdout
    document = json.loads(run("evaluate", kind, "--json", exit_code=exit_code).stdout)
    assert document["verdict"]["status"] == status


@pytest.mark.parametrize(
    ("outcome", "exit_code"), [("reproduced", 0), ("imported", 0), ("differs", 3), ("impossible", 1)]
)
def test_verify_exits_0_if_there_is_nothing_to_doubt(
    outcome: Any,
    exit_code: int,
    run: Run,
    platform: Settings,
    engine: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with engine.begin() as conn:
        version(conn, "base", status="production")
    report = ReproductionReport("base", outcome, "because [of it]")
    monkeypatch.setattr(reproducibility, "reproduce_version", lambda *_args, **_options: report)
    assert f"base: {outcome}, because [of it]" in run("verify", exit_code=exit_code).stdout


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("iccm_assets.errors.InputError: The input: rehearsal [x]\n", "The input: rehearsal [x]"),
        (
            "dagster._core.errors.DagsterAssetCheckFailedError: 1 blocking asset check failed\n  a: b\n",
            "DagsterAssetCheckFailedError: 1 blocking asset check failed",
        ),
        (
            "sqlalchemy.exc.DBAPIError: (psycopg.errors.X) no\n[SQL: select 1]",
            "DBAPIError: (psycopg.errors.X) no",
        ),
        ("ValueError: a.b.C: d\n", "ValueError: a.b.C: d"),
    ],
)
def test_the_error_of_a_step_is_one_line_without_the_path_of_its_class(message: str, shown: str) -> None:
    cause = SimpleNamespace(message=message, cause=None)
    error = SimpleNamespace(message="dagster._core.errors.Wrapper: failed", cause=cause)
    event = SimpleNamespace(step_failure_data=SimpleNamespace(error=error))
    assert run_job._root_cause(event) == shown
