"""Match a completed session with the sources of its own requests; pure functions. (C3)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from iccm_assets.capture.extraction import Exchange, find_sources
from iccm_assets.capture.source_choice import build_naming, find_called_names


@dataclass(frozen=True)
class RecordedAnswer:
    """A response of the session: its text, and the source and suite of its request, where they are known."""

    text: str
    source: str | None
    source_sha256: str | None
    suite: Any = None
    suite_origin: str | None = None


def choose_source(exchange: Exchange, answers: Sequence[RecordedAnswer], suite: object) -> str | None:
    """Return the source of the request that the accepted requirements answer; None if the messages decide.

    ``answers`` are in order, newest first. Where the messages show no code, or other code than was requested,
    it is the source of the response that was accepted; without code, also the one that the requirements name.
    """
    known = [(item.source, item.text) for item in answers if item.source is not None]
    accepted = [item for item in known if exchange.requirements and _same(exchange.requirements, item[1])]
    is_shown = any(_same(exchange.source, source) for source, _ in known)
    if is_shown or (exchange.source is not None and not accepted):
        return None
    return _choose_named([source for source, _ in accepted or known], exchange, suite)


def _choose_named(sources: Sequence[str], exchange: Exchange, suite: object) -> str | None:
    """Return the newest source that the requirements or the suite name, else the newest one."""
    naming = build_naming(exchange.requirements or "", "", find_called_names(suite))
    return next(chain(filter(naming.is_marked_in, sources), sources), None)


def choose_suite(source: str | None, answers: Sequence[RecordedAnswer]) -> tuple[Any, str]:
    """Return the suite of the newest response about a source, and its origin."""
    for answer in answers:
        if answer.suite is not None and source is not None and _same(answer.source, source):
            return answer.suite, answer.suite_origin or "attached"
    return None, "attached"


def find_missing(messages: object, metadata: object, answers: Sequence[RecordedAnswer]) -> list[str]:
    """Return the sources of responses that the completed conversation does not show, oldest first."""
    sources = {item.source_sha256: item.source for item in reversed(answers) if item.source is not None}
    shown = find_sources(messages, metadata, sources.keys())
    return [source for digest, source in sources.items() if digest not in shown]


def _same(text: str | None, other: str) -> bool:
    return text is not None and text.strip() == other.strip()
