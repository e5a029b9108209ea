"""Common start of commands: settings, an engine on the migrated database, the version in production."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from iccm_assets.cli.console import err
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def open_platform() -> tuple[Settings, Engine]:
    """Load the settings and connect to the platform's database, migrated to the newest revision."""
    # Imported here, as in all commands: SQLAlchemy costs 0.15 s, and `--help` needs no database.
    from iccm_assets.db.database import connect

    settings = get_settings()
    return settings, connect(settings)


def ensure_production_version(settings: Settings) -> str:
    """Return the version in production; deploy the base model if there is none.

    Reports on the console where production descends from another base model. Where model servers have the
    versions, their files need not be on this machine.
    """
    from iccm_assets.db.database import connect
    from iccm_assets.registry.base_difference import find_base_difference
    from iccm_assets.registry.model_store import ModelStore
    from iccm_assets.registry.versions import get_production_version
    from iccm_assets.rollout.deployment import ensure_production

    engine = connect(settings)
    try:
        with engine.connect() as conn:
            version = get_production_version(conn)
        if version is None or settings.gateway.backend != "openai":
            version, _ = ensure_production(engine, ModelStore.open(settings), settings)
        with engine.connect() as conn:
            difference = find_base_difference(conn, settings)
    finally:
        engine.dispose()
    if difference is not None:
        err.print(f"[yellow]{escape(str(difference))}[/]", soft_wrap=True)
    return version.version
