"""`iccm deploy`: put a proven version in production, or any version with a recorded reason (E4)."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, out
from iccm_assets.errors import InputError
from iccm_assets.settings import get_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deploy")(deploy)


def deploy(
    version: Annotated[str, typer.Argument(help="Model version, or the start of its digest.")],
    force: Annotated[bool, typer.Option("--force", help="Deploy although the gate did not pass.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; recorded, and needed with --force.")] = "",
    as_json: AsJson = False,
) -> None:
    """Put VERSION in production. Without --force the stored quality-gate verdict decides."""
    from iccm_assets.learning import versions
    from iccm_assets.models.manifest import verify
    from iccm_assets.rollout import deployment
    from iccm_assets.store.database import connect

    if force and not reason.strip():
        raise InputError("--force wants a --reason, which is recorded with the deployment")
    engine = connect(get_settings())
    with engine.connect() as conn:
        candidate = versions.get(conn, version)
    verify(Path(candidate.path))
    promoted, authorisation = deployment.deploy(
        engine,
        candidate.version,
        actor=f"user:{getpass.getuser()}",
        force_reason=reason.strip() if force else None,
    )
    if as_json:
        echo_json({"version": promoted.version, "status": promoted.status, "reason": authorisation.reason})
    else:
        out.print(f"[bold]{promoted.version}[/] is in production: {escape(authorisation.reason)}")
