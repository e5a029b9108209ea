"""Dispatch the outbox: send every alert to every channel at least once, and never twice concurrently (A1).

There is one row per alert and channel. A dispatcher locks the row, sends, and marks it in one transaction
that skips rows locked by others, so two dispatchers never send the same message. If a dispatcher is killed
after sending and before marking, the message is sent again. A channel that fails is skipped for the rest of
the pass and retried at increasing intervals; the other channels continue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.alerts.channels import AlertMessage, Channel, SendFunction, parse_channels, send
from iccm_assets.settings import AlertSettings, Settings

log = logging.getLogger(__name__)


@dataclass
class DispatchReport:
    """Result of a pass: the number of messages sent and failed, and the last error of each channel.

    ``pending`` counts the alerts that have not reached every channel; ``delivered_keys`` lists each delivered
    alert's key once per channel.
    """

    channels: int
    delivered: int = 0
    failed: int = 0
    pending: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    delivered_keys: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Summarize the pass in one line, with its numbers."""
        if not self.channels:
            return f"ICCM_ALERT_URLS names no channel; {self.pending} alerts stay in the outbox"
        errors = "".join(f"; {channel}: {error}" for channel, error in self.errors.items())
        return (
            f"{self.delivered} messages delivered, {self.failed} failed, {self.pending} alerts not delivered"
            f" to all of {self.channels} channels{errors}"
        )


_RECENT = "a.delivered_at is null and a.created_at > iccm.now() - make_interval(days => :days)"
_ENQUEUE = text(
    f"""
    insert into iccm.alert_deliveries (key, channel)
    select a.key, channel from iccm.alerts a, unnest(cast(:channels as text[])) as channel
    where {_RECENT}
    order by a.key, channel
    on conflict do nothing
    """
)
# The interval doubles after each failure. A platform clock that was set back does not delay a retry.
_DUE = """
    d.delivered_at is null and (
        d.last_attempt_at is null or d.last_attempt_at > iccm.now()
        or iccm.now() >= d.last_attempt_at
            + make_interval(secs => least(:retry * power(2, d.attempts - 1), :max_retry))
    )
"""
_CLAIM = text(
    f"""
    select d.key, a.severity, a.title, a.body, a.created_at
    from iccm.alert_deliveries d join iccm.alerts a using (key)
    where d.channel = :channel and {_DUE} and {_RECENT}
    order by a.created_at, a.key limit 1
    for update of d skip locked
    """
)
_MARK = text(
    """
    update iccm.alert_deliveries set attempts = attempts + 1, last_attempt_at = iccm.now(),
        last_error = nullif(:error, ''), delivered_at = case when :error = '' then iccm.now() end
    where key = :key and channel = :channel
    """
)
_FINALIZE = text(
    """
    with unfinished as (
        select key from iccm.alerts where delivered_at is null order by key for update skip locked
    ), totals as (
        select d.key, sum(d.attempts) as attempts, count(d.delivered_at) as sent,
            (array_agg(d.last_error order by d.last_attempt_at desc)
                filter (where d.last_error is not null))[1] as error
        from iccm.alert_deliveries d join unfinished using (key)
        where d.channel = any(:channels) group by d.key
    )
    update iccm.alerts a set attempts = totals.attempts, last_error = totals.error,
        delivered_at = case when totals.sent = :needed then iccm.now() end
    from totals where a.key = totals.key
        and (a.attempts, a.last_error) is distinct from (totals.attempts::integer, totals.error)
    """
)
_COUNT_PENDING = text("select count(*) from iccm.alerts where delivered_at is null")
_ANY_DUE = text(
    f"""
    select exists (
        select from iccm.alerts a cross join unnest(cast(:channels as text[])) as channel (name)
            left join iccm.alert_deliveries d on d.key = a.key and d.channel = channel.name
        where {_RECENT} and (d.key is null or {_DUE})
    )
    """
)
_LIST = text(
    """
    select a.key, a.severity, a.title, a.body, a.created_at, a.delivered_at, a.attempts, a.last_error,
        coalesce((
            select jsonb_object_agg(d.channel, coalesce(d.last_error, 'not tried yet'))
            from iccm.alert_deliveries d where d.key = a.key and d.delivered_at is null
        ), '{}') as pending_channels
    from iccm.alerts a where a.delivered_at is null or not :undelivered
    order by a.created_at desc, a.key limit :limit
    """
)


def list_alerts(conn: Connection, limit: int, *, pending_only: bool = False) -> list[dict[str, Any]]:
    """List the newest alerts; ``pending_channels`` maps channel names to their last error."""
    rows = conn.execute(_LIST, {"limit": limit, "undelivered": pending_only})
    return [dict(row._mapping) for row in rows]


def count_pending(engine: Engine) -> int:
    """Count the alerts that have not reached all channels."""
    with engine.connect() as conn:
        return int(conn.execute(_COUNT_PENDING).scalar_one())


def has_due_alerts(engine: Engine, settings: Settings) -> bool:
    """Check by one query, without apprise, whether a pass would send anything now."""
    names = [channel.name for channel in parse_channels(settings.alert_urls)]
    if not names:
        return False
    with engine.connect() as conn:
        return bool(conn.execute(_ANY_DUE, {**_limits(settings.alerts), "channels": names}).scalar_one())


def dispatch_alerts(
    engine: Engine,
    settings: Settings,
    *,
    time_budget_seconds: float | None = None,
    send_message: SendFunction = send,
) -> DispatchReport:
    """Send what is due to all channels in parallel, for at most ``time_budget_seconds``.

    A hanging channel keeps its message locked until it returns, and delays nothing else.
    """
    channels = parse_channels(settings.alert_urls)
    report = DispatchReport(len(channels))
    if channels:
        names = [channel.name for channel in channels]
        with engine.begin() as conn:
            conn.execute(_ENQUEUE, {"channels": names, "days": settings.alerts.max_alert_age_days})
        budget = settings.alerts.time_budget_seconds if time_budget_seconds is None else time_budget_seconds
        _dispatch_all(engine, channels, settings.alerts, budget, send_message, report)
        with engine.begin() as conn:
            conn.execute(_FINALIZE, {"channels": names, "needed": len(names)})
    report.pending = count_pending(engine)
    return report


def _dispatch_all(
    engine: Engine,
    channels: Sequence[Channel],
    limits: AlertSettings,
    seconds: float,
    send_message: SendFunction,
    report: DispatchReport,
) -> None:
    deadline = time.monotonic() + seconds
    failures: list[Exception] = []

    def work(channel: Channel) -> None:
        try:
            while time.monotonic() < deadline and _send_next(engine, channel, limits, send_message, report):
                pass
        except Exception as error:  # usually a database error: raised again at the end of the pass
            failures.append(error)

    # Daemon threads instead of a pool: a pool would keep the process alive while a channel hangs.
    threads = [threading.Thread(target=work, args=(item,), name="alerts", daemon=True) for item in channels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # A channel ends its pass at the first failure, so it has at most one.
    report.delivered, report.failed = len(report.delivered_keys), len(report.errors)
    for thread, channel in zip(threads, channels, strict=True):
        if thread.is_alive():
            report.errors[channel.name] = f"no answer within {seconds:g} s"
    if failures:
        raise failures[0]


def _send_next(
    engine: Engine,
    channel: Channel,
    limits: AlertSettings,
    send_message: SendFunction,
    report: DispatchReport,
) -> bool:
    """Send the channel's next due alert; return whether there was one and it was sent."""
    with engine.begin() as conn:
        row = conn.execute(_CLAIM, {**_limits(limits), "channel": channel.name}).one_or_none()
        if row is None:
            return False
        # The key is in the text, so that a reader recognizes an alert that is sent a second time.
        footer = f"{row.severity}, {row.created_at:%Y-%m-%d %H:%M} UTC, {row.key}"
        error = send_message(channel, AlertMessage(row.title, f"{row.body}\n{footer}".lstrip(), row.severity))
        conn.execute(_MARK, {"key": row.key, "channel": channel.name, "error": error})
    if error:
        report.errors[channel.name] = error
        log.warning("alert %s was not delivered to %s: %s", row.key, channel.name, error)
    else:
        report.delivered_keys.append(row.key)
    return not error


def _limits(limits: AlertSettings) -> dict[str, Any]:
    return {
        "days": limits.max_alert_age_days,
        "retry": limits.retry_seconds,
        "max_retry": 60.0 * limits.max_retry_minutes,
    }
