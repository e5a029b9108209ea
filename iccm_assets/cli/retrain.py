"""`iccm retrain`: train, evaluate and roll out a candidate now."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from iccm_assets.cli import run_job
from iccm_assets.cli.console import EXIT_NEGATIVE, AsJson, echo_json, out, print_plain
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import IccmError, OperationNotAllowedError, TrainingError
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.registry.training_runs import TrainingRun


def retrain(
    reason: Annotated[str, typer.Option("--reason", help="Reason; recorded with the run.")] = "",
    emergency: Annotated[
        bool,
        typer.Option("--emergency", help="Emergency rules: failed sessions first, relaxed quality gate."),
    ] = False,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Idempotency key: at most one retrain per key."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Train from this version instead of the one in production."),
    ] = None,
    window_days: Annotated[
        int | None,
        typer.Option("--window-days", min=1, help="Use only examples of this many last days."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Retrain from production: select, train, evaluate, and open a rollout if the gate passes.

    Exits 3 if the retrain ended without a rollout: it was skipped, waits, or the gate did not pass.
    """
    raise typer.Exit(request_retrain(reason, emergency, key, base, window_days, as_json=as_json))


def request_retrain(
    reason: str = "",
    emergency: bool = False,
    key: str | None = None,
    base: str | None = None,
    window_days: int | None = None,
    *,
    as_json: bool = False,
) -> int:
    """Run a retrain and print its result; returns the exit status, ``TrainingError`` if it failed."""
    from iccm_assets.registry import training_runs
    from iccm_assets.retraining.pipeline import load_input_files

    settings, engine = open_platform()
    load_input_files(settings)
    with engine.begin() as conn:
        run = _request(conn, settings, reason, emergency, key, base, window_days)
    result = run_job.run_retrain(run.id, rollout=True)
    with engine.connect() as conn:
        run = training_runs.get_run(conn, run.id)
        own_answers = training_runs.count_own_answers(conn, run.id)
    if as_json:
        echo_json({**asdict(run), "own_answers": own_answers, "dagster_run_succeeded": result.success})
    else:
        _print(run, own_answers, reason)
    if run.status in ("requested", "running", "failed"):
        raise TrainingError(
            f"training run {run.id} is {run.status}:"
            f" {run.error or result.error or 'its Dagster run did not finish it'}"
        )
    if run.status != "gate_passed":
        return EXIT_NEGATIVE  # the gate's check fails the Dagster run: that is its answer, not an error
    if not result.success:
        raise IccmError(
            f"training run {run.id} passed the gate, but was not rolled out: {result.error}",
            hint=f"`iccm deploy {run.candidate_version}` opens the rollout.",
        )
    return 0


def _request(
    conn: Connection,
    settings: Settings,
    reason: str,
    emergency: bool,
    key: str | None,
    base: str | None,
    window_days: int | None,
) -> TrainingRun:
    """Create and dispatch a training run, or dispatch the run of the same key again if it may be retried."""
    from iccm_assets.registry import training_runs, versions
    from iccm_assets.retraining import run_queue, triggers

    trigger = triggers.manual_trigger(key, reason, emergency)
    version = None if base is None else versions.get_version(conn, base).version
    run = training_runs.create_run(conn, trigger, version, window_days=window_days, dispatched=True)
    if run is not None:
        return run
    existing = training_runs.get_by_trigger_key(conn, trigger.key)
    if existing is None:  # deleted between the two statements, which the platform itself never does
        raise OperationNotAllowedError(f"the training run of key {key} was deleted meanwhile")
    if existing.status in ("requested", "waiting") or (
        existing.status == "failed" and existing.attempt < settings.triggers.max_attempts
    ):
        claimed = run_queue.claim_dispatch(conn, existing.id, existing.dispatch)
        if claimed is not None:
            return claimed
    raise OperationNotAllowedError(f"key {key} already had its retrain: run {existing.id}, {existing.status}")


def _print(run: TrainingRun, own_answers: int, reason: str) -> None:
    gain = "" if run.improvement is None else f", improvement {run.improvement:+.4f}"
    out.print(f"training run {run.id}: [bold]{run.status}[/]{gain}")
    if run.candidate_version:
        objective = run.config.get("objective", "sft")
        if objective == "rft":
            objective += f" with {own_answers} answer{'' if own_answers == 1 else 's'} of its own"
        out.print(
            f"candidate {run.candidate_version}, from {run.base_version or 'the base model'}, by {objective}"
        )
    for line in (run.notes or "").splitlines():
        label = "reason" if line == (reason or "requested manually") else "result"
        print_plain(f"{label}  {line}")
