"""`iccm retrain`: ask for a retraining by hand (T4) and follow it to its end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from sqlalchemy import Connection

from iccm_assets.cli.console import AsJson, echo_json, out
from iccm_assets.errors import NotAllowed, TrainingError
from iccm_assets.learning.training_runs import TrainingRun
from iccm_assets.settings import Settings, get_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("retrain")(retrain)


def retrain(
    reason: Annotated[str, typer.Option("--reason", help="Why; recorded with the run.")] = "",
    emergency: Annotated[
        bool, typer.Option("--emergency", help="Emergency rules: failed sessions first, E3's lower bound.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option("--key", help="The cause: one retraining per key, however often it is asked."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Train from this version instead of the one in production."),
    ] = None,
    window_days: Annotated[
        int | None,
        typer.Option("--window-days", min=1, help="Take examples of so many last days (T7)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Retrain from production: select, train, evaluate, and open a rollout if the gate passes."""
    from iccm_assets.cli.launch import run_retrain
    from iccm_assets.learning import training_runs
    from iccm_assets.store.database import connect

    settings = get_settings()
    engine = connect(settings)
    with engine.begin() as conn:
        run = _requested(conn, settings, reason, emergency, key, base, window_days)
    launched = run_retrain(run.id, rollout=True)
    with engine.connect() as conn:
        run = training_runs.get(conn, run.id)
    if as_json:
        echo_json({**asdict(run), "dagster_run_succeeded": launched.success})
    else:
        _show(run)
    if run.status in ("requested", "running", "failed") or not launched.success:
        why = run.error or launched.error or "its Dagster run did not finish it"
        raise TrainingError(f"training run {run.id} is {run.status}: {why}")


def _requested(
    conn: Connection,
    settings: Settings,
    reason: str,
    emergency: bool,
    key: str | None,
    base: str | None,
    window_days: int | None,
) -> TrainingRun:
    """The new row, or the one of the same key when its attempt failed and may be retried; both dispatched."""
    from iccm_assets.learning import dispatch, training_runs, triggers, versions

    fire = triggers.manual(key, reason, emergency)
    version = None if base is None else versions.get(conn, base).version
    run = training_runs.request(conn, fire, version, window_days=window_days, dispatched=True)
    if run is not None:
        return run
    known = training_runs.by_key(conn, fire.key)
    if known is None:  # deleted between the two statements: nothing the platform does
        raise NotAllowed(f"the training run of key {key} vanished")
    attempts = settings.triggers.max_attempts
    if known.status in ("requested", "waiting") or (known.status == "failed" and known.attempt < attempts):
        taken = dispatch.take(conn, known.id, known.dispatch)
        if taken is not None:
            return taken
    raise NotAllowed(f"key {key} already had its retraining: run {known.id}, {known.status}")


def _show(run: TrainingRun) -> None:
    gain = "" if run.improvement is None else f", improvement {run.improvement:+.4f}"
    out.print(f"training run {run.id}: [bold]{run.status}[/]{gain}")
    if run.candidate_version:
        out.print(f"candidate {run.candidate_version}, from {run.base_version or 'the base model'}")
    if run.notes:
        out.print(run.notes, highlight=False, soft_wrap=True, markup=False)
