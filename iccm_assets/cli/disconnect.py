"""`iccm disconnect`: remove what `iccm connect` has installed."""

from __future__ import annotations

from typing import Annotated

import typer

from iccm_assets.cli.connect import DryRun, Project, User, get_config
from iccm_assets.cli.console import AsJson, echo_json, print_plain

group = typer.Typer(help="Disconnect a coding agent from CET-D.", no_args_is_help=True)
group.callback()(lambda: None)


@group.command()
def claude_code(
    user: User = False,
    project: Project = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also remove files that were changed since they were installed.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove the plug-in for Claude Code, and nothing else. Sessions captured already are still imported."""
    from iccm_assets.capture.claude_code.plugin_install import PLUGIN_ID, remove_plugin

    result = remove_plugin(get_config(user, project), force=force, dry_run=dry_run)
    if as_json:
        echo_json(
            {
                "plugin": PLUGIN_ID,
                "folder": str(result.folder),
                "state": result.state,
                "dry_run": dry_run,
                "files": result.files,
                "kept": result.kept,
            }
        )
        return
    print_plain(f"{PLUGIN_ID} {result.state}{' (dry run)' * dry_run}: {result.folder}")
    for name in result.kept:
        print_plain(f"kept, as it was not installed: {result.folder / name}")
