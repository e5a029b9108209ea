"""Run one gateway process: models, routing, spool, metrics, and uvicorn in front of them (G1-G7)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

import uvicorn
from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError

from iccm_assets.capture.session_ownership import SessionOwner
from iccm_assets.db.database import create_engine_for
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.db.embedded.server_watch import watch_server
from iccm_assets.errors import AddressError, DatabaseUnreachableError
from iccm_assets.gateway.app import Gateway, create_app
from iccm_assets.gateway.auth import Authenticator, require_tokens_off_loopback, token_digests
from iccm_assets.gateway.backends import make_server_cleaner
from iccm_assets.gateway.database_metrics import DatabaseCollector
from iccm_assets.gateway.http_protocol import LimitedHttpProtocol
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.gateway.model_pool import ModelLoader, ModelPool
from iccm_assets.gateway.persistence import load_owners
from iccm_assets.gateway.routing import canary_weight
from iccm_assets.gateway.routing_sync import RoutingSync
from iccm_assets.gateway.service import Service
from iccm_assets.gateway.session_owners import SessionOwners
from iccm_assets.gateway.spool import Spool
from iccm_assets.gateway.spool_worker import SpoolWorker
from iccm_assets.gateway.tokens import TokenStore
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

FLUSH_TIMEOUT_SECONDS = 10.0
MAX_OPEN_FILES = 65_536
_PARENT_CHECK_SECONDS = 1.0
# All addresses of the machine, and the one by which it reaches itself.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
_SESSION_OPTIONS = (
    "-c statement_timeout=20000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000"
)


def listen(
    host: str, port: int, settings: Settings, has_token: Callable[[], bool] = lambda: False
) -> socket.socket:
    """Open a listening socket, which several processes may share.

    Raises ``AddressError`` if the address is in use, and ``SettingsError`` if other hosts can reach it and no
    token is configured.
    """
    require_tokens_off_loopback(host, token_digests(settings), has_token)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise AddressError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="Choose another --port."
        ) from None
    return listening


def socket_url(listening: socket.socket) -> str:
    """Return the URL of a listening socket: `http://host:port`."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def replica_url(listening: socket.socket, database: str | None) -> str:
    """Return the URL at which processes of other machines reach this one.

    Of a socket on all addresses it has the one that leads to the database, which all of them reach, too;
    ``database`` is its URL.
    """
    host, port = listening.getsockname()[:2]
    if host not in _WILDCARDS:
        return socket_url(listening)
    url = make_url(database or "postgresql://127.0.0.1")
    with contextlib.suppress(OSError):  # a name that does not resolve now, or no network
        addresses = socket.getaddrinfo(url.host or "127.0.0.1", url.port or 5432, type=socket.SOCK_DGRAM)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # chooses a route, sends nothing
                own = probe.getsockname()[0]
            return f"http://[{own}]:{port}" if ":" in own else f"http://{own}:{port}"
    return f"http://{socket.gethostname()}:{port}"


def own_url(listening: socket.socket) -> str:
    """Return the URL by which this process reaches itself."""
    host, port = listening.getsockname()[:2]
    own = _WILDCARDS.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{own}:{port}"


def run(
    listening: socket.socket, settings: Settings, load: ModelLoader, *, parent: int | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; then finish the requests in flight, flush the spool, and return.

    With a ``parent``, also stop when that process is gone.
    """
    # The event loop waits at most a millisecond for the model's and the spool's threads to release the GIL.
    sys.setswitchinterval(0.001)
    replica = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(2)}"
    process = _GatewayProcess(replica, replica_url(listening, settings.database_url), settings, load)
    gateway = Gateway(process.service, process.engine, settings, replica, process.database_state)
    server = _Server(
        uvicorn.Config(
            create_app(
                gateway, settings, process.authenticator(listening.getsockname()[0]), own_url(listening)
            ),
            http=LimitedHttpProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.gateway.drain_timeout_seconds),
            backlog=2048,
        )
    )
    _raise_open_files_limit()
    # uvicorn raises the signal that stopped it again after it has shut down; that must not skip the flush.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with process.running():
        if parent is not None:
            threading.Thread(
                target=_stop_with, args=(parent, server), name="parent-watch", daemon=True
            ).start()
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listening]))


class _Server(uvicorn.Server):
    """A server that accepts what has connected to it before it stops to listen."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve the connections of the backlog, too; closing the socket would reset them."""
        await _let_loop_accept()
        for server in self.servers:
            server.close()
        await _let_loop_accept()
        await super().shutdown(sockets)


async def _let_loop_accept() -> None:
    """Wait for as many turns of the event loop as it takes from a connection's arrival to its protocol."""
    for _ in range(4):
        await asyncio.sleep(0)


class _GatewayProcess:
    """The components of one process."""

    def __init__(self, replica: str, address: str, settings: Settings, load: ModelLoader) -> None:
        limits = settings.gateway
        self._settings = settings
        self._engine: Engine | None = None
        self._lookups: Connection | None = None
        self.models, self.tokens = ModelPool(load, make_server_cleaner(settings)), TokenStore()
        self.collector = DatabaseCollector(self.engine, settings)
        self.metrics = Metrics(self.collector)
        self.spool = Spool(settings.home / "spool", replica, int(limits.spool_max_mib * (1 << 20)))
        self.sync = RoutingSync(
            self._url,
            replica,
            address,
            self.models,
            on_refresh=self._update_gauges,
            poll_seconds=limits.poll_interval_seconds,
            keep_previous_warm=limits.keep_previous_warm,
            tokens=self.tokens,
        )
        self.owners = SessionOwners(self._load_owners)
        self.spool_worker = SpoolWorker(
            self.spool, self.engine, settings, self.metrics, on_refused=self.owners.forget
        )
        self.service = Service(settings, self.sync, self.models, self.spool, self.metrics, self.owners)

    def authenticator(self, host: str) -> Authenticator:
        """Create what checks the tokens of requests to an address."""

        def now() -> datetime | None:
            return None if self.sync.clock is None else self.sync.clock.now()

        return Authenticator(token_digests(self._settings), self.tokens, host, now)

    def _url(self) -> str | None:
        """Return the database's URL; only the watch starts an embedded server, and only one that died."""
        if self._settings.database_url is not None:
            return self._settings.database_url.replace("postgres://", "postgresql://", 1)
        return EmbeddedServer(self._settings.home).running_url()

    def engine(self) -> Engine:
        """Return an engine at the current URL of the database; raise ``DatabaseUnreachableError`` without."""
        if self._engine is None or not self.sync.connected:
            url = self._url()
            if url is None:
                raise DatabaseUnreachableError("the embedded server is not running")
            engine = create_engine_for(url, application_name="iccm gateway", session_options=_SESSION_OPTIONS)
            if self._engine is None or self._engine.url != engine.url:
                self._engine = engine
        return self._engine

    def database_state(self) -> str:
        """Describe in words whether the database is there, and what happens if it is not (`/readyz`)."""
        if self.sync.connected:
            return "connected"
        if self._settings.database_url is not None:
            return "away: the gateway keeps trying to connect"
        if EmbeddedServer(self._settings.home).was_stopped():
            return "away: it was stopped; `iccm db start` starts it"
        return "away: the embedded server is started again, see the gateway's log and postgres/server.log"

    def _load_owners(self, sessions: Sequence[str]) -> Mapping[str, SessionOwner]:
        if not self.sync.connected:
            return {}
        try:
            return load_owners(self._open_lookups(), sessions)
        except DBAPIError as error:
            lookups, self._lookups = self._lookups, None
            if lookups is not None:
                lookups.invalidate()
                lookups.close()
            if not error.connection_invalidated:
                raise
            return load_owners(self._open_lookups(), sessions)  # it had died since the last one

    def _open_lookups(self) -> Connection:
        """Return the connection that is kept for look-ups, of which there is one at a time.

        Without a transaction, and without the check of a pooled connection, a look-up is one round trip.
        """
        engine = self.engine()
        if self._lookups is None or self._lookups.engine is not engine:
            self._lookups = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return self._lookups

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the background threads during the block."""
        for thread in (self.sync, self.spool_worker, self.collector):
            thread.start()
        watch = watch_server(self._settings)
        try:
            yield
        finally:
            if watch is not None:
                watch.stop()
            self.collector.stop()
            self.sync.stop()
            if not self.spool_worker.stop(FLUSH_TIMEOUT_SECONDS):
                log.warning("responses remain in %s; the next start stores them", self.spool.directory)
            self.spool.release()
            self.models.close()

    def _update_gauges(self) -> None:
        """Update the gauges after each refresh of the routing; counters are updated where they count."""
        metrics, sync = self.metrics, self.sync
        metrics.database.set(sync.connected)
        metrics.in_flight.set(self.service.in_flight)
        metrics.spool.set(self.spool.pending_bytes)
        for version, backend in self.models.ready.items():
            metrics.ready.labels(version).set(1)
            metrics.queue.labels(version).set(backend.pending)
        for version in self.models.failed:
            metrics.ready.labels(version).set(0)
        routing, clock = sync.routing, sync.clock
        if routing is not None and clock is not None:
            lease = None if routing.split is None else routing.split.lease_until
            metrics.weight.set(canary_weight(routing, clock.now(), self.models.ready)[0])
            metrics.lease.set(0 if lease is None else max(0.0, clock.seconds_until(lease)))


def _raise_open_files_limit() -> None:
    """Allow as many connections as the system does: without a descriptor, the next one is not accepted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def _stop_with(parent: int, server: uvicorn.Server) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    server.should_exit = True
