"""The `iccm` command: one module per command or command group, and one place that reports errors.

Commands that the product does not need to run (the demo, the simulation) are found by the entry point group
`iccm.commands`.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points
from io import TextIOWrapper
from typing import Any

import typer

from iccm_assets.errors import DatabaseError, DatabaseUnreachableError, IccmError, InputError, first_line

# typer brings its own copy of click and does not export this base of its usage errors.
ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

ENTRY_POINT_GROUP = "iccm.commands"
# In the order of `iccm --help`. A module holds a Typer app `group`, or a function named like the command.
COMMANDS = {
    "dev": "iccm_assets.cli.dev",
    "serve": "iccm_assets.cli.serve",
    "import": "iccm_assets.cli.import_",
    "status": "iccm_assets.cli.status",
    "retrain": "iccm_assets.cli.retrain",
    "evaluate": "iccm_assets.cli.evaluate",
    "deploy": "iccm_assets.cli.deploy",
    "rollout": "iccm_assets.cli.rollout",
    "rollback": "iccm_assets.cli.rollback",
    "lineage": "iccm_assets.cli.lineage",
    "erase": "iccm_assets.cli.erase",
    "verify": "iccm_assets.cli.verify",
    "judge": "iccm_assets.cli.judge",
    "orchestra": "iccm_assets.cli.orchestra",
    "alerts": "iccm_assets.cli.alerts",
    "dedup": "iccm_assets.cli.dedup",
    "db": "iccm_assets.cli.db",
    "env": "iccm_assets.cli.env",
    "config": "iccm_assets.cli.config",
    "doctor": "iccm_assets.cli.doctor",
}


def build_app(*names: str) -> typer.Typer:
    """Build the command line of the named commands, or of all; each costs the imports of its module."""
    app = typer.Typer(
        name="iccm",
        help="Keep CET-D learning from its own production traffic.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(lambda: None)  # a single command keeps its name, too
    for name in names or (*sorted(entry_points(group=ENTRY_POINT_GROUP).names), *COMMANDS):
        module = _load(name)
        if hasattr(module, "group"):
            app.add_typer(module.group, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def _load(name: str) -> Any:
    """Import the module of a command; raises ``KeyError`` for an unknown command."""
    if name in COMMANDS:
        return importlib.import_module(COMMANDS[name])
    return entry_points(group=ENTRY_POINT_GROUP)[name].load()


def main() -> None:
    """Run the command line; an expected error becomes one line on stderr and a non-zero exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        # An ASCII-only terminal, or half a surrogate pair in stored text, must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Without its standalone mode the framework returns the exit status of `typer.Exit`.
        status = build_app(*_requested(sys.argv[1:2]))(standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe or a full disk can still be reported
    except ClickError as error:
        error.show()
        status = error.exit_code
    except (Exception, KeyboardInterrupt) as error:
        status = _report(error)
    sys.exit(status if isinstance(status, int) else 0)


def _requested(names: list[str]) -> list[str]:
    """Keep the names that are commands; only an unknown name costs a scan of the installed packages."""
    return [name for name in names if name in COMMANDS or name in entry_points(group=ENTRY_POINT_GROUP).names]


def _report(error: BaseException) -> int:
    """Print an expected error as one line and return the exit code; raise any other error again."""
    match error:
        case IccmError():
            return _print_error(str(error))
        case typer.Abort() | KeyboardInterrupt():
            return _print_error("interrupted", code=130)
        case BrokenPipeError():
            _discard_output()
            return 141
        case UnicodeEncodeError():
            return _print_error(str(InputError(f"not text: {error.object[error.start : error.end]!r}")))
        case OSError():
            # A full disk, a name too long, a missing permission: caused by the machine, not by the program.
            _discard_output()
            where = "" if error.filename is None else f"{error.filename}: "
            return _print_error(f"{where}{error.strerror or error}")
    if (message := _database_message(error)) is None:
        raise error
    return _print_error(message)


def _discard_output() -> None:
    """Discard what is still buffered for standard output, so that the exit does not fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


def _database_message(error: BaseException) -> str | None:
    """Describe a lost database connection or a rejected statement; None for any other error."""
    sqlalchemy = sys.modules.get("sqlalchemy")
    if sqlalchemy is None or not isinstance(error, sqlalchemy.exc.DBAPIError):
        return None
    is_unreachable = isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
    return str((DatabaseUnreachableError if is_unreachable else DatabaseError)(first_line(error.orig)))


def _print_error(message: str, code: int = 1) -> int:
    typer.echo(f"error: {message}", err=True)
    return code
