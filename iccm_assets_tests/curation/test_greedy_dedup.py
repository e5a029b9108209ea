import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iccm_assets.curation.duplicate_search import pair_similarities, unit_float32
from iccm_assets.curation.greedy_dedup import DedupResult, EmbeddedRows, RemovedDuplicate, greedy_dedup
from iccm_assets.curation.similarity import (
    find_nearest_row,
    float32_margin,
    normalize_rows,
    round_similarities,
    similarity,
)
from iccm_assets.curation.text_vectors import TextVectors, find_nearest, text_similarities
from iccm_assets.errors import InputError
from iccm_assets_tests.factories.training_pools import brute_force, smallest_match


def clustered(rng: np.random.Generator, n: int, dimensions: int = 384, spread: float = 0.35) -> np.ndarray:
    """Vectors around fewer centers, so that the similarities of neighbors scatter around 0.9."""
    centers = rng.normal(size=(max(1, n // 4), dimensions))
    noise = rng.normal(size=(n, dimensions)) * rng.uniform(0, 2 * spread, size=(n, 1))
    return centers[rng.integers(0, len(centers), n)] + noise


def numbered(prefix: str, vectors: np.ndarray) -> EmbeddedRows:
    return EmbeddedRows([f"{prefix}{index}" for index in range(len(vectors))], vectors)


@settings(max_examples=60)
@given(data=st.data())
def test_deduplication_equals_the_definition_for_similarities_at_the_threshold(data):
    """Small whole numbers in few dimensions give many equal vectors, equal similarities and exact ties."""
    dimensions = data.draw(st.integers(1, 4))
    vector = st.lists(st.integers(-2, 3), min_size=dimensions, max_size=dimensions).filter(any)
    new = np.array(data.draw(st.lists(vector, min_size=1, max_size=40)), dtype=np.float64)
    old = np.array(data.draw(st.lists(vector, max_size=20)), dtype=np.float64).reshape(-1, dimensions)
    threshold = data.draw(st.sampled_from([0.5, 0.7, 0.707107, 0.8, 0.9, 0.948683, 0.999999, 1.0]))
    rows, pool = numbered("n", new), numbered("e", old)
    assert greedy_dedup(rows, pool, threshold) == brute_force(rows, pool, threshold)


def test_a_similarity_of_exactly_the_threshold_is_a_duplicate():
    at = np.array([[1.0, 0.0], [0.9, np.sqrt(0.19)]])
    just_below = np.array([[1.0, 0.0], [0.8999994, np.sqrt(1 - 0.8999994**2)]])
    assert greedy_dedup(numbered("r", at), None, 0.9).removed == [RemovedDuplicate("r1", "r0", 0.9)]
    assert greedy_dedup(numbered("r", just_below), None, 0.9).removed == []


def test_a_chain_keeps_both_ends_because_only_kept_rows_count():
    angles = np.deg2rad([0, 20, 40])
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert greedy_dedup(numbered("r", chain), None, 0.9).kept == ["r0", "r2"]
    assert greedy_dedup(numbered("r", chain[[1, 0, 2]]), None, 0.9).kept == ["r0"]


def test_the_most_similar_kept_row_is_named_and_the_earliest_of_equals():
    pool = EmbeddedRows(["far", "near", "near again"], np.array([[0.95, 0.312], [1.0, 0.01], [1.0, 0.01]]))
    assert greedy_dedup(EmbeddedRows(["x"], np.array([[1.0, 0.0]])), pool, 0.9).removed == [
        RemovedDuplicate("x", "near", 0.99995)
    ]


def test_pool_rows_are_not_compared_with_each_other():
    pool = EmbeddedRows(["a", "b"], np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert greedy_dedup(EmbeddedRows(["x"], np.array([[0.0, 1.0]])), pool, 0.9) == DedupResult(["x"], [])


def test_empty_pool_empty_day_and_identical_rows_are_handled():
    same = np.tile(np.arange(1.0, 385.0), (1000, 1))
    no_rows = EmbeddedRows((), np.zeros((0, 384)))
    assert greedy_dedup(no_rows, numbered("e", same), 0.9) == DedupResult([], [])
    assert greedy_dedup(no_rows, no_rows, 0.9) == DedupResult([], [])
    result = greedy_dedup(numbered("r", same), no_rows, 0.9)
    assert result.kept == ["r0"] and len(result.removed) == 999
    assert set(result.removed[-1:]) == {RemovedDuplicate("r999", "r0", 1.0)}


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_a_direction_is_rejected(bad):
    with pytest.raises(InputError, match="vector 2 has no direction"):
        greedy_dedup(numbered("r", np.array([[1.0, 2.0], [bad, bad]])), None, 0.9)


def test_different_dimensions_and_impossible_thresholds_are_rejected():
    with pytest.raises(InputError, match="2 and of 3 dimensions"):
        greedy_dedup(EmbeddedRows(["a"], np.ones((1, 3))), EmbeddedRows(["b"], np.ones((1, 2))), 0.9)
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="threshold"):
            greedy_dedup(EmbeddedRows(["a"], np.ones((1, 3))), None, threshold)


def test_huge_and_tiny_vectors_keep_their_direction():
    assert similarity(*normalize_rows(np.array([[3e200, 4e200], [3e-200, 4e-200]]))) == 1.0


def test_ten_thousand_rows_take_seconds():
    vectors = clustered(np.random.default_rng(1), 10_000).astype(np.float32)
    started = time.process_time()
    result = greedy_dedup(EmbeddedRows(range(10_000), vectors), None, 0.9)
    assert time.process_time() - started < 30
    assert len(result.kept) + len(result.removed) == 10_000


def test_similarities_equal_the_pairwise_definition_even_on_rounding_boundaries():
    rng = np.random.default_rng(3)
    vector = np.array([1.0, 0.0])
    first = np.concatenate([rng.uniform(-1, 1, 2000), (rng.integers(0, 999_999, 2000) + 0.5) * 1e-6])
    rows = np.stack([first, np.sqrt(1 - first**2)], axis=1)
    others = TextVectors.of_single_windows(rows)
    assert text_similarities(vector[np.newaxis], others).tolist() == [similarity(row, vector) for row in rows]


def test_nearest_equals_the_definition():
    rng = np.random.default_rng(9)
    vectors = normalize_rows(clustered(rng, 700, spread=0.25))
    rows, others = vectors[:300], np.concatenate([vectors[300:], vectors[300:310]])
    texts, other_texts = TextVectors.of_single_windows(rows), TextVectors.of_single_windows(others)
    for row, match in zip(rows, find_nearest(texts, other_texts, 0.9), strict=True):
        every = [similarity(other, row) for other in others]
        if match is None:
            assert max(every) < 0.9
        else:
            assert (match.index, match.similarity) == (every.index(max(every)), max(every))


def with_windows(prefix: str, texts: list[np.ndarray], dimensions: int) -> EmbeddedRows:
    stacked = TextVectors.stack(texts, dimensions)
    return EmbeddedRows([f"{prefix}{index}" for index in range(len(texts))], stacked.matrix, stacked.counts)


@settings(max_examples=80)
@given(data=st.data())
def test_texts_of_several_windows_are_compared_by_the_definition(data):
    dimensions = data.draw(st.integers(1, 4))
    vector = st.lists(st.integers(-2, 3), min_size=dimensions, max_size=dimensions).filter(any)
    text = st.lists(vector, min_size=1, max_size=4).map(lambda rows: np.array(rows, dtype=np.float64))
    new, old = data.draw(st.lists(text, min_size=1, max_size=25)), data.draw(st.lists(text, max_size=10))
    threshold = data.draw(st.sampled_from([0.5, 0.707107, 0.9, 0.948683, 1.0]))
    rows, pool = with_windows("n", new, dimensions), with_windows("e", old, dimensions)
    assert greedy_dedup(rows, pool, threshold) == brute_force(rows, pool, threshold)
    others = TextVectors.stack(old, dimensions).normalized()
    for row, match in zip(
        new, find_nearest(TextVectors.stack(new, dimensions).normalized(), others, threshold), strict=True
    ):
        every = [smallest_match(normalize_rows(row), normalize_rows(other)) for other in old]
        if match is None:
            assert max(every, default=0) < threshold
        else:
            assert (match.index, match.similarity) == (every.index(max(every)), max(every))


AXES = np.eye(12)


@pytest.fixture
def compared(monkeypatch) -> list[int]:
    """With how many texts each row was compared in float64, for the rows that were compared with any."""
    counts = []

    def compare(texts, rows, others, columns):
        counts.extend(np.unique(rows, return_counts=True)[1].tolist())
        return pair_similarities(texts, rows, others, columns)

    for module in ("duplicate_search", "greedy_dedup"):
        monkeypatch.setattr(f"iccm_assets.curation.{module}.pair_similarities", compare)
    return counts


@pytest.mark.parametrize(
    ("n_pool", "further", "expected"), [(8, 1, [8]), (9, 1, []), (9, 2, []), (9, 0, [9])]
)
def test_a_long_text_that_only_begins_like_more_than_eight_others_is_not_compared_with_them(
    compared, n_pool, further, expected
):
    pool = with_windows("e", [AXES[[0, 1 + index]] for index in range(n_pool)], 12)
    row = np.concatenate([AXES[:1], AXES[10 : 10 + further]])
    assert greedy_dedup(with_windows("n", [row], 12), pool, 0.9).kept == ["n0"]
    assert compared == expected


def test_of_many_long_texts_only_those_are_compared_that_match_in_every_window_of_both(compared):
    longer = [AXES[[0, 1, 2 + index]] for index in range(9)]
    shorter = [AXES[[0, 1]] + 0.1 * AXES[2 + index] for index in range(9)]
    assert (
        greedy_dedup(with_windows("n", [AXES[[0, 1]]], 12), with_windows("e", longer, 12), 0.9).removed == []
    )
    row = with_windows("n", [AXES[[0, 1, 11]]], 12)
    assert greedy_dedup(row, with_windows("e", shorter, 12), 0.9).removed == []
    assert compared == []


def test_a_long_text_is_found_among_many_that_begin_alike(compared):
    pool = [AXES[[0, 1 + index]] for index in range(9)]
    rows = with_windows("n", [pool[4], AXES[[10, 11]]], 12)
    result = greedy_dedup(rows, with_windows("e", pool, 12), 1.0)
    assert result == DedupResult(["n1"], [RemovedDuplicate("n0", "e4", 1.0)])
    assert compared == [1]


def test_a_row_is_compared_only_with_rows_that_may_match(compared):
    assert greedy_dedup(numbered("n", AXES), None, 0.9).removed == []
    assert compared == []
    removed = greedy_dedup(numbered("n", AXES[[1, 0, 0]]), numbered("e", AXES[[2, 2, 2]]), 0.9).removed
    assert [row.duplicate_of for row in removed] == ["n1"]
    assert compared == [1]


def test_a_row_that_equals_an_earlier_one_is_not_compared_with_later_blocks(compared, monkeypatch):
    monkeypatch.setattr("iccm_assets.curation.duplicate_search._BLOCK_WINDOWS", 2)
    pool = numbered("e", AXES[[1, 0, 0, 0, 0, 0]])
    assert greedy_dedup(numbered("n", AXES[:1]), pool, 0.9).removed == [RemovedDuplicate("n0", "e1", 1.0)]
    assert compared == [1]


def test_among_single_windows_only_those_near_the_best_are_compared_in_float64(compared):
    similarities = np.array([0.95, 0.9201, 0.9499, 0.93])
    pool = np.stack([similarities, np.sqrt(1 - similarities**2)], axis=1)
    removed = greedy_dedup(numbered("n", np.array([[1.0, 0.0]])), numbered("e", pool), 0.9).removed
    assert removed == [RemovedDuplicate("n0", "e0", 0.95)]
    assert compared == [1]


@pytest.mark.parametrize("block", [2, 7, 4096])
def test_blocks_of_any_size_give_the_result_of_the_definition(monkeypatch, block):
    for name in (
        "duplicate_search.BLOCK_TEXTS",
        "duplicate_search._BLOCK_WINDOWS",
        "greedy_dedup.BLOCK_TEXTS",
    ):
        monkeypatch.setattr(f"iccm_assets.curation.{name}", block)
    monkeypatch.setattr("iccm_assets.curation.duplicate_search._BLOCK_PAIRS", block)
    rng = np.random.default_rng(8)
    windows = clustered(rng, 300, 24, spread=0.3)
    texts = np.split(windows, np.cumsum(rng.integers(1, 4, size=90)))[:90]
    texts += [texts[index] for index in rng.integers(0, 90, size=30)]
    rows, pool = with_windows("n", texts[:80], 24), with_windows("e", texts[80:], 24)
    expected = brute_force(rows, pool, 0.9)
    assert len(expected.removed) > 10
    assert greedy_dedup(rows, pool, 0.9) == expected
    single, other = numbered("n", windows[:150]), numbered("e", windows[150:])
    assert greedy_dedup(single, other, 0.9) == brute_force(single, other, 0.9)


def test_unit_vectors_in_float32_are_compared_without_a_copy():
    vectors = normalize_rows(AXES + 0.1).astype(np.float32)
    assert unit_float32(vectors) is vectors or np.shares_memory(unit_float32(vectors), vectors)
    longer = unit_float32(vectors * 2)
    assert not np.shares_memory(longer, vectors) and np.allclose(longer, vectors)
    assert np.allclose(unit_float32(vectors.astype(np.float64)), vectors)


def test_memory_is_bounded_by_the_vectors_and_one_copy_of_the_kept_rows():
    vectors = normalize_rows(np.random.default_rng(6).normal(size=(12_000, 384))).astype(np.float32)
    rows = EmbeddedRows(range(2000), vectors[:2000])
    pool = EmbeddedRows(range(2000, 12_000), vectors[2000:])
    tracemalloc.start()
    assert len(greedy_dedup(rows, pool, 0.9).kept) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * vectors.nbytes  # a copy of the kept rows, and some blocks


def test_what_float32_cannot_tell_from_the_threshold_is_compared_in_float64(compared):
    below = np.zeros((2, 384))
    below[0, 0], below[1, :2] = 1.0, (0.89995, np.sqrt(1 - 0.89995**2))
    assert greedy_dedup(numbered("n", below), None, 0.9).removed == []
    assert compared == [1]


def test_the_margin_of_float32_is_twice_the_rounding_of_each_term():
    rounding = float(np.finfo(np.float32).eps)
    assert float32_margin(384) - 1e-5 == pytest.approx(2 * 384 * rounding)
    assert float32_margin(0) == 1e-5


def test_progress_counts_the_rows_of_each_block():
    done = []
    greedy_dedup(numbered("n", clustered(np.random.default_rng(4), 600, 8)), None, 0.9, done.append)
    assert done == [512, 88]


def test_rows_of_which_there_are_none_have_no_dimensions_to_compare():
    nothing, rows = EmbeddedRows((), np.zeros((0, 0))), numbered("r", AXES[:2])
    assert greedy_dedup(nothing, rows, 0.9) == DedupResult([], [])
    assert greedy_dedup(rows, nothing, 0.9) == DedupResult(["r0", "r1"], [])


@pytest.mark.parametrize(
    ("n_ids", "shape", "counts"),
    [(1, (2, 3), None), (2, (2,), None), (2, (2, 3, 1), None), (2, (3, 2), [1, 1]), (1, (2, 2), [1, 1])],
)
def test_ids_and_vectors_that_do_not_fit_are_rejected(n_ids, shape, counts):
    with pytest.raises(InputError, match=f"{n_ids} ids with vectors of shape"):
        EmbeddedRows(list(range(n_ids)), np.ones(shape), None if counts is None else np.array(counts))


def test_vectors_without_numbers_stay_as_they_are_and_a_single_number_is_a_direction():
    assert normalize_rows(np.zeros((0, 0))).shape == (0, 0)
    assert normalize_rows(np.array([[-2.0]])).tolist() == [[-1.0]]


def test_only_similarities_at_a_boundary_of_rounding_are_computed_singly():
    singly = []
    products = np.array([0.1234561, 0.1234565, -0.1234565, 0.1234569, 0.25])
    rounded = round_similarities(products, lambda index: singly.append(index) or 0.5)
    assert singly == [1, 2]
    assert rounded.tolist() == [0.123456, 0.5, 0.5, 0.123457, 0.25]


def test_among_no_rows_none_is_the_nearest():
    assert find_nearest_row(np.array([], dtype=np.intp), np.zeros(0), 0.9) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deduplication_equals_the_definition_on_clustered_vectors(dtype):
    rng = np.random.default_rng(5)
    vectors = clustered(rng, 500).astype(dtype)
    rows, pool = numbered("n", vectors[:400]), numbered("e", vectors[400:])
    expected = brute_force(rows, pool, 0.9)
    assert 30 < len(expected.removed) < 370
    assert greedy_dedup(rows, pool, 0.9) == expected


@pytest.mark.slow
def test_many_long_texts_with_the_same_beginning_take_seconds():
    rng = np.random.default_rng(2)
    beginning = rng.normal(size=(3, 384))
    texts = [np.concatenate([beginning, rng.normal(size=(5, 384))]).astype(np.float32) for _ in range(1500)]
    texts += [texts[index] + rng.normal(scale=0.01, size=(8, 384)).astype(np.float32) for index in range(50)]
    started = time.process_time()
    result = greedy_dedup(with_windows("n", texts, 384), None, 0.9)
    assert time.process_time() - started < 60
    assert [(row.id, row.duplicate_of) for row in result.removed] == [
        (f"n{1500 + index}", f"n{index}") for index in range(50)
    ]
