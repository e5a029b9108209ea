"""Only a version that loads and answers is deployed, whoever asks for it (V5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import IccmError, ModelError, OperationNotAllowedError
from iccm_assets.evaluation.evaluation_worker import evaluate
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout import deployment, opening
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.rollouts import World
from iccm_assets_tests.factories.tiny_models import tiny_llama, tiny_t5
from iccm_assets_tests.factories.unusual_models import fill_with_nan, t5_without_a_tokenizer


@pytest.mark.slow
def test_a_base_model_without_a_tokenizer_is_not_put_in_production(
    engine: sa.Engine, settings: Settings, tmp_path: Path
) -> None:
    t5_without_a_tokenizer(tmp_path / "own")
    store = ModelStore(settings.home)
    with pytest.raises(ModelError, match=r"own has no tokenizer.*Copy tokenizer\.json"):
        deployment.ensure_production(
            engine, store, settings.model_copy(update={"base_model": str(tmp_path / "own")})
        )
    assert store.list_digests() == []
    with engine.connect() as conn:
        assert versions.get_production_version(conn) is None
        assert conn.execute(sa.select(t.deployment_events)).all() == []


@pytest.fixture
def failing_probe(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Models cannot answer; returns the directories that were probed."""
    probed: list[Path] = []

    def fail(directory: Path, settings: Settings) -> None:
        probed.append(directory)
        raise ModelError(f"{directory} cannot answer")

    monkeypatch.setattr(deployment, "probe_model", fail)
    return probed


def test_a_version_that_was_never_evaluated_has_to_answer_even_if_it_is_forced(
    world: World, failing_probe: list[Path]
) -> None:
    unknown = world.version("c", verdict=None)
    with pytest.raises(OperationNotAllowedError, match="never evaluated"):
        opening.open_rollout(world.engine, world.settings, unknown, actor="ada")
    assert failing_probe == []
    with pytest.raises(ModelError, match="cannot answer"):
        opening.open_rollout(world.engine, world.settings, unknown, actor="ada", force_reason="outage")
    assert failing_probe == [world.root / "c"]
    assert world.statuses()[unknown] == "candidate" and world.rows("select 1 from iccm.rollouts") == []


def test_an_evaluated_version_has_answered_and_is_not_loaded_again(
    world: World, failing_probe: list[Path]
) -> None:
    world.open()
    assert failing_probe == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (t5_without_a_tokenizer, "no tokenizer"),
        (lambda directory: fill_with_nan(tiny_t5(directory)), "computes NaN or infinity"),
    ],
    ids=["cannot be loaded", "answers nothing"],
)
def test_a_candidate_beside_a_production_version_that_cannot_answer_has_a_way_forward(
    engine: sa.Engine, settings: Settings, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "dead")
    tiny_llama(tmp_path / "good")
    with engine.begin() as conn:
        dead = deployment.bootstrap(conn, digest="a" * 64, path=str(tmp_path / "dead"), base_model="dead")
        good = versions.register_version(
            conn, digest="b" * 64, path=str(tmp_path / "good"), parent=dead.version, status="candidate"
        )
    evaluation = settings.evaluation.model_copy(update={"max_new_tokens": 32})
    with pytest.raises(IccmError) as caught:
        evaluate(engine, good.version, settings.model_copy(update={"evaluation": evaluation}))
    assert f"{dead.version} is in production" in caught.value.detail and words in caught.value.detail
    assert f"iccm deploy {good.version} --force --skip-rollout" in caught.value.hint
