"""`iccm connect`: connect a coding agent with CET-D."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iccm_assets.cli.console import AsJson, echo_json, print_plain
from iccm_assets.cli.mcp import parse_gateway_url
from iccm_assets.errors import UsageError
from iccm_assets.settings import get_settings

group = typer.Typer(help="Connect a coding agent with CET-D.", no_args_is_help=True)
# Typer merges a group with a single command into its parent unless the group has a callback.
group.callback()(lambda: None)

User = Annotated[bool, typer.Option("--user", help="For all your projects; this is the default.")]
Project = Annotated[Path | None, typer.Option(help="For the project in this folder only.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would be done.")]


@group.command()
def claude_code(
    user: User = False,
    project: Project = None,
    gateway: Annotated[
        str | None, typer.Option(help="URL of the gateway; default: ICCM_CLIENT__GATEWAY_URL at each start.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Install the plug-in for Claude Code: CET-D's tools, a skill, and a hook that captures sessions.

    It is a folder of its own below `skills` in Claude Code's configuration; no other file changes. Running
    it again changes nothing, or updates the folder. It needs Claude Code 2.1.160 or newer.
    """
    from iccm_assets.capture.claude_code import plugin_install
    from iccm_assets.gateway.http_client import check_gateway

    config = get_config(user, project)
    settings = get_settings()
    url = parse_gateway_url(gateway)
    plugin = plugin_install.make_plugin_settings(settings.home, url)
    result = plugin_install.install_plugin(config, plugin, dry_run=dry_run)
    problems = plugin_install.check_settings_files(config)
    is_ready, state = check_gateway(url or settings.client.gateway_url)
    if as_json:
        echo_json(
            {
                "plugin": plugin_install.PLUGIN_ID,
                "folder": str(result.folder),
                "state": result.state,
                "dry_run": dry_run,
                "files": result.files,
                "problems": problems,
                "gateway": {"ready": is_ready, "detail": state},
            }
        )
        return
    print_plain(f"{plugin_install.PLUGIN_ID} {result.state}{' (dry run)' * dry_run}: {result.folder}")
    for problem in problems:
        print_plain(problem)
    print_plain(state if is_ready else f"{state}; start it with `iccm dev` or `iccm serve`")
    trust = " Trust the folder and approve the server `cet-d` when it asks." if project is not None else ""
    print_plain(f"Start Claude Code again to load it.{trust}")


def get_config(user: bool, project: Path | None) -> Path:
    """Return the configuration folder that the options name."""
    from iccm_assets.capture.claude_code.plugin_install import get_config_folder

    if user and project is not None:
        raise UsageError("--user and --project exclude each other")
    return get_config_folder(project)
