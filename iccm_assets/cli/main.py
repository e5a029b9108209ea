"""The `iccm` command: one Typer app per command group, and one place that turns errors into a line."""

from __future__ import annotations

import importlib
import os
import sys
from io import TextIOWrapper
from typing import Any

import typer

from iccm_assets.errors import DatabaseError, DatabaseUnreachable, IccmError, InputError

app = typer.Typer(
    name="iccm",
    help="ICCM Phase 4: keeps CET-D learning from its own production traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# typer brings its own copy of click and does not export this base of its usage errors.
CLICK_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

# Command groups, in the order `iccm --help` lists them; each module has `register(app)`.
GROUPS = (
    "demo",
    "dev",
    "serve",
    "simulate",
    "importing",
    "status",
    "retrain",
    "evaluate",
    "deploy",
    "rollout",
    "rollback",
    "lineage",
    "erase",
    "verify",
    "judge",
    "orchestra",
    "alerts",
    "dedup",
    "db",
    "env",
    "config",
    "doctor",
)


def build(command: str = "") -> typer.Typer:
    """The whole command line, or only the group of this name: each costs the imports of what it does."""
    if not app.registered_commands and not app.registered_groups:
        app.callback()(lambda: None)  # a single command keeps its name, too
        for name in (command,) if command in GROUPS else GROUPS:
            importlib.import_module(f"iccm_assets.cli.{name}").register(app)
    return app


def main() -> None:
    """Run the command line; an ``IccmError`` becomes one line on stderr and exit code 1."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that knows only ASCII, or half a surrogate pair in somebody's data, ends no command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Without its standalone mode the framework returns the exit status of `typer.Exit`.
        status = build(sys.argv[1] if len(sys.argv) > 1 else "")(standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that left or a full disk can still be answered for
        if isinstance(status, int):
            sys.exit(status)
    except IccmError as error:
        sys.exit(_complain(str(error)))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(_complain("interrupted", code=130))
    except CLICK_ERROR as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _abandon_output()
        sys.exit(141)
    except UnicodeEncodeError as error:
        sys.exit(_complain(str(InputError(f"not text: {error.object[error.start : error.end]!r}"))))
    except OSError as error:
        # A full disk, a name too long, a directory without permission: the machine's, not the program's.
        _abandon_output()
        where = "" if error.filename is None else f"{error.filename}: "
        sys.exit(_complain(f"{where}{error.strerror or error}"))
    except Exception as error:
        if said := _of_the_database(error):
            sys.exit(_complain(said))
        raise


def _abandon_output() -> None:
    """Let what is still buffered for standard output go nowhere, so that leaving does not fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _of_the_database(error: Exception) -> str | None:
    """The line for a database that went away or refused midway; None for any other error."""
    sqlalchemy = sys.modules.get("sqlalchemy")
    if sqlalchemy is None or not isinstance(error, sqlalchemy.exc.DBAPIError):
        return None
    lost = isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
    first = next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)
    return str((DatabaseUnreachable if lost else DatabaseError)(first))


def _complain(message: str, code: int = 1) -> int:
    typer.echo(f"error: {message}", err=True)
    return code
