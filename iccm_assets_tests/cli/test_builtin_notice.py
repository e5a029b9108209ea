"""Where real conversations meet `builtin`, doctor, status and serve say so (C3a)."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.cli import doctor
from iccm_assets.cli import serve as serve_module
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.gateway import server, supervisor
from iccm_assets.settings import Settings, get_settings, load_settings
from iccm_assets_tests.factories.commands import Run

WORDS = "`builtin` reads its reference language only and scores other wordings 0."


def add_conversation(engine: sa.Engine, session: str, *, days_ago: float = 1, **values: object) -> None:
    with engine.begin() as conn:
        timestamp = now(conn) - timedelta(days=days_ago)
        values = {"origin": "gateway", "metadata": {}, "content": [], **values}
        conn.execute(t.conversations.insert().values(session_id=session, timestamp=timestamp, **values))


@pytest.fixture
def simulated(engine: sa.Engine) -> None:
    """Conversations that are simulated, and one that is real but old."""
    add_conversation(engine, "in process", origin="simulated")
    add_conversation(engine, "over HTTP", metadata={"simulated": True})
    add_conversation(engine, "old", days_ago=9)


def load_notice(run: Run) -> str | None:
    notice: str | None = json.loads(run("status", "--json").stdout)["notice"]
    return notice


def test_status_says_so_once_a_conversation_is_real(
    run: Run, engine: sa.Engine, platform: Settings, simulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_notice(run) is None and WORDS not in run("status").stdout
    add_conversation(engine, "real", metadata={"simulated": "true"})
    add_conversation(engine, "imported", origin="claude-code")
    assert f"real conversations in 7 days: 2; {WORDS}" in (load_notice(run) or "")
    assert WORDS in " ".join(run("status").stdout.split())
    monkeypatch.setenv("ICCM_ORCHESTRA", "builtin,openai:http://host/v1#m")
    assert load_notice(run) is not None
    monkeypatch.setenv("ICCM_ORCHESTRA", "openai:http://host/v1#m,openai:http://host/v1#n")
    assert load_notice(run) is None


def test_doctor_says_so_once_a_conversation_is_real(
    engine: sa.Engine, settings: Settings, simulated: None
) -> None:
    assert list(doctor.check_real_traffic(settings)) == []
    add_conversation(engine, "real")
    [check] = doctor.check_real_traffic(settings)
    assert not check.ok and not check.required
    assert check.detail.startswith(f"real conversations in 7 days: 1; {WORDS}")
    assert "ICCM_ORCHESTRA" in check.fix
    endpoints = load_settings(
        database_url=settings.database_url, orchestra="openai:http://h/v1#m,openai:http://h/v1#n"
    )
    assert list(doctor.check_real_traffic(endpoints)) == []


@pytest.mark.parametrize("url", ["postgresql://app@127.0.0.1:9/iccm", None])
def test_doctor_leaves_a_database_that_does_not_run_to_its_own_check(
    url: str | None, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICCM_HOME", str(tmp_path))
    assert list(doctor.check_real_traffic(load_settings(database_url=url))) == []


@pytest.mark.parametrize(("orchestra", "says_so"), [("builtin", True), ("openai:http://h/v1#m", False)])
def test_serve_says_so_at_its_start(
    orchestra: str,
    says_so: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ICCM_ORCHESTRA", orchestra)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(server, "run", lambda *arguments: None)
    monkeypatch.setattr(supervisor, "configure_logging", lambda: None)
    monkeypatch.setattr(serve_module, "ensure_production_version", lambda settings: "v1")
    get_settings.cache_clear()
    try:
        serve_module.serve(port=0, workers=1)
    finally:
        get_settings.cache_clear()
    printed = capsys.readouterr()
    assert "answers with v1" in printed.out
    assert (WORDS in " ".join(printed.err.split())) is says_so
