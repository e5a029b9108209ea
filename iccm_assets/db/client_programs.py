"""PostgreSQL's client programs (pg_dump, pg_restore, psql) of the wheel, or of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from iccm_assets.db.embedded.binaries import postgres_home
from iccm_assets.errors import DatabaseError, first_line

_LOCK_TIMEOUT_MS = 60_000
# pg_restore writes it whatever the server is; before version 17 there was no such setting.
_NEWER_SETTING = b"SET transaction_timeout = 0;\n"
_BUFFER_BYTES = 1 << 20


def find_program(name: str) -> str:
    """Return the path of a client program; raises ``DatabaseError`` if there is none."""
    bundled = postgres_home() / "bin" / name
    program = str(bundled) if bundled.is_file() else shutil.which(name)
    if program is None:
        raise DatabaseError(f"there is no {name} on this machine", hint="Install a PostgreSQL client.")
    return program


def client_environment(url: str, options: str = "") -> dict[str, str]:
    """The URL as the variables libpq reads: every user of the machine can read a command line."""
    from psycopg import pq

    values = {option.keyword: option.val for option in pq.Conninfo.parse(url.encode()) if option.val}
    names = {option.keyword: option.envvar for option in pq.Conninfo.get_defaults() if option.envvar}
    values[b"options"] = (values.get(b"options", b"") + b" " + options.encode()).strip()
    return {names[key].decode(): value.decode() for key, value in values.items() if key in names}


def dump_database(url: str, target: Path, snapshot: str, selection: Sequence[str]) -> None:
    """Write what ``selection`` (options of pg_dump) names, as this exported snapshot has it, to a file."""
    command = [
        *(find_program("pg_dump"), "--format=custom", f"--snapshot={snapshot}", f"--file={target}"),
        *("--no-owner", "--no-privileges", "--no-password", f"--lock-wait-timeout={_LOCK_TIMEOUT_MS}"),
        *selection,
    ]
    result = subprocess.run(
        command, env=_environment(url), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if result.returncode != 0:
        raise _error("pg_dump", result.stderr)


def restore_dump(url: str, dump: Path, options: Sequence[str] = ()) -> None:
    """Restore a dump in one transaction; ``options`` are those of pg_restore.

    Raises ``DatabaseError``, and nothing is changed then.
    """
    script = [find_program("pg_restore"), "--no-owner", "--no-privileges", "--file=-", *options, str(dump)]
    client = [find_program("psql"), "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
    with (
        subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader,
        subprocess.Popen(
            [*client, "--output=/dev/null"],
            env=_environment(url, f"-c lock_timeout={_LOCK_TIMEOUT_MS}"),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as writer,
    ):
        assert reader.stdout and reader.stderr and writer.stdin
        try:
            writer.stdin.write(b"begin;\n")
            _copy_script(reader.stdout, writer.stdin)
            problem = reader.stderr.read()
            # Without its end psql rolls back: half a script is never committed.
            if reader.wait() == 0:
                writer.stdin.write(b"commit;\n")
            writer.stdin.flush()
        except BrokenPipeError:  # psql has stopped at an error and says which
            reader.kill()
            problem = b""
        rejected = writer.communicate()[1]
    if writer.returncode != 0:
        raise _error("psql", rejected)
    if reader.returncode != 0:
        raise _error("pg_restore", problem)


def _copy_script(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy a script without the setting that older servers lack, which stands before any data."""
    for line in source:
        if line == _NEWER_SETTING:
            break
        target.write(line)
    shutil.copyfileobj(source, target, _BUFFER_BYTES)


def _environment(url: str, options: str = "") -> dict[str, str]:
    return {**os.environ, **client_environment(url, options), "PGAPPNAME": "iccm"}


def _error(program: str, output: bytes) -> DatabaseError:
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return DatabaseError(first_line("; ".join(lines[:3])[:600] or f"{program} failed"))
