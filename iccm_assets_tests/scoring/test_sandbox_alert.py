"""A machine without a sandbox raises one alert a day and scores nothing (A2, J3)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.scoring.live_scoring import score_live_responses
from iccm_assets.settings import Settings
from iccm_assets.suites import suite_runner
from iccm_assets_tests.factories.scorable_rows import load_model_rows, make_orchestra, serve_request


def test_a_missing_sandbox_is_alerted_once_and_scores_nothing(
    engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*arguments: object) -> None:
        raise SandboxUnavailableError("bubblewrap is not installed")

    monkeypatch.setattr(suite_runner.Sandbox, "start", unavailable)
    serve_request(engine, settings, "r1", "s1")
    serve_request(engine, settings, "r2", "s2")
    report = score_live_responses(engine, make_orchestra(), settings)
    assert (report.scored.inconclusive, report.remaining) == (2, 2)  # retried
    assert {row.test_pass_rate for row in load_model_rows(engine).values()} == {None}
    with engine.connect() as conn:
        [alert] = conn.execute(sa.select(t.alerts)).all()
    assert (alert.severity, alert.title) == ("critical", "Sandbox layer missing")
    assert "bubblewrap is not installed" in alert.body and "iccm doctor" in alert.body


def test_a_machine_with_a_sandbox_raises_no_alert(engine: sa.Engine, settings: Settings) -> None:
    serve_request(engine, settings, "r", "s")
    assert score_live_responses(engine, make_orchestra(), settings).scored.scored == 1
    with engine.connect() as conn:
        assert conn.execute(sa.select(t.alerts)).all() == []
