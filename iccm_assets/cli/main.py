"""The `iccm` command: one module per command or command group, and one place that reports errors.

Commands that the product does not need to run (the demo, the simulation) are found by the entry point group
`iccm.commands`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import tokenize
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from io import TextIOWrapper
from pydoc import source_synopsis
from typing import Any

import typer
from rich.markup import escape

from iccm_assets.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    IccmError,
    InputError,
    UsageError,
    first_line,
)

# typer brings its own copy of click and does not export this base of its usage errors.
ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

EXIT_USAGE = 2  # as of the framework's own usage errors
ENTRY_POINT_GROUP = "iccm.commands"
# In the order of `iccm --help`. A module holds a Typer app `group`, or a function named like the command.
COMMANDS = {
    "dev": "iccm_assets.cli.dev",
    "serve": "iccm_assets.cli.serve",
    "connect": "iccm_assets.cli.connect",
    "disconnect": "iccm_assets.cli.disconnect",
    "mcp": "iccm_assets.cli.mcp",
    "token": "iccm_assets.cli.token",
    "capture": "iccm_assets.cli.capture",
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
    "export": "iccm_assets.cli.export",
    "judge": "iccm_assets.cli.judge",
    "suite": "iccm_assets.cli.suite",
    "environment": "iccm_assets.cli.environment",
    "orchestra": "iccm_assets.cli.orchestra",
    "alerts": "iccm_assets.cli.alerts",
    "dedup": "iccm_assets.cli.dedup",
    "db": "iccm_assets.cli.db",
    "backup": "iccm_assets.cli.backup",
    "restore": "iccm_assets.cli.restore",
    "storage": "iccm_assets.cli.storage",
    "env": "iccm_assets.cli.env",
    "config": "iccm_assets.cli.config",
    "doctor": "iccm_assets.cli.doctor",
}


def build_app(*names: str) -> typer.Typer:
    """Build the command line of the named commands, or of all; each costs the imports of its module."""
    return _build(names or list_commands(), ())


def build_command(arguments: Sequence[str]) -> Any:
    """Build the command line that runs ``arguments``, importing no module but that of its command.

    An overview, as of `iccm --help`, takes the summaries of the commands from their files.
    """
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    if name not in COMMANDS and name not in (names := list_commands()):
        command = typer.main.get_command(_build((), names))
    elif name == arguments[0]:
        command = typer.main.get_command(_build([name], ()))
    else:  # an option of `iccm` itself: `iccm --help status` shows all commands
        command = typer.main.get_command(
            _build([name], [other for other in list_commands() if other != name])
        )
    _show_literally(command)
    return command


def list_commands() -> list[str]:
    """List the names of all commands, in the order of `iccm --help`."""
    return [*sorted(entry_points(group=ENTRY_POINT_GROUP).names), *COMMANDS]


def _build(loaded: Sequence[str], listed: Sequence[str]) -> typer.Typer:
    """Build the app of commands to run, and of commands that are only listed with their summaries."""
    app = typer.Typer(
        name="iccm",
        help="Keep CET-D learning from its own production traffic.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(lambda: None)  # a single command keeps its name, too
    for name in listed:
        app.command(name, help=_summarize(name))(lambda: None)
    for name in loaded:
        module = importlib.import_module(_get_module(name))
        if hasattr(module, "group"):
            app.add_typer(module.group, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def _get_module(name: str) -> str:
    """Return the module of a command; raises ``KeyError`` for an unknown command."""
    return COMMANDS.get(name) or entry_points(group=ENTRY_POINT_GROUP)[name].module


def _summarize(name: str) -> str:
    """Read the first line of a command's module, which is "`iccm NAME`: summary", without importing it."""
    spec = find_spec(_get_module(name))
    if spec is None or spec.origin is None:
        return ""
    with tokenize.open(spec.origin) as source:
        summary = (source_synopsis(source) or "").partition(": ")[2]
    return summary[:1].upper() + summary[1:]


def _show_literally(command: Any) -> None:
    """Let help texts keep their brackets, which are no markup, and wrap their paragraphs to the terminal."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = escape("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))
    for parameter in command.params:
        parameter.help = escape(parameter.help or "")
    for subcommand in getattr(command, "commands", {}).values():
        _show_literally(subcommand)


def main() -> None:
    """Run the command line; an expected error becomes one line on stderr and a non-zero exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        # An ASCII-only terminal, or half a surrogate pair in stored text, must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Without its standalone mode the framework returns the exit status of `typer.Exit`.
        status = build_command(sys.argv[1:])(standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe or a full disk can still be reported
    except ClickError as error:
        error.show()
        status = error.exit_code
    except (Exception, KeyboardInterrupt) as error:
        status = _report(error)
    sys.exit(status if isinstance(status, int) else 0)


def _report(error: BaseException) -> int:
    """Print an expected error as one line and return the exit code; raise any other error again."""
    match error:
        case IccmError():
            return _print_error(str(error), EXIT_USAGE if isinstance(error, UsageError) else 1)
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
