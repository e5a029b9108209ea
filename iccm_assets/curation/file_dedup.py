"""Deduplication of JSON-lines files: a row may duplicate an earlier row or a row of another file (P2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.greedy_dedup import DedupResult, EmbeddedRows, greedy_dedup
from iccm_assets.curation.json_lines import read_json_lines
from iccm_assets.curation.opposites import find_text_differences
from iccm_assets.curation.similarity import Matrix
from iccm_assets.curation.text_vectors import TextVectors
from iccm_assets.errors import InputError

Id = str | int
Embed = Callable[[Sequence[str]], TextVectors]


@dataclass(frozen=True)
class DedupRow:
    """A line: an id with a text or an embedding (if both are present, the embedding counts).

    A text that is longer than the embedder reads has several windows; an embedding is one window.
    """

    id: Id
    text: str | None
    embedding: npt.NDArray[np.float64] | None
    quality_score: float | None
    location: str


@dataclass(frozen=True)
class DifferingRow:
    """A removed row whose text differs in kind from the text of the row it duplicates."""

    id: Id
    duplicate_of: Id
    differences: tuple[str, ...]


def read_jsonl(path: Path) -> list[DedupRow]:
    """Read the rows of a JSON-lines file (UTF-8, optionally gzipped), in file order.

    Raises ``InputError`` that names the file and the line.
    """
    rows: dict[Id, DedupRow] = {}
    for location, values in read_json_lines(path):
        row = _parse_row(values, location)
        if row.id in rows:
            raise InputError(f"{location}: the id {row.id!r} was already used in {rows[row.id].location}")
        rows[row.id] = row
    return list(rows.values())


def sort_for_dedup(rows: Sequence[DedupRow]) -> list[DedupRow]:
    """Sort by descending ``quality_score``; equal scores, and then rows without one, in file order."""
    return sorted(rows, key=lambda row: math.inf if row.quality_score is None else -row.quality_score)


def dedup_files(
    new: Sequence[DedupRow],
    existing: Sequence[DedupRow],
    threshold: float,
    embed: Embed,
    progress: Callable[[int], None] | None = None,
) -> DedupResult[Id]:
    """Deduplicate ``new``, in the order of ``sort_for_dedup``, against ``existing`` and itself (P2).

    Existing rows are retained and not compared with each other. ``embed`` is called at most once, with all
    texts, and not at all when every row has an embedding.
    """
    ordered = sort_for_dedup(new)
    windows = _load_windows([*existing, *ordered], embed)
    return greedy_dedup(
        _embedded_rows(ordered, windows[len(existing) :]),
        _embedded_rows(existing, windows[: len(existing)]),
        threshold,
        progress,
    )


def find_differing_rows(
    result: DedupResult[Id], new: Sequence[DedupRow], existing: Sequence[DedupRow]
) -> list[DifferingRow]:
    """Return the removed rows whose numbers, negations or opposite words differ; rows without text do not."""
    texts = {row.id: row.text for row in new}
    originals = texts | {row.id: row.text for row in existing}
    differing = []
    for row in result.removed:
        text, original = texts[row.id], originals[row.duplicate_of]
        if text is None or original is None:
            continue
        if differences := find_text_differences(text, original):
            differing.append(DifferingRow(row.id, row.duplicate_of, differences))
    return differing


def _embedded_rows(rows: Sequence[DedupRow], windows: Sequence[Matrix]) -> EmbeddedRows[Id]:
    stacked = TextVectors.stack(windows, windows[0].shape[1] if windows else 1)
    return EmbeddedRows([row.id for row in rows], stacked.matrix, stacked.counts)


def _load_windows(rows: Sequence[DedupRow], embed: Embed) -> list[Matrix]:
    """Return the windows of each file row in float64, shape (w, d)."""
    texts = [row.text for row in rows if row.embedding is None and row.text is not None]
    embedded = embed(texts) if texts else None
    windows: list[Matrix] = []
    position = 0
    for row in rows:
        if row.embedding is not None:
            windows.append(row.embedding[np.newaxis])
        elif embedded is not None:
            windows.append(embedded.windows(position).astype(np.float64))
            position += 1
        if windows[-1].shape[1] != windows[0].shape[1]:
            raise InputError(
                f"{row.location}: {windows[-1].shape[1]} dimensions, but {rows[0].location} has "
                f"{windows[0].shape[1]}"
            )
    return windows


def _parse_row(row: dict[str, Any], location: str) -> DedupRow:
    id_, text, embedding = row.get("id"), row.get("text"), row.get("embedding")
    if not isinstance(id_, (str, int)) or isinstance(id_, bool):
        problem = "no id" if id_ is None else "the id is neither text nor a whole number"
        raise InputError(f"{location}: {problem}")
    if embedding is None and not isinstance(text, str):
        raise InputError(f"{location}: neither a text nor an embedding")
    score = row.get("quality_score")
    if score is not None and (score := _to_float(score)) is None:
        raise InputError(f"{location}: the quality_score is not a finite number")
    vector = None if embedding is None else _parse_embedding(embedding, location)
    return DedupRow(id_, text if vector is None else None, vector, score, location)


def _parse_embedding(value: object, location: str) -> npt.NDArray[np.float64]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{location}: the embedding is not a list of numbers")
    vector = _to_vector(value)
    if vector is None:
        raise InputError(f"{location}: the embedding contains something that is not a finite number")
    if not vector.any():
        raise InputError(f"{location}: an embedding of zeros has no direction to compare")
    return vector


def _to_vector(values: list[object]) -> npt.NDArray[np.float64] | None:
    """Return finite JSON numbers as a vector, else None."""
    if not set(map(type, values)) <= {int, float}:
        return None
    try:
        vector = np.array(values, dtype=np.float64)
    except OverflowError:
        return None
    return vector if np.isfinite(vector).all() else None


def _to_float(value: object) -> float | None:
    """Return a finite JSON number as a float, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
