"""Exact cosine similarity, fast: a float32 matrix product proposes pairs, float64 decides (P2).

The one definition, used wherever two texts are compared:
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

DECIMALS = 6
_SCALE = 10.0**DECIMALS
_ROWS = 512
_COLUMNS = 8192


@dataclass(frozen=True)
class Nearest:
    """The most similar of the vectors compared with: its index, and the similarity (6 decimals)."""

    index: int
    similarity: float


def unit_rows(vectors: Matrix) -> Float64:
    """The rows divided by their length, float64, shape kept.

    Raises ``InputError`` when a row is NaN, infinite or zero: it has no direction to compare.
    """
    exact = np.ascontiguousarray(vectors, dtype=np.float64)
    if exact.size == 0:
        return exact
    largest = np.abs(exact).max(axis=1, keepdims=True)
    bad = ~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0)
    if bad.any():
        raise InputError(f"vector {int(np.argmax(bad)) + 1} has no direction (NaN, infinite or all zero)")
    # Lengths of very large or very small numbers would overflow: bring those near one first, by powers
    # of two, which loses nothing. Ordinary vectors are left exactly as they are.
    extreme = (largest < 1e-100) | (largest > 1e100)
    if extreme.any():
        exact = np.where(extreme, np.ldexp(exact, -np.frexp(largest)[1]), exact)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.ascontiguousarray(exact / lengths)


def similarity(a: Float64, b: Float64) -> float:
    """Of two unit vectors: their float64 dot product, rounded to 6 decimals."""
    return round(float(np.dot(a, b)), DECIMALS)


def similarities(rows: Float64, one: Float64) -> Float64:
    """``similarity`` of every row with one vector, to the last digit, at the price of one product.

    A matrix product sums in another order than ``np.dot``, which can matter only where the sum lies
    within 1e-12 of a rounding boundary; those pairs are computed one by one.
    """
    raw = rows @ one
    scaled = raw * _SCALE
    found: Float64 = np.rint(scaled) / _SCALE
    for index in np.flatnonzero(np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < 1e-6):
        found[index] = similarity(rows[index], one)
    return found


def margin(dimensions: int) -> float:
    """How far a float32 product of unit vectors may lie from the float64 one, generously."""
    return 1e-5 + 2.0 * dimensions * float(np.finfo(np.float32).eps)


def nearest(rows: Float64, others: Float64, at_least: float) -> list[Nearest | None]:
    """For each row the most similar of ``others`` at ``at_least`` or above (ties: the first), or None."""
    found: list[Nearest | None] = [None] * len(rows)
    if len(others) == 0:
        return found
    slack = margin(rows.shape[1])
    rows32, others32 = rows.astype(np.float32), others.astype(np.float32)
    for start in range(0, len(rows), _ROWS):
        best = np.full(min(_ROWS, len(rows) - start), -np.inf, dtype=np.float32)
        for left in range(0, len(others), _COLUMNS):
            best = np.maximum(
                best, (rows32[start : start + _ROWS] @ others32[left : left + _COLUMNS].T).max(axis=1)
            )
        for offset in np.flatnonzero(best >= at_least - slack):
            row = start + int(offset)
            close = np.flatnonzero(others32 @ rows32[row] >= best[offset] - 2 * slack)
            exact = similarities(others[close], rows[row])
            top = int(np.argmax(exact))
            if exact[top] >= at_least:
                found[row] = Nearest(int(close[top]), float(exact[top]))
    return found
