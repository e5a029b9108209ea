"""`iccm deploy`: roll a proven version out, or any version with a recorded reason (E4, section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, out
from iccm_assets.cli.rollout_live import actor
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deploy")(deploy)


def deploy(
    version: Annotated[str, typer.Argument(help="Model version, the start of its digest, or `production`.")],
    force: Annotated[bool, typer.Option("--force", help="Deploy although the gate did not pass.")] = False,
    at_once: Annotated[
        bool,
        typer.Option(
            "--at-once", help="Promote without a rollout: no traffic in between, no way back by itself."
        ),
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", help="Why; recorded, and needed with --force and --at-once.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Open a rollout of VERSION: 10, 50, 100 % of the traffic, and back when it does harm.

    Without --force the stored quality-gate verdict decides. A forced version goes through the rollout, too.
    """
    from iccm_assets.learning import versions
    from iccm_assets.store.database import connect

    reason = reason.strip()
    for name, given in (("--force", force), ("--at-once", at_once)):
        if given and not reason:
            raise InputError(f"{name} wants a --reason, which is recorded with the deployment")
    settings = get_settings()
    engine = connect(settings)
    with engine.connect() as conn:
        candidate = versions.get(conn, version)
    if candidate.status == "production":
        raise NotAllowed(f"{candidate.version} is in production already")
    forced = reason if force else None
    if at_once:
        told = _promote(engine, candidate.version, candidate.path, forced, reason)
    else:
        told = _open(engine, settings, candidate.version, forced)
    if as_json:
        echo_json(told)
    elif told["rollout"] is None:
        out.print(f"[bold]{told['version']}[/] is in production: {escape(told['reason'])}")
    else:
        out.print(
            f"rollout {told['rollout']} of [bold]{told['version']}[/] is open: {escape(told['reason'])}"
        )
        out.print("It begins when every gateway has the model ready; iccm rollout show --watch 5 follows it.")


def _promote(engine: Engine, version: str, path: str, forced: str | None, reason: str) -> dict[str, Any]:
    from iccm_assets.models.manifest import verify
    from iccm_assets.rollout import deployment

    verify(Path(path))
    promoted, authorisation = deployment.deploy(
        engine, version, actor=actor(), force_reason=forced, note=reason
    )
    return _told(promoted.version, promoted.status, authorisation.reason, None)


def _open(engine: Engine, settings: Settings, version: str, forced: str | None) -> dict[str, Any]:
    from iccm_assets.rollout.opening import open_rollout

    opened = open_rollout(engine, settings, version, actor=actor(), force_reason=forced)
    rollout = None if opened.state is None else opened.state.id
    return _told(opened.version.version, opened.version.status, opened.authorisation.reason, rollout)


def _told(version: str, status: str, reason: str, rollout: int | None) -> dict[str, Any]:
    return {"version": version, "status": status, "reason": reason, "rollout": rollout}
