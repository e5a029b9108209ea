"""`iccm dedup`: the pool's deduplication (P2) on files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from iccm_assets.curation.dedup import FileRow, Id, dedup, read_rows
from iccm_assets.curation.fold import FoldResult
from iccm_assets.errors import InputError
from iccm_assets.settings import get_settings

SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("dedup")(dedup_command)


def dedup_command(
    new: Annotated[
        Path, typer.Option(help="JSON lines {id, text} or {id, embedding}, optional quality_score.")
    ],
    existing: Annotated[Path | None, typer.Option(help="The same: the pool, kept as it is.")] = None,
    threshold: Annotated[float, typer.Option(help="Cosine at or above which two rows are duplicates.")] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Remove the rows of NEW that repeat a row of EXISTING, or a better row of NEW.

    One greedy fold: the rows of NEW are taken best quality_score first, equal ones in file order, those
    without a score last (so, without scores, in file order); a row is kept when no row of EXISTING and no
    row kept before it is at least THRESHOLD similar. Similarity is the float64 dot product of the
    L2-normalised vectors, rounded to 6 decimals; duplicate_of is the most similar of those rows (EXISTING
    in file order, then kept rows in the order they were kept; the first of equals).

    Texts are embedded with ICCM_EMBEDDER and their vectors kept in the platform's database: a text seen
    before is never embedded again. Files of embeddings need neither database nor model.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"--threshold {threshold:g} is not above 0 and at most 1")
    pool = [] if existing is None else read_rows(existing)
    rows = read_rows(new)
    with _progress() as progress:
        embed = _Embed(progress)
        task = progress.add_task("comparing", total=len(rows))
        result = dedup(rows, pool, threshold, embed, lambda done: progress.advance(task, done))
    if as_json:
        typer.echo(json.dumps(as_data(result, embed.n_embedded)))
    else:
        _print(result, len(pool), {row.id: row for row in [*pool, *rows]}, embed.n_embedded)


def as_data(result: FoldResult[Id], embedded: int) -> dict[str, Any]:
    """The result as it is promised to other programs: decisions in the order they were made."""
    return {
        "kept": result.kept,
        "removed": [
            {"id": one.id, "duplicate_of": one.duplicate_of, "similarity": one.similarity}
            for one in result.removed
        ],
        "embedded": embedded,
    }


class _Embed:
    """Texts -> vectors through the platform's database; remembers how many were new."""

    def __init__(self, progress: Progress) -> None:
        self.n_embedded = 0
        self._progress = progress

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        from iccm_assets.curation.embeddings import embed_texts
        from iccm_assets.models.embedding import Embedder
        from iccm_assets.store.database import connect

        settings = get_settings()
        embedder = Embedder.load(settings)
        engine = connect(settings)
        task = self._progress.add_task("embedding", total=None)
        try:
            embedded = embed_texts(engine, texts, embedder, lambda done: self._progress.advance(task, done))
        finally:
            engine.dispose()
        self._progress.remove_task(task)
        self.n_embedded = embedded.n_embedded
        return embedded.vectors


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print(result: FoldResult[Id], pool: int, rows: dict[Id, FileRow], embedded: int) -> None:
    console = Console()
    total = len(result.kept) + len(result.removed)
    console.print(
        f"[bold]{len(result.kept)}[/] of {total} rows kept, {len(result.removed)} repeat another one "
        f"(compared with {pool} existing rows; {embedded} texts newly embedded)."
    )
    if not result.removed:
        return
    table = Table("removed", "repeats", "similarity", "text")
    for one in result.removed[:SHOWN]:
        row = rows.get(one.id)
        text = "" if row is None or row.text is None else " ".join(row.text.split())
        table.add_row(
            Text(str(one.id)), Text(str(one.duplicate_of)), f"{one.similarity:.6f}", Text(text[:60])
        )
    console.print(table)
    if len(result.removed) > SHOWN:
        console.print(f"… and {len(result.removed) - SHOWN} more; `--json` lists all.")
