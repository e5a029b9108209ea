"""Embedding texts against sentence-transformers with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.harness import Comparison, Options, Target, expect
from iccm_assets.curation.json_lines import read_json_lines
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import PACKAGED_CANARY_SET, PACKAGED_REHEARSAL, load_settings


def compare(options: Options) -> Iterator[Comparison]:
    """Yield a comparison for each number of texts in a call."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    settings = load_settings()
    embedder = Embedder(Embedder.load(settings).path, threads=1)
    peer = SentenceTransformer(str(embedder.path), device="cpu", local_files_only=True)
    rows = chain(*(read_json_lines(path) for path in (PACKAGED_CANARY_SET, PACKAGED_REHEARSAL)))
    texts = [row["requirements"] for _, row in rows]
    for n, rounds in ((20, 7), (128, 3), (2_000, 3))[: 2 if options.quick else 3]:
        yield Comparison(
            f"{n:,} texts in a call",
            {
                "iccm": partial(embedder.encode, texts[:n]),
                "sentence-transformers": partial(peer.encode, texts[:n], show_progress_bar=False),
            },
            check_vectors,
            [Target("sentence-transformers", 1.5)],
            rounds,
        )


def check_vectors(results: dict[str, Any]) -> str:
    cosines = (results["iccm"] * results["sentence-transformers"]).sum(axis=1)
    expect(bool((np.abs(1 - cosines) < 1e-5).all()), f"the lowest cosine of two vectors is {cosines.min()}")
    return "same vectors within 0.00001"
