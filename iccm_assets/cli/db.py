"""`iccm db`: run and inspect the platform's PostgreSQL database."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from iccm_assets.cli.console import EXIT_NEGATIVE, AsJson, echo_json
from iccm_assets.cli.context import open_platform
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.db.embedded.process_discovery import recorded_pid
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.settings import Settings, get_settings

group = typer.Typer(help="Run and inspect the platform's PostgreSQL database.", no_args_is_help=True)


@group.command()
def start(as_json: AsJson = False) -> None:
    """Start the embedded server unless it runs, and upgrade its schema."""
    _require_embedded(get_settings())
    settings, engine = open_platform()
    engine.dispose()
    _print_status(_load_status(settings), as_json)


@group.command()
def stop(as_json: AsJson = False) -> None:
    """Stop the embedded server; connections close and open transactions roll back."""
    settings = get_settings()
    _require_embedded(settings)
    stopped = EmbeddedServer(settings.home).stop()
    if as_json:
        echo_json({"stopped": stopped})
    else:
        typer.echo("stopped" if stopped else "it was not running")


@group.command()
def status(as_json: AsJson = False) -> None:
    """Show whether the database answers, its address and schema revision; exits 3 if it does not run."""
    state = _load_status(get_settings())
    _print_status(state, as_json)
    if not state["running"]:
        raise typer.Exit(EXIT_NEGATIVE)


@group.command()
def upgrade(as_json: AsJson = False) -> None:
    """Upgrade the schema to the newest revision; several machines may run this at the same time."""
    from iccm_assets.db import database

    engine = database.create_engine_for(database.database_url(get_settings()))
    before, after = database.upgrade(engine)
    engine.dispose()
    if as_json:
        echo_json({"before": before, "after": after})
    else:
        typer.echo(f"at revision {after}" if before == after else f"revision {before or 'none'} -> {after}")


@group.command()
def url(
    dagster: Annotated[bool, typer.Option("--dagster", help="URL of Dagster's own database.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the database URL, password included; starts the embedded server if necessary."""
    from iccm_assets.db.database import dagster_url, database_url

    address = (dagster_url if dagster else database_url)(get_settings())
    if as_json:
        echo_json({"url": address})
    else:
        typer.echo(address)


@group.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def shell(context: typer.Context) -> None:
    """Open psql on the database; further arguments go to psql (`iccm db shell -c 'select iccm.now()'`)."""
    from iccm_assets.db.client_programs import client_environment, find_program
    from iccm_assets.db.database import database_url

    target = database_url(get_settings())
    program = find_program("psql")
    variables = client_environment(target, "-c search_path=iccm,public")
    os.execve(program, [program, *context.args], {**os.environ, **variables})


def _require_embedded(settings: Settings) -> None:
    if settings.database_url is not None:
        raise OperationNotAllowedError(
            "ICCM_DATABASE_URL names an external server, which this command does not start or stop",
            hint="Unset it to use the embedded server.",
        )


def _load_status(settings: Settings) -> dict[str, Any]:
    """Describe the database; starts nothing."""
    from iccm_assets.db.database import create_engine_for, current_revision, head_revision

    state: dict[str, Any] = {"embedded": settings.database_url is None}
    target = settings.database_url
    if target is None:
        server = EmbeddedServer(settings.home)
        target = server.running_url()
        state |= {
            "running": target is not None,
            "pid": recorded_pid(server.data) if target else None,
            "data": str(server.data),
            "log": str(server.log),
        }
        if target is None:
            return state
    engine = create_engine_for(target)
    state |= {
        "running": True,
        "address": f"{engine.url.host}:{engine.url.port or 5432}/{engine.url.database}",
        "revision": current_revision(engine),
        "newest_revision": head_revision(),
    }
    with engine.connect() as conn:
        state["version"] = conn.exec_driver_sql("show server_version").scalar_one()
    engine.dispose()
    return state


def _print_status(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(state)
    elif not state["running"]:
        typer.echo(f"not running (data: {state['data']})")
    else:
        kind = f"embedded, pid {state['pid']}" if state["embedded"] else "ICCM_DATABASE_URL"
        typer.echo(f"running at {state['address']} ({kind}, PostgreSQL {state['version']})")
        newest = state["newest_revision"]
        outdated = "" if state["revision"] == newest else f", newest is {newest}: run `iccm db upgrade`"
        typer.echo(f"schema at revision {state['revision'] or 'none'}{outdated}")
