"""`iccm demo`: the whole loop on the reference world, from simulated conversations to a promoted version."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from iccm_assets.cli import demo_report
from iccm_assets.cli.console import err, out
from iccm_assets.cli.launch import Launched, run_days, run_retrain
from iccm_assets.cli.simulate import run_simulation
from iccm_assets.errors import IccmError, NotAllowed
from iccm_assets.settings import REFERENCE_MODEL, Settings, get_settings
from iccm_assets.store.database import close_engines

if TYPE_CHECKING:
    import sqlalchemy as sa


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    conversations: Annotated[int, typer.Option(min=1, max=20000, help="Simulated conversations.")] = 200,
    days: Annotated[int, typer.Option(min=1, max=90, help="Days they spread over, ending yesterday.")] = 7,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated world.")] = 1,
) -> None:
    """Run the whole loop on a fresh database: converse, score, filter, deduplicate, retrain, gate, promote.

    The database and the models of this ICCM_HOME are made anew, unless they hold conversations that were
    not simulated: then nothing is touched.
    """
    settings = get_settings()
    if settings.base_model != str(REFERENCE_MODEL):
        err.print(f"[dim]base model: {settings.base_model}[/]")
    check_inputs(settings)
    with server_of_the_demo(settings):
        _run(settings, conversations, days, seed)


def _run(settings: Settings, conversations: int, days: int, seed: int) -> None:
    from iccm_assets.store.database import connect

    started = time.monotonic()
    _headline(1, "A fresh database, and the base model in production")
    start_fresh(settings)
    engine = connect(settings)
    _headline(2, f"{conversations} conversations over {days} days with simulated developers")
    run_simulation(engine, settings, conversations=conversations, days=days, seed=seed)
    _headline(3, "Reconstruction testing, filter and training pool, by Dagster partitions")
    last = datetime.now(UTC).date() - timedelta(days=1)
    _checked(run_days(last - timedelta(days=days - 1), last, title="daily_data_job", console=err))
    _headline(4, "Retrain, measure on the canary set, ask the quality gate, deploy")
    training_run_id = _request(engine)
    retrain = run_retrain(training_run_id, console=err)
    _headline(5, "Report")
    demo_report.show(engine, settings, training_run_id, retrain, time.monotonic() - started, out)
    if not retrain.success and not demo_report.refused(engine, training_run_id):
        raise IccmError(
            f"the retrain failed: {retrain.error}", hint=f"Dagster run {retrain.run_id} has its log."
        )


@contextmanager
def server_of_the_demo(settings: Settings) -> Iterator[None]:
    """An embedded server that the demo started ends with it, unless somebody else uses it by then (S2)."""
    from iccm_assets.store.embedded import EmbeddedServer

    server = EmbeddedServer(settings.home)
    ours = settings.database_url is None and server.running() is None
    try:
        yield
    finally:
        if ours:
            close_engines()
            server.stop_unless_used()


def check_inputs(settings: Settings) -> None:
    """Read everything the demo will need before anything is deleted; raises what is wrong with it."""
    from iccm_assets.curation.canary_set import load_canary_set
    from iccm_assets.judging.orchestra import load_orchestra
    from iccm_assets.learning.dataset import load_rehearsal
    from iccm_assets.models.resolve import check_loadable, resolve

    load_canary_set(settings.canary_set)
    load_rehearsal(settings.rehearsal)
    load_orchestra(settings.orchestra, settings.orchestra_quorum)
    check_loadable(resolve(settings.base_model))


def start_fresh(settings: Settings) -> None:
    """Empty the platform's database, Dagster's, and the files below home that they speak of.

    Raises ``NotAllowed``, before anything is touched, when there are conversations that nobody simulated.
    """
    import shutil

    import sqlalchemy as sa

    from iccm_assets.store.database import dagster_url, database_url, engine_for

    engine = engine_for(database_url(settings))
    real = _real_conversations(engine)
    if real:
        raise NotAllowed(
            f"this database holds {real} conversations that were not simulated, the demo would delete them",
            hint="Give the demo a home of its own: ICCM_HOME=/some/other/folder iccm demo.",
        )
    with engine.begin() as conn:
        conn.execute(sa.text("set local lock_timeout = '20s'"))
        conn.execute(sa.text("drop schema if exists iccm cascade"))
    dagster = engine_for(dagster_url(settings))
    with dagster.begin() as conn:
        conn.execute(sa.text("set local lock_timeout = '20s'"))
        conn.execute(sa.text("drop schema if exists public cascade"))
        conn.execute(sa.text("create schema public"))
    engine.dispose()
    dagster.dispose()
    from iccm_assets.learning.directories import remove_tree

    for name in ("models", "datasets"):
        remove_tree(settings.home / name)
    shutil.rmtree(settings.home / "dagster" / "storage", ignore_errors=True)


def _real_conversations(engine: sa.Engine) -> int:
    import sqlalchemy as sa

    with engine.connect() as conn:
        if conn.execute(sa.text("select to_regclass('iccm.conversations')")).scalar_one() is None:
            return 0
        counted = sa.text("select count(*) from iccm.conversations where origin <> 'simulated'")
        return int(conn.execute(counted).scalar_one())


def _request(engine: sa.Engine) -> int:
    from iccm_assets.learning import training_runs, triggers

    with engine.begin() as conn:
        row = training_runs.request(conn, triggers.manual("demo", "the demo's retrain"))
    if row is None:
        raise NotAllowed("the demo's retrain was requested already")
    return row.id


def _checked(launched: Launched) -> None:
    if not launched.success:
        raise IccmError(f"{launched.error}", hint=f"Dagster run {launched.run_id} has its log.")


def _headline(number: int, title: str) -> None:
    err.rule(f"[bold]{number}. {title}", align="left")
