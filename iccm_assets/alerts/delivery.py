"""Delivering the outbox (A1): every alert to every channel, at least once, and never twice by two deliverers.

What is owed is a row per alert and channel. A deliverer locks the row, sends, and marks it in one transaction
that skips what others have locked: two deliverers never send the same one, and one that is killed after
sending and before marking has it sent again. A channel that fails is left alone for the rest of the pass, and
asked again at growing intervals; the others go on beside it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from iccm_assets.alerts.channels import Channel, Message, Send, channels_of, send
from iccm_assets.settings import Alerts, Settings

log = logging.getLogger("iccm_assets.alerts")


@dataclass
class DeliveryReport:
    """What a pass did: messages that arrived and that did not, with the last error of each channel."""

    channels: int
    delivered: int = 0
    failed: int = 0
    waiting: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    # Keys, once for each channel.
    arrived: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """In one line, with its numbers."""
        if not self.channels:
            return f"ICCM_ALERT_URLS names no channel; {self.waiting} alerts stay in the outbox"
        why = "".join(f"; {channel}: {error}" for channel, error in self.errors.items())
        return (
            f"{self.delivered} messages delivered, {self.failed} failed, {self.waiting} alerts not delivered"
            f" to all of {self.channels} channels{why}"
        )


_WITHIN = "a.delivered_at is null and a.created_at > iccm.now() - make_interval(days => :days)"
_OWE = sa.text(
    f"""
    insert into iccm.alert_deliveries (key, channel)
    select a.key, channel from iccm.alerts a, unnest(cast(:channels as text[])) as channel
    where {_WITHIN} order by a.key, channel
    on conflict do nothing
    """
)
# After a first failure twice as long each time; a clock that was set back makes nobody wait.
_DUE = """
    d.delivered_at is null and (
        d.tried_at is null or d.tried_at > iccm.now()
        or iccm.now() >= d.tried_at + make_interval(secs => least(:retry * power(2, d.attempts - 1), :most))
    )
"""
_CLAIM = sa.text(
    f"""
    select d.key, a.severity, a.title, a.body, a.created_at
    from iccm.alert_deliveries d join iccm.alerts a using (key)
    where d.channel = :channel and {_DUE} and {_WITHIN}
    order by a.created_at, a.key limit 1
    for update of d skip locked
    """
)
_MARK = sa.text(
    """
    update iccm.alert_deliveries set attempts = attempts + 1, tried_at = iccm.now(),
        last_error = nullif(:error, ''), delivered_at = case when :error = '' then iccm.now() end
    where key = :key and channel = :channel
    """
)
_SETTLE = sa.text(
    """
    with mine as (
        select key from iccm.alerts where delivered_at is null order by key for update skip locked
    ), found as (
        select d.key, sum(d.attempts) as attempts, count(d.delivered_at) as arrived,
            (array_agg(d.last_error order by d.tried_at desc)
                filter (where d.last_error is not null))[1] as error
        from iccm.alert_deliveries d join mine using (key)
        where d.channel = any(:channels) group by d.key
    )
    update iccm.alerts a set attempts = found.attempts, last_error = found.error,
        delivered_at = case when found.arrived = :needed then iccm.now() end
    from found where a.key = found.key
        and (a.attempts, a.last_error) is distinct from (found.attempts::integer, found.error)
    """
)
_WAITING = sa.text("select count(*) from iccm.alerts where delivered_at is null")
_ANY_DUE = sa.text(
    f"""
    select exists (
        select from iccm.alerts a cross join unnest(cast(:channels as text[])) as wanted
            left join iccm.alert_deliveries d on d.key = a.key and d.channel = wanted
        where {_WITHIN} and (d.key is null or {_DUE})
    )
    """
)


_NEWEST = sa.text(
    """
    select a.key, a.severity, a.title, a.body, a.created_at, a.delivered_at, a.attempts, a.last_error,
        coalesce((
            select jsonb_object_agg(d.channel, coalesce(d.last_error, 'not tried yet'))
            from iccm.alert_deliveries d where d.key = a.key and d.delivered_at is null
        ), '{}') as lacking
    from iccm.alerts a where a.delivered_at is null or not :undelivered
    order by a.created_at desc, a.key limit :limit
    """
)


def newest(conn: sa.Connection, limit: int, *, undelivered: bool = False) -> list[dict[str, Any]]:
    """The newest alerts; ``lacking`` holds the channels that have not got it, with their last error."""
    rows = conn.execute(_NEWEST, {"limit": limit, "undelivered": undelivered})
    return [dict(row._mapping) for row in rows]


def waiting(engine: sa.Engine) -> int:
    """How many alerts have not reached all channels."""
    with engine.connect() as conn:
        return int(conn.execute(_WAITING).scalar_one())


def is_due(engine: sa.Engine, settings: Settings) -> bool:
    """Whether a pass would send anything now; a query, without apprise."""
    names = [one.name for one in channels_of(settings.alert_urls)]
    if not names:
        return False
    with engine.connect() as conn:
        return bool(conn.execute(_ANY_DUE, {**_limits(settings.alerts), "channels": names}).scalar_one())


def deliver_alerts(
    engine: sa.Engine, settings: Settings, *, seconds: float | None = None, by: Send = send
) -> DeliveryReport:
    """One pass over what is due, all channels at once; returns after `seconds` even when a channel hangs.

    A channel that hangs keeps its message locked until it lets go of it, and delays nothing else.
    """
    channels = channels_of(settings.alert_urls)
    report = DeliveryReport(len(channels))
    if channels:
        given = settings.alerts.pass_seconds if seconds is None else seconds
        names = [one.name for one in channels]
        with engine.begin() as conn:
            conn.execute(_OWE, {"channels": names, "days": settings.alerts.give_up_days})
        _all_channels(engine, channels, settings.alerts, given, by, report)
        with engine.begin() as conn:
            conn.execute(_SETTLE, {"channels": names, "needed": len(names)})
    report.waiting = waiting(engine)
    return report


def _all_channels(
    engine: sa.Engine,
    channels: Sequence[Channel],
    limits: Alerts,
    seconds: float,
    by: Send,
    report: DeliveryReport,
) -> None:
    until, mutex = time.monotonic() + seconds, threading.Lock()
    broken: list[Exception] = []

    def work(channel: Channel) -> None:
        try:
            _channel(engine, channel, limits, until, by, report, mutex)
        except Exception as error:  # the database's, mostly: raised again where the pass ends
            broken.append(error)

    # Not a pool's threads: those would keep the process from ending while a channel hangs.
    threads = [threading.Thread(target=work, args=(one,), name="alerts", daemon=True) for one in channels]
    for thread in threads:
        thread.start()
    for thread, channel in zip(threads, channels, strict=True):
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            report.errors[channel.name] = f"no answer within {seconds:g} s"
    if broken:
        raise broken[0]


def _channel(
    engine: sa.Engine,
    channel: Channel,
    limits: Alerts,
    until: float,
    by: Send,
    report: DeliveryReport,
    mutex: threading.Lock,
) -> None:
    """All that is due on one channel, until time is up or it fails."""
    error = ""
    while not error and time.monotonic() < until:
        with engine.begin() as conn:
            row = conn.execute(_CLAIM, {**_limits(limits), "channel": channel.name}).one_or_none()
            if row is None:
                return
            error = by(channel, _message(row))
            conn.execute(_MARK, {"key": row.key, "channel": channel.name, "error": error})
        with mutex:
            if error:
                report.failed += 1
                report.errors[channel.name] = error
                log.warning("alert %s is not delivered to %s: %s", row.key, channel.name, error)
            else:
                report.delivered += 1
                report.arrived.append(row.key)


def _message(row: Any) -> Message:
    """The key is in it, so that whoever gets one twice can tell."""
    foot = f"{row.severity}, {row.created_at:%Y-%m-%d %H:%M} UTC, {row.key}"
    return Message(row.title, f"{row.body}\n{foot}".lstrip(), row.severity)


def _limits(limits: Alerts) -> dict[str, Any]:
    return {
        "days": limits.give_up_days,
        "retry": limits.retry_seconds,
        "most": 60.0 * limits.max_retry_minutes,
    }
