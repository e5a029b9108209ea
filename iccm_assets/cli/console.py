"""What all commands share: where prose goes, where JSON goes, and how tables look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

out = Console()
# Progress and remarks never mix with what a script reads from standard output.
err = Console(stderr=True)


def echo_json(value: Any) -> None:
    """Print one JSON document; dates as ISO 8601."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of equal keys as a table; numbers to the right, shares to three decimals."""
    drawn = Table(title=title, title_justify="left", header_style="bold")
    for name, value in (rows[0] if rows else {"": ""}).items():
        drawn.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row.values()))
    return drawn


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    # Stored text may hold brackets, which rich would read as markup.
    return "-" if value is None else escape(str(value))


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime | date) else str(value)
