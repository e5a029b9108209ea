"""Output of all commands: prose, JSON, tables, progress bars. Standard output holds results, nothing else."""

from __future__ import annotations

import getpass
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Reason = Annotated[str, typer.Option("--reason", help="Reason; recorded with your user name.")]

# Exit status of a command that ran to its end and whose answer is no, e.g. a gate that fails.
EXIT_NEGATIVE = 3
# A pipe or a file has no width; this is wide enough for every table.
PIPE_WIDTH = 240
PROGRESS_LINE_SECONDS = 10.0
# A table is too wide where a column of texts would become narrower than this.
MIN_TEXT_WIDTH = 24


class _Output(Console):
    """Standard output; in a pipe or a file as wide as necessary, unless COLUMNS says how wide."""

    @property  # type: ignore[misc]  # read only, as nothing sets the size of standard output
    def size(self) -> ConsoleDimensions:
        columns = os.environ.get("COLUMNS", "")
        if columns.isdigit() and int(columns) > 0:
            return ConsoleDimensions(int(columns), super().size.height)
        return super().size if self.is_terminal else ConsoleDimensions(PIPE_WIDTH, 25)


out = _Output()
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


def pluralize(count: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun: "1 alert", "2 alerts", "2 processes"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def print_headline(title: str) -> None:
    """Print a rule with a title on standard error."""
    err.rule(f"[bold]{title}", align="left")


_LAYOUT: dict[str, Any] = {
    "box": SIMPLE_HEAD,
    "pad_edge": False,
    "show_edge": False,
    "padding": (0, 1, 0, 0),
    "header_style": "bold",
}


class FittingTable(Table):
    """A table that is never cut: where it is too wide, each row becomes a column of fields."""

    def __init__(self, heading: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> None:
        super().__init__(**(_LAYOUT | options))
        self._heading = heading
        self._names = list(rows[0]) if rows else []
        self._cells = [[_format_cell(value) for value in row.values()] for row in rows]
        for index, name in enumerate(self._names):
            values = [row[name] for row in rows]
            is_number = any(isinstance(value, int | float) for value in values)
            is_fixed = any(isinstance(value, int | float | datetime) for value in values) or not any(
                " " in cells[index].plain for cells in self._cells
            )
            self.add_column(
                Text(name), justify="right" if is_number else "left", no_wrap=is_fixed, overflow="fold"
            )
        for row in self._cells:
            self.add_row(*row)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._heading, style="table.title")  # a table's own title wraps at the table's width
        if self._min_width() <= options.max_width:
            yield from super().__rich_console__(console, options)
        else:
            yield from self._render_fields(options.max_width)

    def _min_width(self) -> int:
        """The width at which no number and no id is cut, and texts wrap at words."""
        widths = (
            width if column.no_wrap else min(width, MIN_TEXT_WIDTH)
            for column, width in zip(self.columns, self._column_widths(), strict=True)
        )
        return sum(width + 2 for width in widths) - 1

    def _column_widths(self) -> list[int]:
        return [
            max(cell_len(name), *(cells[index].cell_len for cells in self._cells))
            for index, name in enumerate(self._names)
        ]

    def _render_fields(self, width: int) -> Iterator[Text | Table]:
        """Render the rows as columns, as many beside each other as fit."""
        names = [Text(name, style="bold") for name in self._names]
        label = max(name.cell_len for name in names)
        needed = [min(max(cell.cell_len for cell in cells), width - label - 2) for cells in self._cells]
        start = 0
        while start < len(self._cells):
            end = start + 1
            while (
                end < len(self._cells) and label + sum(cell + 2 for cell in needed[start : end + 1]) <= width
            ):
                end += 1
            block = Table.grid(padding=(0, 2, 0, 0))
            for _ in range(end - start + 1):
                block.add_column(overflow="fold")
            for row in zip(names, *self._cells[start:end], strict=True):
                block.add_row(*row)
            yield block
            start = end
            if start < len(self._cells):
                yield Text()


def make_table(title: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> Table:
    """Build a table from rows with equal keys; numbers to the right, floats with three decimals.

    Texts are printed as they are, ``rich.text.Text`` in its style; ``options`` go to ``rich.table.Table``.
    """
    return FittingTable(title, rows, **options)


def make_grid(rows: Sequence[Sequence[str]]) -> Table:
    """Build a table of markup cells without lines and headings."""
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*row)
    return grid


@contextmanager
def progress_bar(
    title: str,
    total: float | None = None,
    *,
    in_bytes: bool = False,
    transient: bool = False,
    hidden: bool = False,
    console: Console = err,
) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error, or without a terminal a line every ten seconds.

    Yields a function that takes ``completed``, ``advance``, ``total`` and ``description``.
    """
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.DownloadColumn() if in_bytes else progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    has_bar = console.is_terminal and not hidden
    with (
        progress.Progress(*columns, console=console, transient=transient, disable=not has_bar) as bar,
        nullcontext() if has_bar or hidden else _progress_lines(bar, in_bytes),
    ):
        yield partial(bar.update, bar.add_task(title, total=total))


@contextmanager
def _progress_lines(bar: Progress, in_bytes: bool) -> Iterator[None]:
    """Print a line with the progress every ten seconds until the block ends."""
    start = time.monotonic()

    def print_lines() -> None:
        for task in bar.tasks:
            unit = " bytes" if in_bytes else ""
            total = "" if task.total is None else f" of {task.total:.0f}{unit}"
            has_count = task.total is not None or task.completed > 0
            done = f", {task.completed:.0f}{total}" if has_count else ""
            if parse_progress(task.description):  # the description has the count
                done = ""
            line = f"{task.description}{done}, {time.monotonic() - start:.0f} s"
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    with repeat_in_thread(print_lines, PROGRESS_LINE_SECONDS, "progress"):
        yield


@contextmanager
def repeat_in_thread(step: Callable[[], object], interval_seconds: float, name: str) -> Iterator[None]:
    """Call ``step`` at this interval in a thread until the block ends."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(interval_seconds):
            step()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def parse_progress(message: str) -> dict[str, Any]:
    """Extract "N of M" from a log message as ``completed`` and ``total``; empty if there is none."""
    match = _PROGRESS.search(message)
    return {} if match is None else {"completed": int(match[1]), "total": int(match[2])}


def _format_cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, float):
        return Text(f"{value:.3f}")
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M}")
    return Text("-" if value is None else str(value))


def _to_json_value(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime | date) else str(value)
