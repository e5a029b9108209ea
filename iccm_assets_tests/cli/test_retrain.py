"""`iccm retrain` writes one row per key first and reports its outcome."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from iccm_assets.cli import run_job
from iccm_assets.cli.run_job import JobResult
from iccm_assets.errors import IccmError, InputError, OperationNotAllowedError, TrainingError
from iccm_assets.registry import training_runs
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import Run
from iccm_assets_tests.factories.platform_rows import conversation, version
from iccm_assets_tests.factories.sampled_answers import own_answer


class Job:
    """Stand-in for the Dagster run: finishes each claimed row with ``outcome``."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self.engine, self.settings, self.outcome = engine, settings, "gate_passed"
        self.runs: list[int] = []
        self.deployment_error = ""
        self.objective, self.own_answers = "", 0

    def __call__(self, run_id: int, *, rollout: bool) -> JobResult:
        assert rollout, "a person's retrain goes through a rollout"
        self.runs.append(run_id)
        if self.outcome == "crash":
            return JobResult("run", False, "out of memory")
        with self.engine.begin() as conn:
            fence = training_runs.claim_run(conn, run_id, f"run-{len(self.runs)}", self.settings)
            if fence is not None and self.objective:
                self.record_candidate(conn, run_id, fence)
            if fence is not None:
                training_runs.finish_run(conn, run_id, fence, self.outcome, improvement=0.02, notes="[done]")
        # The gate's check fails the Dagster run where the gate does not pass.
        passed = self.outcome in ("gate_passed", "skipped") and not self.deployment_error
        return JobResult("run", passed, "" if passed else self.deployment_error or "1 blocking check failed")

    def record_candidate(self, conn: sa.Connection, run_id: int, fence: int) -> None:
        """Store what the training stores: the candidate, the objective and the model's own answers."""
        name = f"v{run_id + 1}"
        version(conn, name)
        training_runs.update_run(
            conn,
            run_id,
            fence,
            base_version="v1",
            candidate_version=name,
            config={"objective": self.objective},
        )
        for number in range(100 * run_id, 100 * run_id + self.own_answers):
            conversation(conn, number, pool=False, filtered=False)
            own_answer(conn, run_id, number, made_by="v1")


@pytest.fixture
def job(engine: sa.Engine, platform: Settings, monkeypatch: pytest.MonkeyPatch) -> Job:
    made = Job(engine, platform)
    monkeypatch.setattr(run_job, "run_retrain", made)
    return made


def test_a_retrain_by_rft_says_how_many_answers_of_the_model_it_used(
    run: Run, job: Job, engine: sa.Engine
) -> None:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
    job.own_answers, job.objective = 1, "rft"
    printed = run("retrain").stdout
    assert "from v1, by rft with 1 answer of its own\n" in printed
    assert json.loads(run("retrain", "--json").stdout)["own_answers"] == 1
    job.own_answers = 0
    assert "by rft with 0 answers of its own\n" in run("retrain").stdout
    job.objective = "sft"
    assert "by sft\n" in run("retrain").stdout


def test_a_retrain_is_requested_run_and_reported(run: Run, job: Job) -> None:
    report = json.loads(run("retrain", "--reason", "new domain", "--emergency", "--json").stdout)
    assert (report["status"], report["trigger"], report["emergency"]) == ("gate_passed", "manual", True)
    assert report["improvement"] == 0.02
    assert report["notes"] == "new domain\n[done]"
    printed = run("retrain").stdout
    assert "gate_passed, improvement +0.0200" in printed
    assert "reason  requested manually\nresult  [done]\n" in printed
    assert len(job.runs) == 2


@pytest.mark.parametrize("outcome", ["gate_failed", "inconclusive", "skipped"])
def test_an_unsuccessful_gate_is_an_answer_not_an_error(run: Run, job: Job, outcome: str) -> None:
    job.outcome = outcome
    printed = run("retrain", "--reason", "a [new] domain", exit_code=3)
    assert outcome in printed.stdout and "error" not in printed.output
    assert "reason  a [new] domain\nresult  [done]\n" in printed.stdout
    assert json.loads(run("retrain", "--json", exit_code=3).stdout)["status"] == outcome


def test_a_candidate_that_passed_and_was_not_rolled_out_is_an_error_with_the_next_step(
    run: Run, job: Job
) -> None:
    job.deployment_error = "the rollout cannot be opened"
    with pytest.raises(
        IccmError, match=r"passed the gate, but was not rolled out: the rollout .* `iccm deploy"
    ) as error:
        run("retrain")
    assert "Training failed" not in str(error.value)


def test_one_key_is_retrained_once(run: Run, job: Job) -> None:
    run("retrain", "--key", "release-4")
    with pytest.raises(
        OperationNotAllowedError, match=r"key release-4 already had its retrain: run \d+, gate_passed"
    ):
        run("retrain", "--key", "release-4")
    assert len(job.runs) == 1


def test_a_failed_attempt_of_a_key_is_retried_on_its_row_three_times(run: Run, job: Job) -> None:
    job.outcome = "failed"
    for _ in range(3):
        with pytest.raises(TrainingError, match="is failed"):
            run("retrain", "--key", "release-4")
    assert len(set(job.runs)) == 1 and len(job.runs) == 3
    with pytest.raises(OperationNotAllowedError, match="already had its retrain"):
        run("retrain", "--key", "release-4")


def test_a_crashed_job_is_an_error_and_its_row_is_retained(run: Run, job: Job, engine: sa.Engine) -> None:
    job.outcome = "crash"
    with pytest.raises(TrainingError, match="is requested: out of memory"):
        run("retrain", "--key", "release-4")
    with engine.connect() as conn:
        stored = training_runs.get_by_trigger_key(conn, "manual:release-4")
    assert stored is not None and stored.status == "requested"


def test_a_waiting_run_reports_what_it_waits_for(run: Run, job: Job, engine: sa.Engine) -> None:
    with engine.begin() as conn:
        first = training_runs.create_run(
            conn, training_runs.TriggerFired("weekly", "weekly:2026-W09", "60 new examples")
        )
        assert first is not None
        training_runs.claim_run(conn, first.id, "elsewhere", job.settings)
    printed = run("retrain", exit_code=3).stdout
    assert "waiting" in printed
    assert f"waits: training run {first.id} is running" in printed


def test_a_retrain_with_an_unreadable_file_is_not_requested(
    run: Run, job: Job, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICCM_REHEARSAL", "/no/such/file")
    with pytest.raises(InputError, match=r"the rehearsal sample /no/such/file.*Correct ICCM_REHEARSAL"):
        run("retrain")
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.phase4_training_runs")).scalar_one() == 0
