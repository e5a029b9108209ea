"""`iccm deploy base`: the first version, for processes whose role may not put one in production (S1)."""

from __future__ import annotations

import json
import sys

import pytest
import sqlalchemy as sa

from iccm_assets.cli.main import main
from iccm_assets.settings import Settings, get_settings
from iccm_assets_tests.factories.gateways import rows


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, settings: Settings, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    monkeypatch.setenv("ICCM_DATABASE_URL", str(settings.database_url))
    get_settings.cache_clear()

    def execute(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["iccm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out or shown.err

    yield execute
    get_settings.cache_clear()


@pytest.mark.slow
def test_the_base_model_becomes_the_first_version_and_stays_it(run, engine: sa.Engine) -> None:
    status, output = run("deploy", "base", "--json")
    assert status == 0, output
    [(version,)] = rows(engine, "select version from iccm.model_versions where status = 'production'")
    assert json.loads(output) == {"version": version, "status": "production"}
    assert run("deploy", "base") == (0, f"{version} is in production\n")
    assert rows(engine, "select count(*) from iccm.deployment_events")[0][0] == 1


@pytest.mark.parametrize("option", ["--force", "--skip-rollout"])
def test_it_takes_no_option_that_goes_past_the_gate(run, engine: sa.Engine, option: str) -> None:
    status, output = run("deploy", "base", option, "--reason", "r")
    assert status == 2 and "no gate judges the first version" in output
    assert rows(engine, "select count(*) from iccm.model_versions")[0][0] == 0
