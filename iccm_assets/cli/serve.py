"""`iccm serve`: answers with CET-D over HTTP, splits traffic between arms, captures it (G1-G7)."""

from __future__ import annotations

from typing import Annotated

import typer

from iccm_assets.settings import Settings, get_settings

DEFAULT_PORT = 8321


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; off loopback tokens are needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = DEFAULT_PORT,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, each with its own models.")] = 1,
) -> None:
    """Serve the production model, and a live rollout's candidate, until interrupted."""
    from iccm_assets.gateway.backends import loader_of
    from iccm_assets.gateway.server import address_of, listen, run
    from iccm_assets.gateway.supervisor import log_lines, supervise

    settings = get_settings()
    listening = listen(host, port, settings)
    log_lines()
    version = production_version(settings)
    typer.echo(f"{address_of(listening)} answers with {version} (/docs says how to ask)")
    if workers == 1:
        run(listening, settings, loader_of(settings))
    else:
        supervise(listening, workers, settings)


def production_version(settings: Settings) -> str:
    """The version in production, the base model where there is none yet; the database runs then."""
    from iccm_assets.learning.model_store import ModelStore
    from iccm_assets.rollout.bootstrap import ensure_production
    from iccm_assets.store.database import connect

    engine = connect(settings)
    try:
        version, _ = ensure_production(engine, ModelStore(settings.home), settings)
    finally:
        engine.dispose()
    return version.version
