"""`iccm evaluate`: measure a version beside production and let the gate decide (E1-E4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from iccm_assets.cli.console import AsJson, echo_json, err, out, table
from iccm_assets.errors import NotAllowed
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    import sqlalchemy as sa


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    version: Annotated[
        str | None,
        typer.Argument(
            help="Model version, or a directory with a model trained elsewhere, which becomes a candidate;"
            " default: the newest candidate."
        ),
    ] = None,
    emergency: Annotated[bool, typer.Option("--emergency", help="Use the emergency bound of E3.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure VERSION and production on the canary set and the production holdout; store the verdict."""
    from iccm_assets.cli.launch import COUNTED
    from iccm_assets.judging import evaluator, report
    from iccm_assets.learning import versions
    from iccm_assets.store.database import connect

    settings = get_settings()
    engine = connect(settings)
    if version and Path(version).is_dir():
        version = _adopted(engine, settings, version)
    with engine.connect() as conn:
        chosen = versions.get(conn, version) if version else versions.newest_candidate(conn)
        serving = versions.production(conn)
    if chosen is None:
        raise NotAllowed("there is no candidate to evaluate", hint="Name a VERSION, or run `iccm retrain`.")
    if serving is not None and serving.version == chosen.version:
        raise NotAllowed(
            f"{chosen.version} is the version in production: there is nothing to compare it with"
        )
    with Progress(console=err) as bar:
        task = bar.add_task(f"evaluating {chosen.version}", total=None)

        def log(message: str) -> None:
            counted = COUNTED.search(message)
            done, total = (int(counted[1]), int(counted[2])) if counted else (None, None)
            bar.update(task, description=message, completed=done, total=total)

        outcome = evaluator.evaluate(
            engine, evaluator.EvaluationJob(chosen.version, emergency=emergency), settings, log
        )
    if as_json:
        echo_json(
            {
                "version": chosen.version,
                "production": outcome.production.version,
                "verdict": json.loads(outcome.verdict.to_json()),
                **report.summary(outcome),
            }
        )
        return
    out.print(table(f"{chosen.version} beside {outcome.production.version}", report.slice_rows(outcome)))
    out.print(f"[bold]{outcome.verdict.status}[/]: {escape('; '.join(outcome.verdict.reasons))}")


def _adopted(engine: sa.Engine, settings: Settings, directory: str) -> str:
    """A model trained elsewhere, copied into the store and registered as a candidate of production."""
    from iccm_assets.learning import versions
    from iccm_assets.learning.model_store import ModelStore

    published = ModelStore(settings.home).import_model(directory)
    with engine.begin() as conn:
        serving = versions.production(conn)
        registered = versions.register(
            conn,
            digest=published.digest,
            path=str(published.path),
            parent=serving.version if serving else None,
            status="candidate",
            metrics={"imported_from": directory},
        )
    return registered.version
