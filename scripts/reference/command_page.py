"""Every command of `iccm`: usage, description, arguments and options, and the exit status."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from iccm_assets.cli.console import EXIT_NEGATIVE
from iccm_assets.cli.main import EXIT_USAGE, build_app
from scripts.reference.markdown import code, page, prose, section, table

INTRODUCTION = "Every command has `--help`. A text in capitals stands for a value."
VALUES = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
EXIT_STATUS = [
    (0, "what was asked for happened"),
    (1, "it did not, for the reason on standard error, in a line that begins with `error:`"),
    (EXIT_USAGE, "the command line is wrong: an unknown option, a missing or impossible argument"),
    (EXIT_NEGATIVE, "the command ran to its end and its answer is no, such as a gate that does not pass"),
    (130, "interrupted with Ctrl-C"),
    (141, "the reader of the output closed it"),
]


def render() -> str:
    """Return the page."""
    root = typer.main.get_command(build_app())
    commands = [_command(path, command) for path, command in _walk(root, ("iccm",))]
    rows = [(str(status), meaning) for status, meaning in EXIT_STATUS]
    status = section(
        "Exit status", table(("status", "meaning"), rows), "Where a command differs, it says so below."
    )
    return page("Commands", INTRODUCTION, status, *commands)


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, member in command.commands.items():
        yield from _walk(member, (*path, name))


def _command(path: tuple[str, ...], command: Any) -> str:
    usage = [*path]
    rows = []
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        if not is_option:
            name = (parameter.metavar or parameter.name).upper()
            usage.append(name if parameter.required else f"[{name}]")
            if parameter.nargs == -1:
                usage[-1] += "…"
        rows.append((_name(parameter, is_option), _default(parameter), prose(_plain(parameter.help or ""))))
    if any(parameter.param_type_name == "option" for parameter in command.params):
        usage.insert(len(path), "[OPTIONS]")
    text = prose(_plain(inspect.cleandoc(command.help or "")))
    return section(
        " ".join(path), f"```\n{' '.join(usage)}\n```", text, table(("parameter", "default", "meaning"), rows)
    )


def _name(parameter: Any, is_option: bool) -> str:
    if not is_option:
        return code((parameter.metavar or parameter.name).upper())
    names = " / ".join([", ".join(parameter.opts), *filter(None, [", ".join(parameter.secondary_opts)])])
    return code(names if parameter.is_flag else f"{names} {_value(parameter)}")


def _value(parameter: Any) -> str:
    """Return the metavariable of an option, or what it may be."""
    kind = parameter.type_descriptor.annotation
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return str(parameter.metavar or VALUES.get(kind, "TEXT"))


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return _plain(parameter.show_default)
    default = parameter.default
    if parameter.required:
        return "required"
    if callable(default) or default in (None, "", (), []) or str(default).startswith("Sentinel"):
        return ""
    if parameter.param_type_name == "option" and parameter.is_flag and default is False:
        return ""
    return code(str(default).lower() if isinstance(default, bool) else default)


def _plain(text: str) -> str:
    """Remove what the terminal renders: escaped brackets, styles, marks of kept line breaks."""
    text = re.sub(r"\[/?(?:bold|dim|italic|green|red|yellow)\]", "", text.replace("\b", ""))
    return text.replace("\\[", "[")
