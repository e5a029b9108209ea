"""Own the embedded server for the duration of one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from iccm_assets.db.database import close_engines
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.settings import Settings


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
