"""`iccm rollback`: the former version serves again, at once (R8)."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, out
from iccm_assets.cli.rollout_live import Note, actor
from iccm_assets.settings import get_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rollback")(rollback)


def rollback(reason: Note = "", as_json: AsJson = False) -> None:
    """Take the candidate of a live rollout back, or else the version in production."""
    from iccm_assets.rollout.taking_back import roll_back
    from iccm_assets.store.database import connect

    settings = get_settings()
    done = roll_back(connect(settings), settings, actor=actor(), reason=reason.strip())
    if as_json:
        echo_json(asdict(done))
    else:
        out.print(f"{done.away} was taken back, [bold]{done.serving}[/] serves: {escape(done.reason)}")
