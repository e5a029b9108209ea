"""`iccm serve`: serve CET-D over HTTP, split traffic between arms, capture it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from iccm_assets.cli.console import err
from iccm_assets.cli.context import ensure_production_version, open_platform
from iccm_assets.settings import get_settings

DEFAULT_PORT = 8321


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than loopback requires tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = DEFAULT_PORT,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, each with its own models.")] = 1,
) -> None:
    """Serve the production model, and a live rollout's candidate, until interrupted."""
    from iccm_assets.gateway import server, supervisor
    from iccm_assets.gateway.backends import make_model_loader
    from iccm_assets.gateway.tokens import has_active_token
    from iccm_assets.reporting.real_traffic import describe_builtin_limits

    settings = get_settings()
    listening = server.listen(host, port, settings, lambda: has_active_token(open_platform()[1]))
    supervisor.configure_logging()
    version = ensure_production_version(settings)
    if limits := describe_builtin_limits(settings.orchestra):
        err.print(escape(limits))
    typer.echo(f"{server.socket_url(listening)} answers with {version} (API: /docs)")
    if workers == 1:
        server.run(listening, settings, make_model_loader(settings))
    else:
        supervisor.supervise(listening, workers, settings)
