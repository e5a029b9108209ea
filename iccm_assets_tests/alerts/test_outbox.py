"""Alerts: one row and one log line per cause, each channel receives it once despite failures (A1)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.alerts.channels import AlertMessage, Channel, parse_channels, redact_url, send
from iccm_assets.alerts.dispatcher import count_pending, dispatch_alerts, has_due_alerts
from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.db import tables as t
from iccm_assets.db.clock import set_clock
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.fake_receiver import Receiver, run_receiver


@pytest.fixture
def slack() -> Iterator[Receiver]:
    with run_receiver() as server:
        yield server


@pytest.fixture
def mail() -> Iterator[Receiver]:
    with run_receiver() as server:
        yield server


def with_channels(settings: Settings, *channels: Receiver | str) -> Settings:
    urls = ",".join(channel if isinstance(channel, str) else channel.url for channel in channels)
    return settings.model_copy(update={"alert_urls": urls})


def raise_alerts(engine: sa.Engine, *keys: str, severity: str = "warning") -> None:
    for key in keys:
        with engine.begin() as conn:
            raise_alert(conn, key, severity, "Model Rollback", f"v2 was rolled back ({key}).")


def alerts(engine: sa.Engine) -> dict[str, Any]:
    with engine.connect() as conn:
        return {row.key: row for row in conn.execute(sa.select(t.alerts))}


def advance_clock(engine: sa.Engine, **time: float) -> None:
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(**time))


def test_a_cause_is_one_row_and_one_log_line(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "iccm_assets.alerts"), engine.begin() as conn:
        assert raise_alert(conn, "k", "critical", "Title", "Body 1.")
        assert not raise_alert(conn, "k", "critical", "Title", "Body 1.")
    assert [record.getMessage() for record in caplog.records] == ["alert k (critical): Title. Body 1"]
    assert caplog.records[0].levelno == logging.ERROR
    assert list(alerts(engine)) == ["k"]


def test_an_alert_reaches_every_channel_once_and_is_then_delivered(
    engine: sa.Engine, settings: Settings, slack: Receiver, mail: Receiver
) -> None:
    settings = with_channels(settings, slack, mail)
    raise_alerts(engine, "k1", "k2", severity="critical")
    assert has_due_alerts(engine, settings)
    report = dispatch_alerts(engine, settings)
    assert (report.delivered, report.failed, report.pending) == (4, 0, 0), report
    assert slack.keys() == mail.keys() == {"k1": 1, "k2": 1}
    assert slack.messages[0]["title"] == "Model Rollback" and slack.messages[0]["type"] == "failure"
    assert slack.messages[0]["message"].startswith("v2 was rolled back (k1).\ncritical, ")
    assert all(row.delivered_at is not None and row.attempts == 2 for row in alerts(engine).values())
    assert not has_due_alerts(engine, settings)
    assert dispatch_alerts(engine, settings).delivered == 0
    assert slack.keys() == {"k1": 1, "k2": 1}


@pytest.mark.parametrize("fault", ["status", "closed", "nonsense"])
def test_a_failing_channel_delays_no_other_and_is_retried_later(
    engine: sa.Engine, settings: Settings, slack: Receiver, mail: Receiver, fault: str
) -> None:
    bad: Receiver | str = mail
    if fault == "status":
        mail.status = 500
    else:
        bad = {"closed": "json://127.0.0.1:9/hook-of-the-secret-room", "nonsense": "nowhere://abcdef"}[fault]
    raise_alerts(engine, "k1", "k2")
    report = dispatch_alerts(engine, with_channels(settings, bad, slack))
    # One failure skips the channel for the rest of the pass.
    assert (report.delivered, report.failed, report.pending) == (2, 1, 2), report
    assert slack.keys() == {"k1": 1, "k2": 1}
    row = alerts(engine)["k1"]
    assert row.delivered_at is None and row.last_error
    assert "secret-room" not in row.last_error and "abcdef" not in row.last_error
    # An immediate retry is skipped; later this channel receives everything and the other nothing again.
    mail.status = 200
    again = with_channels(settings, mail, slack) if fault == "status" else with_channels(settings, slack)
    dispatch_alerts(engine, again)
    advance_clock(engine, minutes=1)
    dispatch_alerts(engine, again)
    assert slack.keys() == {"k1": 1, "k2": 1}
    if fault == "status":
        assert mail.keys() == {"k1": 1, "k2": 1}
        assert all(row.delivered_at is not None for row in alerts(engine).values())


def test_the_retry_interval_grows_and_retries_end(
    engine: sa.Engine, settings: Settings, slack: Receiver
) -> None:
    slack.status = 503
    settings = with_channels(settings, slack)
    raise_alerts(engine, "k")
    attempts = []
    for minute in range(0, 70, 1):
        if dispatch_alerts(engine, settings).failed:
            attempts.append(minute)
        advance_clock(engine, minutes=1)
    assert attempts[:3] == [0, 1, 2] and len(attempts) <= 9, attempts
    assert all(b - a <= c - b for a, b, c in zip(attempts[1:], attempts[2:], attempts[3:], strict=False)), (
        attempts
    )
    advance_clock(engine, days=7)
    slack.status = 200
    assert not has_due_alerts(engine, settings) and dispatch_alerts(engine, settings).delivered == 0
    assert count_pending(engine) == 1


def test_without_channels_the_alerts_stay_in_the_outbox(engine: sa.Engine, settings: Settings) -> None:
    raise_alerts(engine, "k")
    assert not has_due_alerts(engine, settings)
    assert "names no channel; 1 alerts stay" in dispatch_alerts(engine, settings).summary()


@pytest.mark.slow
def test_concurrent_dispatchers_send_nothing_twice(
    engine: sa.Engine, settings: Settings, slack: Receiver, mail: Receiver
) -> None:
    settings = with_channels(settings, slack, mail)
    slack.seconds = 0.02
    raise_alerts(engine, *(f"k{number}" for number in range(25)))
    barrier = threading.Barrier(4)

    def work(_: int) -> int:
        barrier.wait(timeout=60)
        return dispatch_alerts(engine, settings).delivered

    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(work, range(4)))
    dispatch_alerts(engine, settings)
    assert sum(shares) == 50
    for channel in (slack, mail):
        assert set(channel.keys().values()) == {1} and len(channel.keys()) == 25
    assert count_pending(engine) == 0


def test_a_channel_that_hangs_delays_neither_the_pass_nor_the_others(
    engine: sa.Engine, settings: Settings, slack: Receiver, mail: Receiver
) -> None:
    mail.seconds = 3.0  # less than apprise waits: the message still arrives
    raise_alerts(engine, "k")
    report = dispatch_alerts(engine, with_channels(settings, mail, slack), time_budget_seconds=0.5)
    assert mail.answered == 0, "the pass has waited for the hanging channel"
    assert slack.keys() == {"k": 1} and "no answer within 0.5 s" in report.summary()
    # The hanging message is locked, so no other pass sends it meanwhile.
    dispatch_alerts(engine, with_channels(settings, mail, slack), time_budget_seconds=0.5)
    deadline = time.monotonic() + 30
    while count_pending(engine) and time.monotonic() < deadline:
        time.sleep(0.2)
        dispatch_alerts(engine, with_channels(settings, mail, slack), time_budget_seconds=0.5)
    assert (count_pending(engine), mail.keys()) == (0, {"k": 1})


KILLED = """
import os, signal, sys
from iccm_assets.alerts import channels, dispatcher
from iccm_assets.settings import load_settings
from iccm_assets.db.database import create_engine_for

def killed_after_sending(channel, message):
    assert channels.send(channel, message) == ""
    os.kill(os.getpid(), signal.SIGKILL)

engine = create_engine_for(sys.argv[1])
dispatcher.dispatch_alerts(engine, load_settings(), send_message=killed_after_sending)
"""


def test_a_message_is_sent_again_if_the_dispatcher_is_killed_before_marking_it(
    engine: sa.Engine, settings: Settings, slack: Receiver
) -> None:
    settings = with_channels(settings, slack)
    raise_alerts(engine, "k")
    assert settings.database_url is not None
    command = [sys.executable, "-c", KILLED, settings.database_url]
    environment = {**os.environ, "ICCM_ALERT_URLS": slack.url}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert slack.keys() == {"k": 1} and alerts(engine)["k"].delivered_at is None
    deadline = time.monotonic() + 30
    while not dispatch_alerts(engine, settings).delivered and time.monotonic() < deadline:
        time.sleep(0.1)  # until PostgreSQL has noticed that the killed process is gone
    assert slack.keys() == {"k": 2}
    assert alerts(engine)["k"].delivered_at is not None


def test_urls_are_split_at_their_schemes_and_named_without_their_secrets() -> None:
    channels = parse_channels(
        "mailto://u:p@h?to=a@x.org,b@x.org, slack://Ttoken/Btoken/c slack://Ttoken/Btoken/c,,json://h"
    )
    assert [channel.url for channel in channels] == [
        "mailto://u:p@h?to=a@x.org,b@x.org",
        "slack://Ttoken/Btoken/c",
        "json://h",
    ]
    names = [channel.name for channel in channels]
    assert [name.split(":")[0] for name in names] == ["mailto", "slack", "json"] and len(set(names)) == 3
    assert "token" not in f"{names} {channels}"
    assert parse_channels("") == []


def test_errors_do_not_repeat_the_secrets_of_a_url() -> None:
    text = redact_url("no route to hooks.example/T0KENT0KEN for user", "slack://T0KENT0KEN/x")
    assert text == "no route to hooks.example/*** for user"
    error = send(Channel("json://127.0.0.1:9/T0KENT0KEN"), AlertMessage("t", "b", "info"))
    assert error and "T0KENT0KEN" not in error
