"""Parse `ICCM_ALERT_URLS` into channels and send messages to them through apprise (A1).

apprise is imported when something is sent. No name, error or log line contains a channel's secret.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from logging.handlers import BufferingHandler

from iccm_assets.endpoint_urls import parse_alert_urls

MAX_ERROR_LENGTH = 300
# A part of a URL that is at least this long and appears in an error may be the channel's token.
_MIN_SECRET_LENGTH = 6
_SEPARATORS = re.compile(r"[^A-Za-z0-9_\-.~%+]+")


@dataclass(frozen=True)
class Channel:
    """One apprise URL, which is never stored or shown."""

    url: str = field(repr=False)

    @property
    def name(self) -> str:
        """The name under which the channel is stored: its scheme and a digest of its URL."""
        return _channel_name(self.url)


@dataclass(frozen=True)
class AlertMessage:
    """One alert as it is sent to a channel."""

    title: str
    body: str
    severity: str


SendFunction = Callable[[Channel, AlertMessage], str]
"""Sends a message; returns the reason of a failure, or an empty string after a success."""


def parse_channels(spec: str) -> list[Channel]:
    """Parse the setting into its distinct channels, in order."""
    return [Channel(url) for url in dict.fromkeys(parse_alert_urls(spec))]


def send(channel: Channel, message: AlertMessage) -> str:
    """Send by apprise (a `SendFunction`), which waits up to 4 s to connect and 4 s for each response."""
    from apprise import Apprise, NotifyType

    types = {"info": NotifyType.INFO, "warning": NotifyType.WARNING, "critical": NotifyType.FAILURE}
    with _captured_warnings() as warnings:
        try:
            service = Apprise.instantiate(channel.url, suppress_exceptions=True)
            if service is None:
                return "apprise does not support this URL"
            sent = service.notify(title=message.title, body=message.body, notify_type=types[message.severity])
        except Exception as error:  # an error in a plugin is a failed delivery and must not end the pass
            return redact_url(f"{type(error).__name__}: {error}", channel.url)
    text = " ".join(" ".join(warning.getMessage() for warning in warnings).split())
    return "" if sent else redact_url(text or "not delivered", channel.url)


@contextmanager
def _captured_warnings() -> Iterator[list[logging.LogRecord]]:
    """Collect apprise's warnings in this thread: they are the only place where it explains a failure.

    They do not reach any other log, since they may contain parts of a URL.
    """
    thread, logger = threading.get_ident(), logging.getLogger("apprise")
    handler = BufferingHandler(capacity=1000)
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: record.thread == thread)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)


def redact_url(text: str, url: str) -> str:
    """Mask every part of the URL after its scheme in the text, and shorten the text for display."""
    address = url.split("://", 1)[-1]
    for part in sorted({address, *_SEPARATORS.split(address)}, key=len, reverse=True):
        if len(part) >= _MIN_SECRET_LENGTH:
            text = text.replace(part, "***")
    return text[:MAX_ERROR_LENGTH]


@lru_cache(maxsize=256)
def _channel_name(url: str) -> str:
    # Slow on purpose: a short password could be guessed from a fast digest of its URL.
    digest = hashlib.pbkdf2_hmac("sha256", url.encode(), b"iccm alert channel", 100_000).hex()[:12]
    return f"{url.split('://', 1)[0].lower()}:{digest}"
