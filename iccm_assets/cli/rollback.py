"""`iccm rollback`: serve the previous version again."""

from __future__ import annotations

from dataclasses import asdict

from rich.markup import escape

from iccm_assets.cli.console import AsJson, Reason, echo_json, get_actor, out
from iccm_assets.cli.context import open_platform
from iccm_assets.cli.run_job import report_to_dagster


def rollback(reason: Reason = "", as_json: AsJson = False) -> None:
    """Roll back the candidate of a live rollout, or else the version in production."""
    from iccm_assets.rollout.rollback import roll_back

    settings, engine = open_platform()
    result = roll_back(engine, settings, actor=get_actor(), reason=reason.strip())
    if as_json:
        echo_json(asdict(result))
    else:
        out.print(
            f"{result.rolled_back} rolled back, [bold]{result.serving}[/] serves: {escape(result.reason)}"
        )
    report_to_dagster(settings, engine)
