"""`iccm evaluate`: measure a version, let the quality gate decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from iccm_assets.cli.console import (
    EXIT_NEGATIVE,
    AsJson,
    echo_json,
    make_table,
    out,
    parse_progress,
    print_line,
    progress_bar,
)
from iccm_assets.cli.context import open_platform
from iccm_assets.cli.run_job import report_to_dagster
from iccm_assets.errors import OperationNotAllowedError, UsageError
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from iccm_assets.evaluation.gate_replay import GateReplay


def evaluate(
    version: Annotated[
        str | None,
        typer.Argument(
            help="Model version, or the directory or hub id of another model, which becomes a candidate;"
            " default: the newest candidate."
        ),
    ] = None,
    emergency: Annotated[
        bool, typer.Option("--emergency", help="Use the quality gate's threshold for emergency retrains.")
    ] = False,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            "--rejudge",
            help="Measure nothing: apply the quality gate to stored evidence (of VERSION, or all of it).",
        ),
    ] = False,
    gate: Annotated[
        Path | None,
        typer.Option("--gate", help="With --replay: TOML or JSON file with other gate thresholds."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --replay: another threshold, e.g. max_slice_drop=0.1; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure VERSION and production on the canary set and the production holdout; store the verdict.

    Exits 0 if the gate passes, 3 if it fails or is inconclusive.

    With --replay: show what today's gate, or another one, decides on all past candidates, and which
    verdicts change. Stores nothing.
    """
    if not replay:
        if gate or assignments:
            raise UsageError("--gate and --set require --replay")
        _evaluate(version, emergency, as_json)
    elif emergency:
        raise UsageError(
            "--emergency cannot be combined with --replay, which uses each verdict's own threshold"
        )
    else:
        _replay(version, gate, assignments or [], as_json)


def _evaluate(version: str | None, emergency: bool, as_json: bool) -> None:
    from iccm_assets.registry import versions

    settings, engine = open_platform()
    # A hub id or a path has a slash, the name of a version has none.
    if version and (Path(version).is_dir() or "/" in version):
        with progress_bar(f"importing {version}", transient=True):
            version = _import_candidate(engine, settings, version)
    with engine.connect() as conn:
        candidate = versions.get_version(conn, version) if version else versions.get_latest_candidate(conn)
        production = versions.get_production_version(conn)
    if candidate is None:
        raise OperationNotAllowedError(
            "there is no candidate to evaluate", hint="Name a VERSION, or run `iccm retrain`."
        )
    if production is not None and production.version == candidate.version:
        raise OperationNotAllowedError(
            f"{candidate.version} is the version in production: there is nothing to compare it with"
        )
    # Imported here: a wrong name need not wait for torch.
    from iccm_assets.evaluation import evaluation_report, evaluation_worker

    with progress_bar(f"evaluating {candidate.version}") as update:
        outcome = evaluation_worker.evaluate(
            engine,
            candidate.version,
            settings,
            emergency=emergency,
            log=lambda message: update(description=message, **parse_progress(message)),
        )
    report_to_dagster(settings, engine)
    if as_json:
        echo_json(
            {
                "version": candidate.version,
                "production": outcome.production.version,
                "verdict": json.loads(outcome.verdict.to_json()),
                **evaluation_report.summarize_versions(outcome),
            }
        )
    else:
        title = f"{candidate.version} compared with {outcome.production.version}"
        out.print(make_table(title, evaluation_report.slice_rows(outcome)))
        out.print(escape(evaluation_report.describe_holdout(outcome)), soft_wrap=True)
        out.print(f"[bold]{outcome.verdict.status}[/]: {escape('; '.join(outcome.verdict.reasons))}")
    raise typer.Exit(0 if outcome.verdict.status == "pass" else EXIT_NEGATIVE)


def _import_candidate(engine: Engine, settings: Settings, directory: str) -> str:
    """Copy a model trained elsewhere into the store and register it as a candidate."""
    from iccm_assets.models.model_probe import import_probed_model
    from iccm_assets.registry import versions

    stored = import_probed_model(ModelStore.open(settings), directory, settings)
    with engine.begin() as conn:
        production = versions.get_production_version(conn)
        registered = versions.register_version(
            conn,
            digest=stored.digest,
            path=str(stored.path),
            parent=production.version if production else None,
            status="candidate",
            metrics={"imported_from": directory},
            base_digest=stored.manifest.base_digest,
        )
    return registered.version


def _replay(version: str | None, gate: Path | None, assignments: list[str], as_json: bool) -> None:
    from iccm_assets.evaluation import gate_replay
    from iccm_assets.registry.versions import resolve_version

    settings, engine = open_platform()
    thresholds = gate_replay.load_gate(settings.evaluation, gate, assignments)
    if version is not None:
        with engine.connect() as conn:
            version = resolve_version(conn, version)
    with progress_bar("replaying stored evidence", transient=True) as update:
        result = gate_replay.replay_gate(
            engine, thresholds, version, lambda done, total: update(completed=done, total=total)
        )
    if as_json:
        echo_json(result.to_dict())
    else:
        _print_replay(result)


def _print_replay(result: GateReplay) -> None:
    if result.replayed:
        rows = [
            {
                "verdict": verdict.verdict_id,
                "version": verdict.version,
                "decided": verdict.judged_at,
                "then": verdict.before,
                "now": verdict.after,
                "": "changed" if verdict.changed else "same" if verdict.identical else "other numbers",
            }
            for verdict in result.replayed
        ]
        out.print(make_table("Stored verdicts under this gate", rows))
    for flip in result.changed_verdicts:
        changes = ", ".join(f"{name} {then} → {now}" for name, (then, now) in flip.gate_changed.items())
        reasons = "; ".join(flip.verdict.reasons) + (f" (gate then and now: {changes})" if changes else "")
        print_line(
            f"[bold]changed[/] verdict {flip.verdict_id} on {flip.version}: {flip.before} → {flip.after}:"
            f" {escape(reasons)}"
        )
    for verdict in result.replayed:
        if verdict.reproduces is False:
            print_line(
                f"[yellow]not reproduced[/] verdict {verdict.verdict_id} on {verdict.version}: its evidence"
                " and the gate recorded with it give another verdict today: evidence or gate code changed"
            )
    for unreadable in result.unreadable:
        print_line(
            f"[yellow]not replayed[/] verdict {unreadable.verdict_id} on {unreadable.version}:"
            f" {escape(unreadable.reason)}"
        )
    print_line(
        f"{len(result.replayed)} stored verdicts replayed, {len(result.changed_verdicts)} changed, "
        f"{len(result.unreadable)} cannot be read; nothing was stored."
    )
