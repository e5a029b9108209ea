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
from iccm_assets.errors import InputError

Id = str | int
Embed = Callable[[Sequence[str]], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class DedupRow:
    """A line: an id with a text or an embedding (if both are present, the embedding counts)."""

    id: Id
    text: str | None
    embedding: npt.NDArray[np.float64] | None
    quality_score: float | None
    location: str


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
    vectors = _vectors([*existing, *ordered], embed)
    return greedy_dedup(
        EmbeddedRows([row.id for row in ordered], vectors[len(existing) :]),
        EmbeddedRows([row.id for row in existing], vectors[: len(existing)]),
        threshold,
        progress,
    )


def _vectors(rows: Sequence[DedupRow], embed: Embed) -> npt.NDArray[np.float64]:
    """Return one float64 row per file row, shape (n, d)."""
    texts = [row.text for row in rows if row.embedding is None and row.text is not None]
    embedded = iter(embed(texts) if texts else ())
    vectors = [row.embedding if row.embedding is not None else next(embedded) for row in rows]
    if not vectors:
        return np.zeros((0, 1))
    for row, vector in zip(rows, vectors, strict=True):
        if len(vector) != len(vectors[0]):
            raise InputError(
                f"{row.location}: {len(vector)} dimensions, but {rows[0].location} has {len(vectors[0])}"
            )
    return np.stack(vectors).astype(np.float64)


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
    numbers = [_to_float(number) for number in value]
    if None in numbers:
        raise InputError(f"{location}: the embedding contains something that is not a finite number")
    vector = np.array(numbers, dtype=np.float64)
    if not vector.any():
        raise InputError(f"{location}: an embedding of zeros has no direction to compare")
    return vector


def _to_float(value: object) -> float | None:
    """Return a finite JSON number as a float, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
