"""Running command groups in this process, against the test's own database and home."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import Result
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.settings import Settings, get_settings

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`run("status", "--json")`; what a command raises is raised here."""
    app = build_app("alerts", "config", "deploy", "doctor", "evaluate", "lineage", "retrain", "status")
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
    """The test's database and home, as the commands find them: in the environment."""
    assert settings.database_url is not None
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    monkeypatch.setenv("ICCM_DATABASE_URL", settings.database_url)
    return settings
