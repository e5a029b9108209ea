import threading

import numpy as np
import pytest
import sqlalchemy as sa

from iccm_assets.curation.embeddings import embed_texts
from iccm_assets_tests.factories.training_pools import HashEmbedder

TEXTS = ["a text", "", "a text", "é 🙂\n\x00", "\ud800", "b" * 100_000]


def test_a_text_is_embedded_once(engine):
    embedder = HashEmbedder()
    first = embed_texts(engine, TEXTS, embedder)
    again = embed_texts(engine, [*TEXTS[::-1], "new"], embedder)
    assert (first.new_count, again.new_count) == (5, 1)
    assert sorted(embedder.encoded) == sorted({*TEXTS, "new"})
    assert np.array_equal(again.vectors.matrix[:-1][::-1], first.vectors.matrix)


def test_stored_vectors_equal_the_computed_ones_bit_for_bit(engine):
    assert np.array_equal(
        embed_texts(engine, TEXTS, HashEmbedder()).vectors.matrix, HashEmbedder().encode(TEXTS)
    )


def test_no_texts_give_no_vectors(engine):
    embedded = embed_texts(engine, [], HashEmbedder())
    assert embedded.vectors.matrix.shape == (0, 384) and embedded.new_count == 0


def test_another_embedder_has_vectors_of_its_own(engine):
    first = embed_texts(engine, TEXTS, HashEmbedder())
    other = embed_texts(engine, TEXTS, HashEmbedder("hash-2"))
    assert other.new_count == 5 and not np.array_equal(first.vectors.matrix, other.vectors.matrix)


def test_texts_embedded_before_a_crash_keep_their_vectors(engine):
    class CrashingEmbedder(HashEmbedder):
        def encode(self, texts):
            if self.encoded:
                raise MemoryError
            return super().encode(texts)

    texts = [f"text {n}" for n in range(600)]
    with pytest.raises(MemoryError):
        embed_texts(engine, texts, CrashingEmbedder())
    assert 0 < embed_texts(engine, texts, HashEmbedder()).new_count < 600


def test_concurrent_embedders_agree_on_the_vectors(engine):
    texts, results = [f"text {n}" for n in range(400)], []

    def run(order):
        results.append(embed_texts(engine, texts[::order], HashEmbedder()).vectors.matrix[::order])

    threads = [threading.Thread(target=run, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(vectors, results[0]) for vectors in results)
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.embeddings")).scalar_one() == 400


LONG = "a start | a middle | an end"
WINDOWS = ["a start | a middle |", "a middle | an end"]


def test_a_long_text_has_the_vectors_of_its_windows_and_a_short_one_its_own(engine):
    embedded = embed_texts(engine, ["x", LONG, "y"], HashEmbedder())
    assert embedded.vectors.counts.tolist() == [1, 2, 1]
    assert np.array_equal(embedded.vectors.windows(1), HashEmbedder().encode(WINDOWS))
    assert np.array_equal(embedded.vectors.windows(2), HashEmbedder().encode(["y"]))
    again = HashEmbedder()
    assert np.array_equal(embed_texts(engine, [LONG], again).vectors.matrix, embedded.vectors.windows(1))
    assert again.encoded == []


def test_a_text_that_was_cut_before_windows_existed_is_embedded_again(engine):
    embed_texts(engine, [LONG, "x"], HashEmbedder())
    with engine.begin() as conn:
        conn.execute(
            sa.text("update iccm.embeddings set embedding = embedding + embedding, further_windows = null")
        )
    embedded = embed_texts(engine, [LONG, "x"], HashEmbedder())
    assert embedded.new_count == 2
    assert np.array_equal(embedded.vectors.windows(0), HashEmbedder().encode(WINDOWS))
