"""`iccm alerts`: alerts, their delivery and delivery errors (A1)."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.errors import AlertError, SettingsError
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import Run
from iccm_assets_tests.factories.fake_receiver import run_receiver


def test_alerts_are_listed_retried_and_delivered(
    run: Run, engine: sa.Engine, platform: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "No alerts." in run("alerts", "list").output
    with engine.begin() as conn:
        raise_alert(conn, "k", "critical", "Model [Rollback]", "v2")
    with run_receiver() as slack:
        monkeypatch.setenv("ICCM_ALERT_URLS", slack.url)
        slack.status = 500
        failed = json.loads(run("alerts", "deliver", "--json", exit_code=1).stdout)
        assert (failed["delivered"], failed["failed"], failed["pending"]) == (0, 1, 1)
        [row] = json.loads(run("alerts", "list", "--pending", "--json").stdout)
        assert (row["key"], row["delivered_at"]) == ("k", None) and list(
            row["pending_channels"].values()
        ) == [row["last_error"]]
        slack.status = 200
        with engine.begin() as conn:
            conn.execute(
                sa.text(
                    "update iccm.alert_deliveries set last_attempt_at = last_attempt_at - interval '1 hour'"
                )
            )
        assert "1 messages delivered, 0 failed" in run("alerts", "deliver").output
        assert slack.keys() == {"k": 1}
    assert "All alerts have been delivered." in run("alerts", "list", "--pending").output
    monkeypatch.setenv("COLUMNS", "80")
    listed = run("alerts", "list").output
    assert "Model [Rollback]" in listed and "…" not in listed
    assert listed.splitlines()[1].split() == ["created", "severity", "title", "delivered"]


def test_a_test_alert_must_reach_every_channel(
    run: Run, platform: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="names no channel"):
        run("alerts", "test")
    with run_receiver() as slack, run_receiver() as mail:
        monkeypatch.setenv("ICCM_ALERT_URLS", f"{slack.url},{mail.url}")
        report = json.loads(run("alerts", "test", "--json").stdout)
        assert (report["channels"], report["delivered"], report["errors"]) == (2, 2, {})
        assert slack.keys() == mail.keys() == {report["key"]: 1}
        mail.status = 403
        with pytest.raises(AlertError, match="json:"):
            run("alerts", "test")
