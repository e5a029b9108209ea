"""Match a completed session with the sources of its own requests; pure functions. (C3)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    known = [item for item in answers if item.source is not None]
    if exchange.source is not None and any(_same(item.source, exchange.source) for item in known):
        return None
    accepted = [item for item in known if exchange.requirements and _same(item.text, exchange.requirements)]
    if exchange.source is not None and not accepted:
        return None
    naming = build_naming(exchange.requirements or "", "", find_called_names(suite))
    sources = [item.source for item in accepted or known if item.source is not None]
    return next(filter(naming.is_marked_in, sources), sources[0] if sources else None)


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
