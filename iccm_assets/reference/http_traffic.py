"""Simulated developers who use the gateway over HTTP, as an editor would (X4, C1, C2).

They send their code and, if they have one, their test suite, read the response, then store the finished
session. Sessions of past days are stored with their past ``timestamp``. All requests are marked
``metadata.simulated``, so that a demo can tell them from real ones.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from iccm_assets.reference.crowd import Crowd
from iccm_assets.reference.developers import FinishedConversation, PlannedSession, finish
from iccm_assets.reference.traffic import Pending, Traffic, summary
from iccm_assets.reference.wire import PASSING, Wire

MARK = {"simulated": True}
# Feedback on a request is 404 until the gateway has stored it, if another process answered it.
NOT_YET = PASSING | {404}


@dataclass(frozen=True)
class Told:
    """A response of the gateway."""

    request_id: str
    requirements: str
    version: str
    arm: str
    latency_ms: float = 0.0


@dataclass(frozen=True)
class Replies:
    """Responses to a simulation: by arm, by status, retries, and requests that failed for good."""

    arms: dict[str, int]
    statuses: dict[str, int]
    retried: int
    failures: tuple[str, ...]


def ask(wire: Wire, session: PlannedSession) -> Told:
    """Send the developer's question; raises ``GatewayError``. Sent again, it is the same request."""
    suite = session.example.test_suite if brings_tests(session) else None
    return ask_as(wire, session.session_id, session, suite)


def ask_as(wire: Wire, session_id: str, session: PlannedSession, suite: dict[str, Any] | None) -> Told:
    """Send the question of the session under another session id and with this test suite."""
    reply = wire.post(
        "/v1/requirements",
        {
            "session_id": session_id,
            "user_id": session.user_id,
            "request_id": f"{session_id}/1",
            "source_code": session.source_code,
            "tests": suite,
            "metadata": MARK,
        },
    )
    return Told(
        reply["request_id"],
        reply["requirements"],
        reply["model_version"],
        reply["arm"],
        reply["latency_ms"],
    )


def brings_tests(session: PlannedSession) -> bool:
    """Whether the question includes a test suite: not for developers who never return, or only days later."""
    return session.habit != "abandons" and not {"untested", "late"} & set(session.traits)


def store(wire: Wire, ended: FinishedConversation, *, now: datetime) -> None:
    """Store a session of the past as it ended; a timestamp after ``now`` is replaced by now."""
    body: dict[str, Any] = {
        "session_id": ended.session_id,
        "user_id": ended.user_id,
        "messages": list(ended.messages),
        "requirements": ended.requirements if ended.named else None,
        "source_code": ended.source_code if ended.named else None,
        "tests": ended.test_suite,
        "rating": ended.rating,
        "timestamp": ended.timestamp.isoformat() if ended.timestamp <= now else None,
        "metadata": {**ended.metadata, **MARK},
    }
    wire.post("/v1/conversations", body)


def rate(wire: Wire, told: Told, rating: int) -> None:
    """Send feedback (1 or -1) on a response."""
    wire.post("/v1/feedback", {"request_id": told.request_id, "rating": rating}, passing=NOT_YET)


def hold(
    wire: Wire,
    sessions: Sequence[PlannedSession],
    *,
    by: datetime,
    workers: int = 16,
    rate: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Traffic, list[Pending], Replies]:
    """Run these sessions over HTTP up to their state at ``by``, and store them.

    Returns a summary, the sessions that `deliver` has to finish later, and the response statistics. A session
    that fails for good is in their ``failures`` and nowhere else.
    """
    now = _get_gateway_time(wire)
    results: list[tuple[PlannedSession, FinishedConversation, Told]] = []
    mutex = threading.Lock()

    def run_session(session: PlannedSession) -> None:
        response = ask(wire, session)
        conversation = finish(session, response.requirements, by)
        store(wire, conversation, now=now)
        with mutex:
            results.append((session, conversation, response))
            progress(len(results))

    failures = _run_all(Crowd(sessions, run_session, workers=workers, rate=rate))
    pending = [
        Pending(session, response.requirements, response.version)
        for session, _, response in results
        if session.delivered_at > by
    ]
    versions = Counter(response.version for _, _, response in results)
    traffic = summary(
        ", ".join(version for version, _ in versions.most_common()),
        [session for session, _, _ in results],
        [conversation for _, conversation, _ in results],
    )
    arms = Counter(response.arm for _, _, response in results)
    return traffic, pending, _response_stats(wire, failures, arms)


def deliver(
    wire: Wire, pending: Sequence[Pending], *, by: datetime, workers: int = 16
) -> tuple[list[Pending], Replies]:
    """Store the end of the sessions that ended by then; returns the others."""
    now = _get_gateway_time(wire)

    def store_end(item: Pending) -> None:
        store(wire, finish(item.session, item.answer, by), now=now)

    due = [item for item in pending if item.session.delivered_at <= by]
    failures = _run_all(Crowd(due, store_end, workers=workers))
    still_pending = [item for item in pending if item.session.delivered_at > by]
    return still_pending, _response_stats(wire, failures, Counter())


def _get_gateway_time(wire: Wire) -> datetime:
    return datetime.fromisoformat(wire.get("/v1/routing")["now"])


def _run_all(crowd: Crowd[Any]) -> list[str]:
    """Run all tasks and return the failures; an interruption starts no further task."""
    crowd.start()
    try:
        crowd.join()
    finally:
        crowd.stop()
    return crowd.failures


def _response_stats(wire: Wire, failures: Sequence[str], arms: Counter[str]) -> Replies:
    return Replies(
        dict(sorted(arms.items())), dict(sorted(wire.statuses.items())), wire.retried, tuple(failures)
    )
