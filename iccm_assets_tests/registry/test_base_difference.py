"""A base model other than the one production descends from is reported, with the way to deploy it (V5)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.registry import base_difference, versions
from iccm_assets.registry.base_difference import BaseDifference, find_base_difference
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout import deployment
from iccm_assets.settings import PromptSettings, Settings
from iccm_assets_tests.factories.tiny_models import tiny_llama, tiny_t5


class Registry:
    """Production descends from an imported model."""

    def __init__(self, engine: sa.Engine, settings: Settings, base: Path) -> None:
        self.engine, self.settings, self.store = engine, settings, ModelStore(settings.home)
        stored = self.store.import_model(str(base))
        with engine.begin() as conn:
            deployment.bootstrap(
                conn, digest=stored.digest, path=str(stored.path), base_model=stored.manifest.base
            )

    def replace_production(self, model: Path, **metrics: str) -> None:
        stored = self.store.import_model(str(model))
        with self.engine.begin() as conn:
            serving = versions.get_production_version(conn)
            assert serving is not None
            made = versions.register_version(
                conn, digest=stored.digest, path=str(stored.path), parent=serving.version, status="candidate",
                metrics=dict(metrics),
            )  # fmt: skip
        deployment.deploy(self.engine, made.version, actor="test", force_reason="a drill")

    def find(self, base_model: object) -> BaseDifference | None:
        with self.engine.connect() as conn:
            return find_base_difference(
                conn, self.settings.model_copy(update={"base_model": str(base_model)})
            )


@pytest.fixture
def registry(
    engine: sa.Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    monkeypatch.setattr(base_difference, "resolve_path", lambda path: str(settings.home / path))
    return Registry(engine, settings, tiny_t5(tmp_path / "first"))


def test_without_a_version_in_production_nothing_differs(engine: sa.Engine, settings: Settings) -> None:
    with engine.connect() as conn:
        assert find_base_difference(conn, settings) is None


@pytest.mark.parametrize("large", [False, True])
def test_the_content_decides_not_the_place(
    registry: Registry, tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(base_difference, "_MAX_HASHED_BYTES", 0)
    assert registry.find(tmp_path / "first") is None
    assert registry.find(shutil.copytree(tmp_path / "first", tmp_path / "moved")) is None
    difference = registry.find(tiny_t5(tmp_path / "other" / "first", seed=1))
    assert difference is not None
    assert f"ICCM_BASE_MODEL is {tmp_path}/other/first" in difference.detail
    assert "descends from v1-" in difference.detail and "(first)" in difference.detail
    assert (
        f"iccm evaluate {tmp_path}/other/first" in difference.fix and "iccm deploy VERSION" in difference.fix
    )


def test_a_damaged_copy_in_the_store_is_no_other_base(registry: Registry, tmp_path: Path) -> None:
    [stored] = registry.store.list_digests()
    with (registry.store.root / stored / "tokenizer.json").open("ab") as tokenizer:
        tokenizer.write(b" ")
    assert registry.find(tmp_path / "first") is None


def test_a_candidate_trained_here_keeps_its_base(registry: Registry, tmp_path: Path) -> None:
    registry.replace_production(tiny_t5(tmp_path / "trained", seed=2))
    assert registry.find(tmp_path / "first") is None
    assert registry.find(tmp_path / "trained") is not None


def test_once_the_other_model_is_deployed_it_is_the_base(registry: Registry, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other")
    assert registry.find(other) is not None
    registry.replace_production(other, imported_from=str(other))
    assert registry.find(other) is None
    former = registry.find(tmp_path / "first")
    assert former is not None and "descends from v2-" in former.detail


def test_a_model_trained_elsewhere_from_the_same_base_is_no_other_base(
    registry: Registry, tmp_path: Path
) -> None:
    elsewhere = tiny_t5(tmp_path / "elsewhere", seed=3)
    registry.replace_production(elsewhere, imported_from=str(elsewhere))
    assert registry.find(tmp_path / "first") is None and registry.find(elsewhere) is None


def test_a_model_that_is_not_here_is_compared_by_its_name_without_a_download(
    registry: Registry, tmp_path: Path
) -> None:
    assert registry.find("/gone/first") is None
    assert registry.find("/gone/second") is not None
    difference = registry.find("no-such-org/no-such-model")
    assert difference is not None and "iccm evaluate no-such-org/no-such-model" in difference.fix


def test_a_prompt_that_is_set_and_not_the_bases_is_reported(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = PromptSettings(template="{{ source }}\n", system="Write.")
    registry.settings = registry.settings.model_copy(update={"prompt": own})
    difference = registry.find(tmp_path / "first")
    assert difference is not None
    assert "not the prompt of production's base (plain)" in difference.detail
    assert f"iccm evaluate {tmp_path / 'first'}" in difference.fix
