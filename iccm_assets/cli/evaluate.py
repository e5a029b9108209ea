"""`iccm evaluate`: measure a version beside production and let the gate decide (E1-E5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from iccm_assets.cli.console import AsJson, echo_json, err, out, table
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.judging.rejudge import Rejudgement


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
    rejudge: Annotated[
        bool,
        typer.Option(
            "--rejudge", help="Measure nothing: judge the stored evidence again (of VERSION, or of all)."
        ),
    ] = False,
    gate: Annotated[
        Path | None,
        typer.Option("--gate", help="With --rejudge: a TOML or JSON file with other numbers of the gate."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --rejudge: one other number, e.g. max_slice_drop=0.1; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure VERSION and production on the canary set and the production holdout; store the verdict.

    With --rejudge: what today's gate, or another one, would have said of all past candidates, and which
    verdicts flip. Nothing is stored then.
    """
    if rejudge:
        if emergency:
            raise InputError("--rejudge keeps each verdict's own bound: --emergency does not go with it")
        _rejudge(version, gate, assignments or [], as_json)
    elif gate or assignments:
        raise InputError("--gate and --set change nothing but a --rejudge")
    else:
        _evaluate(version, emergency, as_json)


def _evaluate(version: str | None, emergency: bool, as_json: bool) -> None:
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
    out.print(escape(report.holdout_in_words(outcome)), soft_wrap=True)
    out.print(f"[bold]{outcome.verdict.status}[/]: {escape('; '.join(outcome.verdict.reasons))}")


def _rejudge(version: str | None, gate: Path | None, assignments: list[str], as_json: bool) -> None:
    from iccm_assets.judging import rejudge
    from iccm_assets.store.database import connect
    from iccm_assets.store.naming import version_named

    settings = get_settings()
    chosen = rejudge.gate_from(settings.evaluation, gate, assignments)
    engine = connect(settings)
    if version is not None:
        with engine.connect() as conn:
            version = version_named(conn, version)
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("judging stored evidence", total=None)
        found = rejudge.rejudge(
            engine, chosen, version, lambda done, total: bar.update(task, completed=done, total=total)
        )
    if as_json:
        echo_json(found.to_dict())
    else:
        _show_rejudgement(found)


def _show_rejudgement(found: Rejudgement) -> None:
    if found.judged:
        rows = [
            {
                "verdict": one.verdict_id,
                "version": one.version,
                "judged": one.judged_at,
                "then": one.before,
                "now": one.after,
                "": "flips" if one.flipped else "same bytes" if one.identical else "other numbers",
            }
            for one in found.judged
        ]
        out.print(table("Stored verdicts under this gate", rows))
    for flip in found.flips:
        changed = ", ".join(f"{name} {then} → {now}" for name, (then, now) in flip.gate_changed.items())
        _say(
            f"[bold]flips[/] verdict {flip.verdict_id} on {flip.version}: {flip.before} → {flip.after}: "
            + escape(
                "; ".join(flip.verdict.reasons) + (f" (gate then and now: {changed})" if changed else "")
            )
        )
    for doubtful in (one for one in found.judged if one.reproduces is False):
        _say(
            f"[yellow]not reproduced[/] verdict {doubtful.verdict_id} on {doubtful.version}: its evidence "
            "and the gate recorded with it give another verdict today: it or the gate's code changed"
        )
    for lost in found.unreadable:
        _say(f"[yellow]not judged[/] verdict {lost.verdict_id} on {lost.version}: {escape(lost.reason)}")
    _say(
        f"{len(found.judged)} stored verdicts judged again, {len(found.flips)} flip, "
        f"{len(found.unreadable)} cannot be read; nothing was changed."
    )


def _say(line: str) -> None:
    out.print(line, soft_wrap=True, highlight=False)


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
