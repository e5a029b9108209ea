"""The channels of `ICCM_ALERT_URLS`, and one message to one of them by apprise (A1).

apprise is imported when something is sent. No name, error or log line holds a channel's secret.
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

from iccm_assets.addresses import alert_urls

LONGEST_ERROR = 300
# A part of a URL this long that turns up in an error may be its token.
_SECRET_LENGTH = 6
_PARTS = re.compile(r"[^A-Za-z0-9_\-.~%+]+")


@dataclass(frozen=True)
class Channel:
    """One apprise URL; ``name`` is what is stored of it: its scheme and a digest that gives nothing away."""

    url: str = field(repr=False)

    @property
    def name(self) -> str:
        return _name(self.url)


@dataclass(frozen=True)
class Message:
    """What is sent."""

    title: str
    body: str
    severity: str


Send = Callable[[Channel, Message], str]
"""Sends a message; returns why that failed, or nothing when it arrived."""


def channels_of(spec: str) -> list[Channel]:
    """The channels of the setting, each once, in its order."""
    return [Channel(url) for url in dict.fromkeys(alert_urls(spec))]


def send(channel: Channel, message: Message) -> str:
    """`Send` by apprise, whose own limits (4 s to connect, 4 s for each answer) bound it."""
    from apprise import Apprise, NotifyType

    kinds = {"info": NotifyType.INFO, "warning": NotifyType.WARNING, "critical": NotifyType.FAILURE}
    with _remarks() as said:
        try:
            service = Apprise.instantiate(channel.url, suppress_exceptions=True)
            if service is None:
                return "apprise knows no such URL"
            arrived = service.notify(
                title=message.title, body=message.body, notify_type=kinds[message.severity]
            )
        except Exception as error:  # a plugin's fault is a failed delivery, not the deliverer's end
            return without_secrets(f"{type(error).__name__}: {error}", channel.url)
    return "" if arrived else without_secrets(" ".join(said) or "not delivered", channel.url)


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """What apprise says in this thread meanwhile: the one place where it tells why something failed.

    It goes nowhere else, since it may hold parts of a URL.
    """
    said: list[str] = []
    thread, logger = threading.get_ident(), logging.getLogger("apprise")

    class Remarks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                said.append(" ".join(record.getMessage().split()))

    handler = Remarks(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def without_secrets(text: str, url: str) -> str:
    """The text without what the URL says behind its scheme, cut to what a person reads."""
    behind = url.split("://", 1)[-1]
    for part in sorted({behind, *_PARTS.split(behind)}, key=len, reverse=True):
        if len(part) >= _SECRET_LENGTH:
            text = text.replace(part, "***")
    return text[:LONGEST_ERROR]


@lru_cache(maxsize=256)
def _name(url: str) -> str:
    # Slow on purpose: a short password could be guessed from a quick digest of its URL.
    digest = hashlib.pbkdf2_hmac("sha256", url.encode(), b"iccm alert channel", 100_000).hex()[:12]
    return f"{url.split('://', 1)[0].lower()}:{digest}"
