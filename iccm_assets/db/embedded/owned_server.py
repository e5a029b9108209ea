"""`iccm demo`: the whole loop on simulated traffic, from HTTP requests to promotion and rollback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iccm_assets.db.database import close_engines
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.settings import Settings

if TYPE_CHECKING:
    pass


@contextmanager
def owned_server(settings: Settings) -> Iterator[None]:
    """Stop the embedded server at the end if it was started in the block and no other process uses it."""
    server = EmbeddedServer(settings.home)
    starts_here = settings.database_url is None and server.running_url() is None
    try:
        yield
    finally:
        if starts_here:
            close_engines()
            server.stop_if_idle()
