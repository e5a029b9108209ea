"""`iccm deploy`: roll out a version that passed the quality gate, or force one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, get_actor, out
from iccm_assets.cli.context import ensure_production_version, open_platform
from iccm_assets.cli.run_job import report_to_dagster
from iccm_assets.errors import OperationNotAllowedError, UsageError
from iccm_assets.settings import get_settings

BASE = "base"


def deploy(
    version: Annotated[
        str,
        typer.Argument(
            help="Model version, the start of its digest, or `base`: the base model, as the first version."
        ),
    ],
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
    `base` puts ICCM_BASE_MODEL in production where no version is, and changes nothing where one is.
    """
    from iccm_assets.registry import versions
    from iccm_assets.rollout import deployment, opening

    reason = reason.strip()
    for option, requested in (("--force", force), ("--skip-rollout", skip_rollout)):
        if requested and not reason:
            raise UsageError(f"{option} requires --reason, which is recorded with the deployment")
    if version == BASE:
        if force or skip_rollout:
            raise UsageError(
                "`base` takes neither --force nor --skip-rollout: no gate judges the first version"
            )
        _deploy_base(as_json)
        return
    settings, engine = open_platform()
    with engine.connect() as conn:
        candidate = versions.get_version(conn, version)
    if candidate.status == "production":
        raise OperationNotAllowedError(f"{candidate.version} is in production already")
    actor, forced, rollout_id = get_actor(), reason if force else None, None
    if skip_rollout:
        deployment.check_deployable(engine, settings, candidate, forced)
        deployed, authorization = deployment.deploy(
            engine, candidate.version, actor=actor, force_reason=forced, note=reason
        )
    else:
        opened = opening.open_rollout(engine, settings, candidate.version, actor=actor, force_reason=forced)
        deployed, authorization = opened.version, opened.authorization
        rollout_id = None if opened.state is None else opened.state.id
    if as_json:
        echo_json(
            {
                "version": deployed.version,
                "status": deployed.status,
                "reason": authorization.reason,
                "rollout": rollout_id,
            }
        )
    elif rollout_id is None:
        out.print(f"[bold]{deployed.version}[/] is in production: {escape(authorization.reason)}")
    else:
        out.print(
            f"rollout {rollout_id} of [bold]{deployed.version}[/] is open: {escape(authorization.reason)}"
        )
        out.print("It starts when every gateway has loaded the model; watch: iccm rollout show --watch 5")
    report_to_dagster(settings, engine)


def _deploy_base(as_json: bool) -> None:
    """Put the base model in production unless a version is; it has to load and to answer first."""
    serving = ensure_production_version(get_settings())
    if as_json:
        echo_json({"version": serving, "status": "production"})
    else:
        out.print(f"[bold]{serving}[/] is in production")
