"""`iccm mcp`: offer CET-D's tools to a coding agent over stdio."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from iccm_assets.settings import ClientSettings, get_settings


def mcp(
    gateway: Annotated[
        str | None, typer.Option(help="URL of the gateway; default: ICCM_CLIENT__GATEWAY_URL.")
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose files may be named by path; default: CLAUDE_PROJECT_DIR, else this directory."
        ),
    ] = None,
) -> None:
    """Serve the tools write_requirements, accept_requirements and rate_requirements over stdio (MCP).

    An agent starts this command itself; `iccm connect claude-code` sets it up. Every call goes to the
    gateway, with the bearer token in ICCM_CLIENT__TOKEN.
    """
    from iccm_assets.gateway.mcp_server import create_mcp_server
    from iccm_assets.gateway.subprocess_gateway import get_token

    settings = get_settings()
    url = parse_gateway_url(gateway) or settings.client.gateway_url
    folder = project or Path(os.environ.get("CLAUDE_PROJECT_DIR") or ".")
    token = settings.client.token or get_token(settings)
    create_mcp_server(url, token=token, project=folder).run("stdio")


def parse_gateway_url(value: str | None) -> str | None:
    """Check a URL as the setting is checked; None without one. Raises a usage error."""
    if value is None:
        return None
    try:
        return ClientSettings(gateway_url=value).gateway_url
    except ValueError:
        raise typer.BadParameter(
            "must be http://HOST:PORT or https://HOST:PORT", param_hint="--gateway"
        ) from None
