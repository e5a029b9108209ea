"""`iccm deploy`: roll out a version that passed the quality gate, or any version with a recorded reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, get_actor, out
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def deploy(
    version: Annotated[str, typer.Argument(help="Model version, the start of its digest, or `production`.")],
    force: Annotated[
        bool, typer.Option("--force", help="Deploy although the quality gate did not pass.")
    ] = False,
    skip_rollout: Annotated[
        bool,
        typer.Option(
            "--skip-rollout",
            help="Promote immediately, without a rollout and without automatic rollback.",
        ),
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", help="Reason; recorded, required by --force and --skip-rollout.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Open a rollout of VERSION: 10, 50, 100 % of the traffic, with automatic rollback.

    Without --force the stored verdict of the quality gate decides. A forced version is rolled out, too.
    """
    from iccm_assets.learning import versions

    reason = reason.strip()
    for option, requested in (("--force", force), ("--skip-rollout", skip_rollout)):
        if requested and not reason:
            raise InputError(f"{option} requires --reason, which is recorded with the deployment")
    settings, engine = open_platform()
    with engine.connect() as conn:
        candidate = versions.get(conn, version)
    if candidate.status == "production":
        raise NotAllowed(f"{candidate.version} is in production already")
    forced = reason if force else None
    if skip_rollout:
        result = _promote(engine, candidate.version, candidate.path, forced, reason)
    else:
        result = _open_rollout(engine, settings, candidate.version, forced)
    if as_json:
        echo_json(result)
    elif result["rollout"] is None:
        out.print(f"[bold]{result['version']}[/] is in production: {escape(result['reason'])}")
    else:
        out.print(
            f"rollout {result['rollout']} of [bold]{result['version']}[/] is open: {escape(result['reason'])}"
        )
        out.print("It starts when every gateway has loaded the model; watch: iccm rollout show --watch 5")


def _promote(engine: Engine, version: str, path: str, forced: str | None, reason: str) -> dict[str, Any]:
    from iccm_assets.models.manifest import verify
    from iccm_assets.rollout import deployment

    verify(Path(path))
    promoted, authorization = deployment.deploy(
        engine, version, actor=get_actor(), force_reason=forced, note=reason
    )
    return _to_json(promoted.version, promoted.status, authorization.reason, None)


def _open_rollout(engine: Engine, settings: Settings, version: str, forced: str | None) -> dict[str, Any]:
    from iccm_assets.rollout.opening import open_rollout

    opened = open_rollout(engine, settings, version, actor=get_actor(), force_reason=forced)
    rollout_id = None if opened.state is None else opened.state.id
    return _to_json(opened.version.version, opened.version.status, opened.authorisation.reason, rollout_id)


def _to_json(version: str, status: str, reason: str, rollout_id: int | None) -> dict[str, Any]:
    return {"version": version, "status": status, "reason": reason, "rollout": rollout_id}
