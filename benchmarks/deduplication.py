"""Deduplication against semhash, the bare float32 product of the same vectors, and its definition."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Comparison, Options, Target, expect
from benchmarks.peers import Worker
from iccm_assets.curation.greedy_dedup import DedupResult, EmbeddedRows, greedy_dedup

DIMENSIONS, THRESHOLD, BLOCK = 384, 0.9, 512


def compare(options: Options) -> Iterator[Comparison]:
    """Yield a comparison for each number of rows, then for new rows against a pool."""
    rng = np.random.default_rng(7)
    for n, min_ratio, rounds in ((2_000, 5, 7), (20_000, 3, 3), (50_000, 3, 1))[: 2 if options.quick else 3]:
        vectors = draw_vectors(rng, n)
        file = options.output / f"vectors-{n}.npy"
        np.save(file, vectors)
        worker = Worker.start("semhash", str(file))
        try:
            yield Comparison(
                f"{n:,} rows with each other",
                {
                    "iccm": partial(greedy_dedup, number_rows(vectors), None, THRESHOLD),
                    "semhash": worker,
                    "bare product": partial(multiply_earlier, vectors),
                },
                partial(check_rows, vectors),
                [Target("semhash", min_ratio), Target("bare product", 0.6)],
                1 if options.quick and n > 2_000 else rounds,
            )
        finally:
            file.unlink()
            if worker is not None:
                worker.close()
    for n in (100_000,) if options.quick else (100_000, 300_000):
        pool = draw_vectors(rng, n)
        new = draw_vectors(rng, 200)
        new[::5] = disturb(rng, pool[:: n // 40][:40])
        yield Comparison(
            f"200 new rows with {n:,} in the pool",
            {
                "iccm": partial(greedy_dedup, number_rows(new), number_rows(pool), THRESHOLD),
                "bare product": partial(multiply_blocks, new, pool),
            },
            partial(check_new_rows, new, pool),
            [Target("bare product", 0.6)],
        )


def draw_vectors(rng: np.random.Generator, n: int) -> Any:
    """Unit vectors in float32, a fifth of them disturbed copies of others, some close to the threshold."""
    vectors = rng.normal(size=(n, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rng.choice(n, n // 5, replace=False)
    vectors[copies] = disturb(rng, vectors[rng.integers(0, n, len(copies))])
    return vectors


def disturb(rng: np.random.Generator, vectors: Any) -> Any:
    """Return vectors at cosines of about 0.8 to 1."""
    noise = rng.normal(size=vectors.shape) * rng.uniform(0, 0.75, size=(len(vectors), 1)) / DIMENSIONS**0.5
    disturbed = vectors + noise
    return (disturbed / np.linalg.norm(disturbed, axis=1, keepdims=True)).astype(np.float32)


def number_rows(vectors: Any) -> EmbeddedRows[int]:
    return EmbeddedRows(range(len(vectors)), vectors)


def multiply_earlier(vectors: Any) -> None:
    """Multiply each block of rows with all rows up to its end."""
    for start in range(0, len(vectors), BLOCK):
        multiply_blocks(vectors[start : start + BLOCK], vectors[: start + BLOCK])


def multiply_blocks(rows: Any, others: Any) -> None:
    """Multiply in blocks that fit into the cache."""
    product = np.empty((len(rows), 8 * BLOCK), dtype=np.float32)
    for start in range(0, len(others), 8 * BLOCK):
        block = others[start : start + 8 * BLOCK]
        np.matmul(rows, block.T, out=product[:, : len(block)])


def decide_rows(vectors: Any) -> dict[int, int]:
    """Return the removed rows with the rows they duplicate, by the definition, in float64."""
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    is_kept = np.ones(len(units), dtype=bool)
    removed = {}
    for start in range(0, len(units), BLOCK):
        products = units[start : start + BLOCK] @ units[: start + BLOCK].T
        for row, similarities in enumerate(products, start):
            before = np.round(np.where(is_kept[:row], similarities[:row], -1), 6)
            best = int(before.argmax()) if row else 0
            if row and before[best] >= THRESHOLD:
                removed[row], is_kept[row] = best, False
    return removed


def check_rows(vectors: Any, results: dict[str, Any]) -> str:
    removed = decide_rows(vectors)
    expect_removed(results["iccm"], removed)
    if "semhash" not in results:
        return ""
    others = len(removed.keys() ^ (set(range(len(vectors))) - set(results["semhash"])))
    expect(others <= len(vectors) / 1000, f"semhash decides {others} rows otherwise")
    return f"semhash decides {others} rows otherwise than the definition"


def check_new_rows(new: Any, pool: Any, results: dict[str, Any]) -> None:
    similarities = np.round(new.astype(np.float64) @ pool.T.astype(np.float64), 6)
    best = similarities.argmax(axis=1)
    matches = {row: int(best[row]) for row in range(len(new)) if similarities[row, best[row]] >= THRESHOLD}
    duplicates = {item.id: item.duplicate_of for item in results["iccm"].removed}
    expect(matches.items() <= duplicates.items(), "a duplicate of a row in the pool is missing")
    expect(len(matches) > 10, "too few duplicates to tell")


def expect_removed(result: DedupResult[int], removed: dict[int, int]) -> None:
    decisions = {item.id: item.duplicate_of for item in result.removed}
    wrong = len(decisions.items() ^ removed.items())
    expect(not wrong, f"{wrong} decisions differ from the definition")
    expect(len(removed) > len(result.kept) / 20, "too few duplicates to tell")
