"""Run commands in this process or in their own, on the test's database and home."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from click.testing import Result
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.settings import Settings, get_settings

Run = Callable[..., Result]


def iccm(
    *arguments: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process, without this process's settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ICCM_")}
    return subprocess.run(
        [sys.executable, "-c", "from iccm_assets.cli.main import main; main()", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env={**inherited, **environment},
        check=False,
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`run("status", "--json")`; a command's exception is raised to the test."""
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
    """Put the test's database and home in the environment, where commands read them."""
    assert settings.database_url is not None
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    monkeypatch.setenv("ICCM_DATABASE_URL", settings.database_url)
    return settings
