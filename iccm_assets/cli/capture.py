"""`iccm capture`: import the sessions that the hook of Claude Code has captured."""

from __future__ import annotations

from typing import Annotated

import typer

from iccm_assets.cli.console import AsJson, echo_json, print_plain
from iccm_assets.cli.context import open_platform
from iccm_assets.settings import get_settings

group = typer.Typer(help="Captured sessions of coding agents.", no_args_is_help=True)


@group.command("list")
def show(as_json: AsJson = False) -> None:
    """List the captured sessions that wait for the platform, and those that could not be imported."""
    from iccm_assets.capture.claude_code.session_spool import list_captured_sessions, list_dead_letters

    home = get_settings().home
    waiting = [str(path) for path in list_captured_sessions(home)]
    dead_letters = list_dead_letters(home)
    if as_json:
        echo_json({"waiting": waiting, "dead_letters": dead_letters})
        return
    print_plain(f"waiting: {len(waiting)}; not imported: {len(dead_letters)}")
    for path, reason in dead_letters.items():
        print_plain(f"{path}: {reason}")


@group.command()
def deliver(
    retry: Annotated[
        bool, typer.Option("--retry", help="Try those again that could not be imported.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import the captured sessions now, as the platform does every five minutes.

    Exits 1 if one of them could not be imported; it is kept with the reason.
    """
    from iccm_assets.capture.claude_code.session_spool import deliver_sessions, retry_dead_letters

    settings, engine = open_platform()
    if retry:
        retry_dead_letters(settings.home)
    report = deliver_sessions(engine, settings)
    if as_json:
        echo_json(vars(report))
    else:
        print_plain(report.summary())
        for line in (*report.dead_letters, *report.unreadable):
            print_plain(line)
    if report.dead_letters or report.unreadable:
        raise typer.Exit(1)
