"""P2 on files: which rows of one JSON-lines file repeat a row of another, or one before them."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.fold import FoldResult, Rows, fold
from iccm_assets.errors import InputError

Id = str | int
Embed = Callable[[Sequence[str]], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class FileRow:
    """One line: an id with a text or an embedding (where both are given, the embedding counts)."""

    id: Id
    text: str | None
    embedding: npt.NDArray[np.float64] | None
    quality_score: float | None
    where: str


def read_rows(path: Path) -> list[FileRow]:
    """The rows of a JSON-lines file (UTF-8, optionally gzipped), in file order; blank lines are skipped.

    Raises ``InputError`` naming the file and the line.
    """
    rows: list[FileRow] = []
    seen: dict[Id, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            row = _row(line, f"{path}, line {number}")
            if row.id in seen:
                raise InputError(f"{row.where}: the id {row.id!r} was already used in {seen[row.id]}")
            seen[row.id] = row.where
            rows.append(row)
    return rows


def in_fold_order(rows: Sequence[FileRow]) -> list[FileRow]:
    """Best ``quality_score`` first; equal ones, and then those without a score, in file order."""
    return sorted(rows, key=lambda row: math.inf if row.quality_score is None else -row.quality_score)


def dedup(
    new: Sequence[FileRow],
    existing: Sequence[FileRow],
    threshold: float,
    embed: Embed,
    progress: Callable[[int], None] | None = None,
) -> FoldResult[Id]:
    """The greedy fold of ``new``, in the order of ``in_fold_order``, onto ``existing`` (P2).

    Existing rows stay as they are and are not compared with each other. ``embed`` is called once, with
    all texts, and not at all when every row brings an embedding.
    """
    ordered = in_fold_order(new)
    vectors = _vectors([*existing, *ordered], embed)
    first, rest = vectors[: len(existing)], vectors[len(existing) :]
    return fold(
        Rows([row.id for row in ordered], rest),
        Rows([row.id for row in existing], first),
        threshold,
        progress,
    )


def texts_of(rows: Sequence[FileRow]) -> list[str]:
    """The texts that have to be embedded."""
    return [row.text for row in rows if row.embedding is None and row.text is not None]


def _vectors(rows: Sequence[FileRow], embed: Embed) -> npt.NDArray[np.float64]:
    """One float64 row each, shape (n, d)."""
    texts = texts_of(rows)
    embedded = iter(embed(texts) if texts else ())
    vectors = [row.embedding if row.embedding is not None else next(embedded) for row in rows]
    if not vectors:
        return np.zeros((0, 1))
    for row, vector in zip(rows, vectors, strict=True):
        if len(vector) != len(vectors[0]):
            raise InputError(
                f"{row.where}: {len(vector)} dimensions, where {rows[0].where} has {len(vectors[0])}"
            )
    return np.stack(vectors).astype(np.float64)


def _lines(path: Path) -> Iterator[str]:
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}, line {number}: not UTF-8") from None


def _row(line: str, where: str) -> FileRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: not an object with an id and a text or an embedding")
    id_, text, embedding = row.get("id"), row.get("text"), row.get("embedding")
    if not isinstance(id_, (str, int)) or isinstance(id_, bool):
        raise InputError(
            f"{where}: {'no id' if id_ is None else 'the id is neither text nor a whole number'}"
        )
    if embedding is None and not isinstance(text, str):
        raise InputError(f"{where}: neither a text nor an embedding")
    vector = None if embedding is None else _embedding(embedding, where)
    return FileRow(
        id_, text if vector is None else None, vector, _score(row.get("quality_score"), where), where
    )


def _embedding(value: object, where: str) -> npt.NDArray[np.float64]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: the embedding is not a list of numbers")
    numbers = [_number(one) for one in value]
    if any(one is None for one in numbers):
        raise InputError(f"{where}: the embedding holds something that is not a finite number")
    vector = np.array(numbers, dtype=np.float64)
    if not vector.any():
        raise InputError(f"{where}: an embedding of zeros has no direction to compare")
    return vector


def _score(value: object, where: str) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None:
        raise InputError(f"{where}: the quality_score is not a finite number")
    return number


def _number(value: object) -> float | None:
    """A finite JSON number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
