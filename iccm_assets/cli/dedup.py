"""`iccm dedup`: deduplicate files as the training pool is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iccm_assets.cli.console import AsJson, make_table, out, pluralize, progress_bar
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import UsageError

if TYPE_CHECKING:
    from iccm_assets.curation.file_dedup import DedupRow, Id
    from iccm_assets.curation.greedy_dedup import DedupResult
    from iccm_assets.curation.text_vectors import TextVectors

MAX_SHOWN_ROWS = 20


def dedup(
    new: Annotated[
        Path, typer.Option(help="JSON lines {id, text} or {id, embedding}, optional quality_score.")
    ],
    existing: Annotated[Path | None, typer.Option(help="The existing pool in the same format.")] = None,
    threshold: Annotated[float, typer.Option(help="Minimum cosine similarity of two duplicates.")] = 0.9,
    as_json: AsJson = False,
) -> None:
    """Remove the rows of NEW that duplicate a row of EXISTING, or a better row of NEW.

    Greedy: rows of NEW are processed by falling quality_score, equal scores in file order, rows without a
    score last (so, without scores, in file order); a row is kept unless a row of EXISTING or a row kept
    before it is at least THRESHOLD similar. Similarity is the float64 dot product of the L2-normalized
    vectors, rounded to 6 decimals; duplicate_of is the most similar of those rows (EXISTING in file order,
    then kept rows in the order they were kept; the first of equals). A text that is longer than the embedder
    reads is compared by overlapping windows: it duplicates another text only if every window of each has a
    match of at least THRESHOLD in the other. `differing` lists the removed texts whose numbers, negations or
    opposite words (less, greater) differ from those of the row they duplicate.

    Texts are embedded with ICCM_EMBEDDER and their vectors are stored in the platform's database: a known
    text is never embedded again. Files of embeddings need neither database nor model.
    """
    from iccm_assets.curation import file_dedup

    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold:g} is not above 0 and at most 1")
    pool = [] if existing is None else file_dedup.read_jsonl(existing)
    rows = file_dedup.read_jsonl(new)
    with progress_bar("comparing", len(rows), transient=True) as update:
        embed = _Embed(update, len(rows))
        result = file_dedup.dedup_files(rows, pool, threshold, embed, lambda count: update(advance=count))
    differing = file_dedup.find_differing_rows(result, rows, pool)
    if as_json:
        # The keys are promised to other programs; decisions in the order they were made.
        removed = [
            {"id": row.id, "duplicate_of": row.duplicate_of, "similarity": row.similarity}
            for row in result.removed
        ]
        answer = {"kept": result.kept, "removed": removed, "embedded": embed.n_embedded}
        typer.echo(json.dumps(answer | {"differing": [asdict(row) for row in differing]}))
    else:
        _print(result, len(pool), {row.id: row for row in rows}, embed.n_embedded, len(differing))


class _Embed:
    """Embed texts through the platform's database; counts the new ones."""

    def __init__(self, update: Callable[..., None], n_rows: int) -> None:
        self.n_embedded = 0
        self._update, self._n_rows = update, n_rows

    def __call__(self, texts: Sequence[str]) -> TextVectors:
        from iccm_assets.curation.embeddings import embed_texts
        from iccm_assets.models.embedding import Embedder

        settings, engine = open_platform()
        embedder = Embedder.load(settings)
        self._update(description="embedding", total=len(texts))
        try:
            embedded = embed_texts(engine, texts, embedder, lambda count: self._update(advance=count))
        finally:
            engine.dispose()
        self._update(description="comparing", completed=0, total=self._n_rows)
        self.n_embedded = embedded.new_count
        return embedded.vectors


def _print(
    result: DedupResult[Id], pool: int, rows: dict[Id, DedupRow], embedded: int, differing: int
) -> None:
    total = len(result.kept) + len(result.removed)
    out.print(
        f"[bold]{len(result.kept)}[/] of {total} rows kept, {len(result.removed)} removed as duplicates "
        f"(compared with {pluralize(pool, 'existing row')}; {pluralize(embedded, 'text')} newly embedded)."
    )
    if not result.removed:
        return
    if differing:
        out.print(f"{differing} of the removed rows have other numbers, negations or opposite words.")
    shown = [
        {
            "removed": str(row.id),
            "duplicate of": str(row.duplicate_of),
            "similarity": f"{row.similarity:.6f}",
            "text": " ".join((rows[row.id].text or "").split())[:60],
        }
        for row in result.removed[:MAX_SHOWN_ROWS]
    ]
    out.print(make_table("Removed rows", shown))
    if len(result.removed) > MAX_SHOWN_ROWS:
        out.print(f"… and {len(result.removed) - MAX_SHOWN_ROWS} more; `--json` lists all.")
