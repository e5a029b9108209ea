"""Run commands in this process on the test's database and home."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import Result
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.settings import Settings, get_settings
from iccm_assets_tests.factories.commands import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`run("status", "--json")`; a command's exception is raised to the test."""
    names = (
        "alerts backup config deploy doctor environment evaluate lineage restore retrain status storage suite"
        " verify"
    )
    app = build_app(*names.split())
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str, exit_code: int = 0) -> Result:
        get_settings.cache_clear()
        result = CliRunner().invoke(app, arguments, catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result

    yield call
    get_settings.cache_clear()


@pytest.fixture
def platform(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Put the test's database and home in the environment, where commands read them."""
    assert settings.database_url is not None
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    monkeypatch.setenv("ICCM_DATABASE_URL", settings.database_url)
    return settings
