"""`iccm status`, `iccm serve` and a check say that production descends from another base model (V5)."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from iccm_assets.cli.context import ensure_production_version
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout import deployment
from iccm_assets.settings import Settings, get_settings
from iccm_assets.training.checks import production_descends_from_base_model
from iccm_assets_tests.factories.commands import Run


@pytest.fixture
def deployed(platform: Settings, engine: sa.Engine) -> Settings:
    """A platform with the packaged model in production."""
    stored = ModelStore(platform.home).import_model(platform.base_model)
    with engine.begin() as conn:
        deployment.bootstrap(conn, digest=stored.digest, path=str(stored.path), base_model="base_model")
    get_settings.cache_clear()
    return platform


def test_a_platform_on_its_configured_base_says_nothing(
    run: Run, deployed: Settings, engine: sa.Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads(run("status", "--json").stdout)["base_difference"] is None
    assert "ICCM_BASE_MODEL" not in run("status").stdout
    get_settings.cache_clear()
    ensure_production_version(get_settings())
    assert capsys.readouterr().err == ""
    with engine.connect() as conn:
        assert production_descends_from_base_model(conn, get_settings()).passed


def test_another_base_model_is_reported_with_the_commands_that_deploy_it(
    run: Run,
    deployed: Settings,
    engine: sa.Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ICCM_BASE_MODEL", "/models/other")
    monkeypatch.setenv("COLUMNS", "300")
    words = ("ICCM_BASE_MODEL is /models/other", "iccm evaluate /models/other", "iccm deploy VERSION")
    printed = " ".join(run("status").stdout.split())
    stored = json.loads(run("status", "--json").stdout)["base_difference"]
    get_settings.cache_clear()
    ensure_production_version(get_settings())
    reported = " ".join(capsys.readouterr().err.split())
    assert all(word in text for word in words for text in (printed, stored, reported))
    with engine.connect() as conn:
        result = production_descends_from_base_model(conn, get_settings())
    assert not result.passed and result.severity == "warning"
    assert words[0] in result.description and words[1] in result.recovery
