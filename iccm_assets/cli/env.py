"""`iccm env`: print the variables that Dagster's own commands need.

eval "$(iccm env)"
dg dev
"""

from __future__ import annotations

import os
import shlex
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from iccm_assets.cli.console import AsJson, echo_json
from iccm_assets.errors import InputError
from iccm_assets.settings import MIN_FIRST_DAY, PACKAGE, Settings, get_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

DAGSTER_YAML = PACKAGE / "profiles" / "dagster.yaml"


def env(as_json: AsJson = False) -> None:
    """Print the variables Dagster needs, for `eval "$(iccm env)"`; starts the database if necessary."""
    variables = get_dagster_environment(get_settings())
    if as_json:
        echo_json(variables)
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def get_dagster_environment(settings: Settings) -> dict[str, str]:
    """Return what Dagster's processes need; creates the instance directory and Dagster's database.

    That is `ICCM_HOME`, `ICCM_FIRST_DAY`, `DAGSTER_HOME` and `DAGSTER_PG_URL`.
    """
    from iccm_assets.db.database import connect, dagster_url

    first_day = load_first_day(connect(settings), settings)
    return {
        "ICCM_HOME": str(settings.home),
        "ICCM_FIRST_DAY": first_day.isoformat(),
        "DAGSTER_HOME": str(prepare_dagster_home(settings)),
        "DAGSTER_PG_URL": dagster_url(settings),
    }


def load_first_day(engine: Engine, settings: Settings) -> date:
    """Return the day of the first daily partition, so that every conversation has one and few are empty.

    That is the earliest of `ICCM_FIRST_DAY`, the day of the first conversation, and the days that the daily
    job looks back on: a conversation may be delivered late.
    """
    from sqlalchemy import text

    from iccm_assets.db.clock import now

    with engine.connect() as conn:
        query = text("""select (min("timestamp") at time zone 'UTC')::date from iccm.conversations""")
        earliest = conn.execute(query).scalar_one()
        # Partitions end today by the clock of the machine; that of the platform may be ahead.
        today = min(now(conn).date(), datetime.now(UTC).date())
    days = (today - timedelta(days=settings.curation.lookback_days), earliest, settings.first_day)
    return max(min(day for day in days if day is not None), MIN_FIRST_DAY)


def prepare_dagster_home(settings: Settings) -> Path:
    """Create the instance directory with the package's dagster.yaml; set DAGSTER_HOME to use another."""
    home = settings.home / "dagster"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _write_if_changed(home / "dagster.yaml", DAGSTER_YAML.read_bytes())
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}", hint="Set ICCM_HOME to a writable directory."
        ) from None
    return home


def _write_if_changed(path: Path, content: bytes) -> None:
    """Replace the file atomically: a Dagster process may be reading it."""
    if path.is_file() and path.read_bytes() == content:
        return
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    staged.replace(path)
