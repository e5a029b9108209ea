"""One gateway process: its models, its line to the database, its spool, and uvicorn in front (G1-G7)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import sqlalchemy as sa
import uvicorn

from iccm_assets.errors import DatabaseUnreachable, InputError
from iccm_assets.gateway.app import Gateway, make_app
from iccm_assets.gateway.auth import check_bind, tokens_of
from iccm_assets.gateway.control import Control
from iccm_assets.gateway.figures import Figures
from iccm_assets.gateway.fleet import Fleet, Load
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.gateway.routing import canary_weight
from iccm_assets.gateway.service import Service
from iccm_assets.gateway.shipper import Shipper
from iccm_assets.gateway.spool import Spool
from iccm_assets.settings import Settings
from iccm_assets.store.database import engine_for
from iccm_assets.store.embedded import EmbeddedServer

log = logging.getLogger("iccm.gateway")

FLUSH_SECONDS = 10.0


def listen(host: str, port: int, settings: Settings) -> socket.socket:
    """A socket at this address, which several processes may share; ``InputError`` when it is taken.

    ``SettingsError`` where others could reach it without a token.
    """
    check_bind(host, tokens_of(settings))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="Give another --port."
        ) from None
    return listening


def address_of(listening: socket.socket) -> str:
    """`http://host:port` of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(listening: socket.socket, settings: Settings, load: Load, *, parent: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is in flight, deliver the spool, and return.

    ``parent``: end as well when this process is gone.
    """
    # The event loop gets its turn in a millisecond, whatever the model's and the shipper's threads do.
    sys.setswitchinterval(0.001)
    replica = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(2)}"
    parts = _Parts(replica, settings, load)
    parts.control.address = address_of(listening)
    gateway = Gateway(parts.service, parts.engine, settings, replica)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(gateway, settings),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.gateway.drain_seconds),
            backlog=2048,
        )
    )
    with _signals_end(), parts.running():
        if parent is not None:
            _end_with(parent, server)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listening]))


class _Parts:
    """What one process is made of."""

    def __init__(self, replica: str, settings: Settings, load: Load) -> None:
        limits = settings.gateway
        self._settings = settings
        self._engine: sa.Engine | None = None
        self.fleet = Fleet(load)
        self.metrics = Metrics()
        self.spool = Spool(settings.home / "spool", replica, int(limits.spool_max_mib * (1 << 20)))
        self.control = Control(
            self._url,
            replica,
            self.fleet,
            poll_seconds=limits.poll_seconds,
            keep_former=limits.keep_former_warm,
        )
        self.control.on_look = self._measure
        self.shipper = Shipper(self.spool, self.engine, settings)
        self.service = Service(settings, self.control, self.fleet, self.spool, self.metrics)
        self.figures = Figures(self.engine, settings)
        self.metrics.beside(self.figures)

    def _url(self) -> str | None:
        """Where the database is; an embedded server somebody has stopped is not started again."""
        if self._settings.database_url is not None:
            return self._settings.database_url.replace("postgres://", "postgresql://", 1)
        return EmbeddedServer(self._settings.home).running()

    def engine(self) -> sa.Engine:
        """An engine on the database as it is reached now; ``DatabaseUnreachable`` when it is not."""
        if self._engine is None or not self.control.connected:
            url = self._url()
            if url is None:
                raise DatabaseUnreachable("the embedded server does not run")
            limits = (
                "-c statement_timeout=20000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000"
            )
            made = engine_for(_with_options(url, limits), application_name="iccm gateway")
            if self._engine is None or self._engine.url != made.url:
                self._engine = made
        return self._engine

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Everything in the background, as long as the block takes."""
        self.control.start()
        self.shipper.start()
        self.figures.start()
        try:
            yield
        finally:
            self.figures.stop()
            self.control.stop()
            if not self.shipper.stop(FLUSH_SECONDS):
                log.warning("answers are left in %s; the next start delivers them", self.spool.directory)
            self.spool.release()
            self.fleet.close()

    def _measure(self) -> None:
        """The gauges, once a look; what counts is counted where it happens."""
        metrics, control = self.metrics, self.control
        metrics.database.set(control.connected)
        metrics.in_flight.set(self.service.in_flight)
        metrics.spool.set(self.spool.size)
        metrics.delivered.set(self.shipper.delivered)
        metrics.refused.set(self.shipper.refused)
        for version, backend in self.fleet.ready.items():
            metrics.ready.labels(version).set(1)
            metrics.queue.labels(version).set(backend.waiting)
        for version in self.fleet.failed:
            metrics.ready.labels(version).set(0)
        routing, clock = control.routing, control.clock
        if routing is not None and clock is not None:
            now, split = clock.now(), routing.split
            metrics.weight.set(canary_weight(routing, now, self.fleet.ready)[0])
            lease = None if split is None else split.lease_until
            metrics.lease.set(0 if lease is None else max(0.0, (lease - now).total_seconds() / clock.rate))


def _with_options(url: str, options: str) -> str:
    parsed = sa.make_url(url)
    given = parsed.query.get("options", "")
    given = given if isinstance(given, str) else " ".join(given)
    return parsed.update_query_dict({"options": f"{given} {options}".strip()}).render_as_string(False)


@contextlib.contextmanager
def _signals_end() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it is done: here that is the end wished for."""
    ended = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in ended.items():
            signal.signal(one, handler)


def _end_with(parent: int, server: uvicorn.Server, every: float = 1.0) -> None:
    def watch() -> None:
        over = threading.Event()
        while os.getppid() == parent:
            over.wait(every)
        server.should_exit = True

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
