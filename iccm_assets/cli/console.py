"""Output of all commands: prose, JSON, tables, progress bars. Standard output holds results, nothing else."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Reason = Annotated[str, typer.Option("--reason", help="Reason; recorded with your user name.")]

out = Console()
# Progress and remarks never mix with what a script reads from standard output.
err = Console(stderr=True)

_PROGRESS = re.compile(r"(\d+)(?: of |/)(\d+)")


def get_actor() -> str:
    """The operating system user, as recorded with commands and deployments."""
    return f"user:{getpass.getuser()}"


def echo_json(value: Any) -> None:
    """Print one JSON document; dates as ISO 8601."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_to_json_value))


def echo_json_line(value: Any) -> None:
    """Print one JSON document on a line of its own."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=_to_json_value))


def print_line(text: str) -> None:
    """Print markup without wrapping or number highlighting."""
    out.print(text, highlight=False, soft_wrap=True)


def print_plain(text: str) -> None:
    """Print text that may hold brackets, without wrapping."""
    print_line(escape(text))


def print_headline(title: str) -> None:
    """Print a rule with a title on standard error."""
    err.rule(f"[bold]{title}", align="left")


def make_table(title: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> Table:
    """Build a table from rows with equal keys; numbers to the right, floats with three decimals.

    Texts are printed as they are, ``rich.text.Text`` in its style; ``options`` go to ``rich.table.Table``.
    """
    built = Table(title=title, title_justify="left", header_style="bold", **options)
    for name, value in (rows[0] if rows else {"": ""}).items():
        built.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        built.add_row(*(_format_cell(value) for value in row.values()))
    return built


def make_grid(rows: Sequence[Sequence[str]]) -> Table:
    """Build a table of markup cells without lines and headings."""
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*row)
    return grid


@contextmanager
def progress_bar(
    title: str, total: float | None = None, *, in_bytes: bool = False, **options: Any
) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error; ``options`` go to ``rich.progress.Progress``.

    Yields a function that takes ``completed``, ``advance``, ``total`` and ``description``.
    """
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn() if in_bytes else progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=err, **options) as bar:
        yield partial(bar.update, bar.add_task(title, total=total))


def parse_progress(message: str) -> dict[str, Any]:
    """Extract "N of M" from a log message as ``completed`` and ``total``; empty if there is none."""
    match = _PROGRESS.search(message)
    return {} if match is None else {"completed": int(match[1]), "total": int(match[2])}


def _format_cell(value: Any) -> str | Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    # Stored text may hold brackets, which rich would read as markup.
    return "-" if value is None else escape(str(value))


def _to_json_value(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime | date) else str(value)
