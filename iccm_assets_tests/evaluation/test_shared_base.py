"""An evaluation loads the base of candidate and production once (L11, E1)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from iccm_assets.evaluation.evaluation_worker import _load_version
from iccm_assets.models import generation
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.adapters import printable_llama, publish_adapter, publish_base
from iccm_assets_tests.factories.architectures import SOURCES


def test_candidate_and_production_share_their_base_and_answer_each_in_its_own_way(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    base = publish_base(store, printable_llama)
    stored = [base, *(publish_adapter(store, base, seed) for seed in (1, 2))]
    settings = load_settings(home=tmp_path, evaluation={"max_new_tokens": 8})
    with patch.object(generation, "_load_weights", wraps=generation._load_weights) as reading:
        evaluated = [_load_version(SimpleNamespace(path=str(model.path)), settings) for model in stored]  # type: ignore[arg-type]
    assert reading.call_count == 1
    texts = [[answer.text for answer in version.generate(SOURCES[:2], 2)] for version in evaluated]
    assert len(set(map(tuple, texts))) == 3
