"""`iccm db`: the platform's database, embedded or not (S2)."""

from __future__ import annotations

import os
import shutil
from typing import Annotated, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json
from iccm_assets.errors import DatabaseError, NotAllowed
from iccm_assets.settings import Settings, get_settings

NOT_RUNNING = 3  # exit status of `iccm db status`, as of `pg_ctl status`


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="The platform's PostgreSQL database.", no_args_is_help=True)
    group.command("start")(start)
    group.command("stop")(stop)
    group.command("status")(status)
    group.command("upgrade")(upgrade)
    group.command("url")(url)
    group.command("shell", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(shell)
    app.add_typer(group, name="db")


def start(as_json: AsJson = False) -> None:
    """Start the embedded server, if it does not run, and bring its schema up to date."""
    from iccm_assets.store.database import connect

    settings = get_settings()
    _embedded_only(settings)
    connect(settings).dispose()
    _show(_described(settings), as_json)


def stop() -> None:
    """Stop the embedded server; connections end and open transactions roll back."""
    from iccm_assets.store.embedded import EmbeddedServer

    settings = get_settings()
    _embedded_only(settings)
    stopped = EmbeddedServer(settings.home).stop()
    typer.echo("stopped" if stopped else "it was not running")


def status(as_json: AsJson = False) -> None:
    """Whether the database answers, where, and how far its schema is; exit status 3 when it does not run."""
    described = _described(get_settings())
    _show(described, as_json)
    if not described["running"]:
        raise typer.Exit(NOT_RUNNING)


def upgrade() -> None:
    """Bring the schema to the newest revision; safe to run from several machines at once."""
    from iccm_assets.store.database import database_url, engine_for
    from iccm_assets.store.database import upgrade as migrate

    engine = engine_for(database_url(get_settings()))
    before, after = migrate(engine)
    engine.dispose()
    typer.echo(f"at revision {after}" if before == after else f"revision {before or 'none'} -> {after}")


def url(
    dagster: Annotated[bool, typer.Option("--dagster", help="That of Dagster's own database.")] = False,
) -> None:
    """Print the database's URL, password included; starts the embedded server if need be."""
    from iccm_assets.store.database import dagster_url, database_url

    settings = get_settings()
    typer.echo(dagster_url(settings) if dagster else database_url(settings))


def shell(context: typer.Context) -> None:
    """Open psql on the database; what follows goes to psql (`iccm db shell -c 'select iccm.now()'`)."""
    from iccm_assets.store.database import database_url
    from iccm_assets.store.embedded import programs

    target = database_url(get_settings())
    bundled = programs() / "bin" / "psql"
    program = str(bundled) if bundled.is_file() else shutil.which("psql")
    if program is None:
        raise DatabaseError("there is no psql on this machine", hint="Install a PostgreSQL client.")
    os.execve(program, [program, *context.args], {**os.environ, **_client_environment(target)})


def _client_environment(target: str) -> dict[str, str]:
    """The URL as the variables libpq reads: a command line is everybody's to see."""
    from psycopg import pq

    parsed = {one.keyword: one.val for one in pq.Conninfo.parse(target.encode()) if one.val is not None}
    names = {one.keyword: one.envvar for one in pq.Conninfo.get_defaults() if one.envvar is not None}
    parsed[b"options"] = (parsed.get(b"options", b"") + b" -c search_path=iccm,public").strip()
    return {names[key].decode(): value.decode() for key, value in parsed.items() if key in names}


def _embedded_only(settings: Settings) -> None:
    if settings.database_url is not None:
        raise NotAllowed(
            "ICCM_DATABASE_URL is set, and that server is not ours to start or stop",
            hint="Unset it to use the embedded server.",
        )


def _described(settings: Settings) -> dict[str, Any]:
    """The database in words; starts nothing."""
    from iccm_assets.store.database import current_revision, engine_for, head_revision
    from iccm_assets.store.embedded import EmbeddedServer

    described: dict[str, Any] = {"embedded": settings.database_url is None}
    target = settings.database_url
    if target is None:
        server = EmbeddedServer(settings.home)
        found = server.status()
        described |= {
            "running": found.running,
            "pid": found.pid,
            "data": str(found.data),
            "log": str(found.log),
        }
        target = server.running()
        if target is None:
            return described
    engine = engine_for(target)
    described |= {
        "running": True,
        "address": f"{engine.url.host}:{engine.url.port or 5432}/{engine.url.database}",
        "revision": current_revision(engine),
        "newest_revision": head_revision(),
    }
    with engine.connect() as conn:
        described["version"] = conn.exec_driver_sql("show server_version").scalar_one()
    engine.dispose()
    return described


def _show(described: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(described)
        return
    if not described["running"]:
        typer.echo(f"not running (data: {described['data']})")
        return
    kind = f"embedded, pid {described['pid']}" if described["embedded"] else "ICCM_DATABASE_URL"
    typer.echo(f"running at {described['address']} ({kind}, PostgreSQL {described['version']})")
    newest = described["newest_revision"]
    behind = "" if described["revision"] == newest else f", the newest is {newest}: run `iccm db upgrade`"
    typer.echo(f"schema at revision {described['revision'] or 'none'}{behind}")
