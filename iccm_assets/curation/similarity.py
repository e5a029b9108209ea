"""Exact cosine similarity, fast: a float32 matrix product proposes pairs, float64 decides (P2).

The only definition, used wherever two texts are compared:
``similarity(a, b) = round(dot(a / |a|, b / |b|), 6)``, all in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iccm_assets.errors import InputError

Matrix = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

SIMILARITY_DECIMALS = 6
_SCALE = 10.0**SIMILARITY_DECIMALS
_BLOCK_ROWS = 512
_BLOCK_COLUMNS = 8192


@dataclass(frozen=True)
class Nearest:
    """Index of the most similar vector, and its similarity (6 decimals)."""

    index: int
    similarity: float


def normalize_rows(vectors: Matrix) -> Float64:
    """Divide the rows by their length; float64, same shape.

    Raises ``InputError`` when a row is NaN, infinite or zero: it has no direction to compare.
    """
    exact = np.ascontiguousarray(vectors, dtype=np.float64)
    if exact.size == 0:
        return exact
    largest = np.abs(exact).max(axis=1, keepdims=True)
    bad = ~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0)
    if bad.any():
        raise InputError(f"vector {int(np.argmax(bad)) + 1} has no direction (NaN, infinite or all zero)")
    # The length of very large or very small numbers would overflow: scale those by powers of two, which is
    # exact. Ordinary vectors are not changed.
    extreme = (largest < 1e-100) | (largest > 1e100)
    if extreme.any():
        exact = np.where(extreme, np.ldexp(exact, -np.frexp(largest)[1]), exact)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.ascontiguousarray(exact / lengths)


def similarity(a: Float64, b: Float64) -> float:
    """Return the float64 dot product of two unit vectors, rounded to 6 decimals."""
    return round(float(np.dot(a, b)), SIMILARITY_DECIMALS)


def similarities(rows: Float64, vector: Float64) -> Float64:
    """Return ``similarity`` of every row with a vector, shape (n,), to the last digit, by one product.

    A matrix product sums in another order than ``np.dot``. That can matter only within 1e-12 of a rounding
    boundary; those pairs are computed singly.
    """
    scaled = rows @ vector * _SCALE
    rounded: Float64 = np.rint(scaled) / _SCALE
    for index in np.flatnonzero(np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < 1e-6):
        rounded[index] = similarity(rows[index], vector)
    return rounded


def float32_margin(dimensions: int) -> float:
    """Return an upper bound of the difference between a float32 and a float64 product of unit vectors."""
    return 1e-5 + 2.0 * dimensions * float(np.finfo(np.float32).eps)


def find_nearest(rows: Float64, others: Float64, threshold: float) -> list[Nearest | None]:
    """Return for each row its most similar vector of ``others``, or None below ``threshold``.

    Of equally similar vectors the first counts.
    """
    matches: list[Nearest | None] = [None] * len(rows)
    if len(others) == 0:
        return matches
    slack = float32_margin(rows.shape[1])
    rows32, others32 = rows.astype(np.float32), others.astype(np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        best = np.full(min(_BLOCK_ROWS, len(rows) - start), -np.inf, dtype=np.float32)
        # By blocks of columns: all similarities at once would not fit in memory.
        for column in range(0, len(others), _BLOCK_COLUMNS):
            block = rows32[start : start + _BLOCK_ROWS] @ others32[column : column + _BLOCK_COLUMNS].T
            best = np.maximum(best, block.max(axis=1))
        for offset in np.flatnonzero(best >= threshold - slack):
            row = start + int(offset)
            close = np.flatnonzero(others32 @ rows32[row] >= best[offset] - 2 * slack)
            exact = similarities(others[close], rows[row])
            top = int(np.argmax(exact))
            if exact[top] >= threshold:
                matches[row] = Nearest(int(close[top]), float(exact[top]))
    return matches
