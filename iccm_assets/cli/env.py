"""`iccm env`: the variables that Dagster's own commands need to find this platform.

eval "$(iccm env)"
dagster dev
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import typer

from iccm_assets.cli.console import AsJson, echo_json
from iccm_assets.errors import InputError
from iccm_assets.settings import PACKAGE, Settings, get_settings

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
    """Return `ICCM_HOME`, `DAGSTER_HOME` and `DAGSTER_PG_URL`; creates that directory and that database."""
    from iccm_assets.db.database import dagster_url

    return {
        "ICCM_HOME": str(settings.home),
        "DAGSTER_HOME": str(prepare_dagster_home(settings)),
        "DAGSTER_PG_URL": dagster_url(settings),
    }


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
