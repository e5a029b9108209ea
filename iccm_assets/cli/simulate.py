"""`iccm simulate`: developers who talk with the production model, correct it, accept and rate (X4)."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from iccm_assets.cli.console import AsJson, echo_json, err, out
from iccm_assets.errors import InputError
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.reference.traffic import Traffic


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    conversations: Annotated[int, typer.Option(min=1, max=100000, help="How many sessions.")] = 200,
    days: Annotated[int, typer.Option(min=1, max=365, help="Days they spread over.")] = 7,
    end: Annotated[str, typer.Option(help="The last day, YYYY-MM-DD (UTC); default: yesterday.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Another seed brings other sessions.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Simulate developers on the production model. The same seed holds the same sessions again."""
    from iccm_assets.store.database import connect

    settings = get_settings()
    last = _day(end)
    first = _first_day(last, days)
    traffic = run_simulation(
        connect(settings), settings, conversations=conversations, days=days, end=last, seed=seed
    )
    if as_json:
        echo_json(asdict(traffic))
        return
    out.print(
        f"Captured on the days {first} to {last}: materialize them in Dagster to make examples of them.",
        highlight=False,
    )


def run_simulation(
    engine: sa.Engine,
    settings: Settings,
    *,
    conversations: int,
    days: int,
    seed: int,
    end: date | None = None,
) -> Traffic:
    """Simulate with a progress bar, on the production version (the base model where there is none yet)."""
    from iccm_assets.learning.model_store import ModelStore
    from iccm_assets.reference import traffic
    from iccm_assets.rollout.bootstrap import ensure_production

    version, _ = ensure_production(engine, ModelStore(settings.home), settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(f"conversations with {version.version}", total=conversations)
        done = traffic.simulate(
            engine,
            settings,
            version,
            conversations=conversations,
            days=days,
            end=end or _day(""),
            seed=seed,
            progress=lambda what, count, total: bar.update(task, completed=count),
        )
    err.print(
        f"{done.users} users; {done.new_domain} sessions in domains the base model never saw;"
        f" {done.accepted_as_is} answers accepted as they were, {done.corrected} corrected;"
        f" {done.thumbs_up} thumbs up, {done.thumbs_down} down"
    )
    return done


def _first_day(last: date, days: int) -> date:
    """The first of the days, all of which must have, or get tonight, a partition to be materialized in."""
    from iccm_assets.defs.partitions import DAILY

    earliest, today = DAILY.start.date(), datetime.now(UTC).date()
    if last > today or (last - earliest).days < days - 1:
        raise InputError(
            f"{days} days up to {last} are not all in the partitions, {earliest} to {today}",
            hint="Choose another --end, or fewer --days.",
        )
    return last - timedelta(days=days - 1)


def _day(text: str) -> date:
    if not text:
        return datetime.now(UTC).date() - timedelta(days=1)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"--end {text!r} is not a date", hint="Write it as YYYY-MM-DD.") from None
