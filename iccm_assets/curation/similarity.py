"""Exact cosine similarity of vectors, fast: a float32 matrix product proposes pairs, float64 decides (P2).

``similarity(a, b) = round(dot(a / |a|, b / |b|), 6)``, all in float64; texts are compared by
``curation.text_vectors``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iccm_assets.errors import InputError

Matrix = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

SIMILARITY_DECIMALS = 6
_SCALE = 10.0**SIMILARITY_DECIMALS


@dataclass(frozen=True)
class Nearest:
    """Index of the most similar vector or text, and the similarity (6 decimals)."""

    index: int
    similarity: float


def normalize_rows(vectors: Matrix, *, first_row: int = 0) -> Float64:
    """Divide the rows by their length; float64, same shape.

    Raises ``InputError`` when a row is NaN, infinite or zero: it has no direction to compare. Its message
    numbers the rows from ``first_row``.
    """
    exact = np.ascontiguousarray(vectors, dtype=np.float64)
    if exact.size == 0:
        return exact
    largest = np.abs(exact).max(axis=1, keepdims=True)
    bad = ~np.isfinite(largest) | (largest == 0)
    if bad.any():
        raise InputError(
            f"vector {first_row + int(np.argmax(bad)) + 1} has no direction (NaN, infinite or all zero)"
        )
    # The length of very large or very small numbers would overflow: scale by powers of two, which is exact.
    exact = np.ldexp(exact, -np.frexp(largest)[1])
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.ascontiguousarray(exact / lengths)


def similarity(a: Float64, b: Float64) -> float:
    """Return the float64 dot product of two unit vectors, rounded to 6 decimals."""
    return round(float(np.dot(a, b)), SIMILARITY_DECIMALS)


def round_similarities(products: Float64, exact: Callable[[int], float]) -> Float64:
    """Round similarities that were computed by matrix products, to the last digit as ``similarity`` does.

    A matrix product sums in another order than ``np.dot``. That can matter only within 1e-12 of a rounding
    boundary; there ``exact`` computes the similarity of that index singly.
    """
    scaled = products * _SCALE
    rounded: Float64 = np.rint(scaled) / _SCALE
    for index in np.flatnonzero(np.abs(scaled - np.floor(scaled) - 0.5) < 1e-6):
        rounded[index] = exact(int(index))
    return rounded


def float32_margin(dimensions: int) -> float:
    """Return an upper bound of the difference between a float32 and a float64 product of unit vectors."""
    return 1e-5 + 2.0 * dimensions * float(np.finfo(np.float32).eps)


def find_nearest_row(
    indices: npt.NDArray[np.intp], similarities: Float64, threshold: float
) -> Nearest | None:
    """Return the index of the highest similarity, the first of equals, or None below ``threshold``."""
    if not len(indices):
        return None
    best = int(np.argmax(similarities))
    if similarities[best] < threshold:
        return None
    return Nearest(int(indices[best]), float(similarities[best]))
