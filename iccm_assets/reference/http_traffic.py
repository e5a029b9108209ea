"""Simulated developers who use the gateway over HTTP, as an editor would (X4, C1, C2).

They ask with their code and, those who have one, their test suite; look at the answer; then store the session
as it ended. Sessions of past days are stored with their past ``timestamp``. All they send is marked
``metadata.simulated``, so that a demo can tell it from what people said.
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
# A rating is 404 until the gateway has stored its request, when another process answered it.
NOT_YET = PASSING | {404}


@dataclass(frozen=True)
class Told:
    """What the gateway answered."""

    request_id: str
    requirements: str
    version: str
    arm: str
    latency_ms: float = 0.0


@dataclass(frozen=True)
class Replies:
    """What the gateway made of a simulation: answers by arm, replies by status, and what failed for good."""

    arms: dict[str, int]
    statuses: dict[str, int]
    retried: int
    failures: tuple[str, ...]


def ask(wire: Wire, session: PlannedSession) -> Told:
    """The developer's question; raises ``GatewayError``. Asked again, it is the same request."""
    reply = wire.post(
        "/v1/requirements",
        {
            "session_id": session.session_id,
            "user_id": session.user_id,
            "request_id": f"{session.session_id}/1",
            "source_code": session.source_code,
            "tests": session.example.test_suite if brings_tests(session) else None,
            "metadata": MARK,
        },
    )
    return told_by(reply)


def told_by(reply: dict[str, Any]) -> Told:
    """An answer of the gateway as a value."""
    return Told(
        reply["request_id"],
        reply["requirements"],
        reply["model_version"],
        reply["arm"],
        reply["latency_ms"],
    )


def brings_tests(session: PlannedSession) -> bool:
    """Whether the question comes with a suite: not from those who do not come back, or only days later."""
    return session.habit != "abandons" and not {"untested", "late"} & set(session.traits)


def store(wire: Wire, ended: FinishedConversation, *, now: datetime) -> None:
    """Post a session of the past as it ended, or stands; what lies after ``now`` is said to be now."""
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
    """A thumb for one answer."""
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
    """Hold these sessions over HTTP, as far as they have got at ``by``, and store them.

    Returns what came of it, the sessions that `deliver` has to bring later, and the gateway's replies: those
    that failed for good are in ``failures``, and their sessions count nowhere else.
    """
    now = datetime.fromisoformat(wire.get("/v1/routing")["now"])
    kept: list[tuple[PlannedSession, FinishedConversation, Told]] = []
    mutex = threading.Lock()

    def errand(session: PlannedSession) -> None:
        told = ask(wire, session)
        ended = finish(session, told.requirements, by)
        store(wire, ended, now=now)
        with mutex:
            kept.append((session, ended, told))
            progress(len(kept))

    crowd = _held(Crowd(sessions, errand, workers=workers, rate=rate))
    late = [(one, told) for one, _, told in kept if one.delivered_at > by]
    pending = [Pending(one, told.requirements, told.version) for one, told in late]
    versions = Counter(told.version for _, _, told in kept)
    served = ", ".join(name for name, _ in versions.most_common())
    traffic = summary(served, [one for one, _, _ in kept], [ended for _, ended, _ in kept])
    return traffic, pending, _replies(wire, crowd, Counter(told.arm for _, _, told in kept))


def deliver(
    wire: Wire, pending: Sequence[Pending], *, by: datetime, workers: int = 16
) -> tuple[list[Pending], Replies]:
    """Store the end of those sessions that is known at ``by``; returns the others."""
    now = datetime.fromisoformat(wire.get("/v1/routing")["now"])

    def errand(one: Pending) -> None:
        store(wire, finish(one.session, one.answer, by), now=now)

    due = [one for one in pending if one.session.delivered_at <= by]
    crowd = _held(Crowd(due, errand, workers=workers))
    return [one for one in pending if one.session.delivered_at > by], _replies(wire, crowd, Counter())


def _held(crowd: Crowd[Any]) -> Crowd[Any]:
    """Run to its end; on an interruption nothing further is begun."""
    crowd.start()
    try:
        crowd.join()
    finally:
        crowd.stop()
    return crowd


def _replies(wire: Wire, crowd: Crowd[Any], arms: Counter[str]) -> Replies:
    return Replies(
        arms=dict(sorted(arms.items())),
        statuses=dict(sorted(wire.statuses.items())),
        retried=wire.retried,
        failures=tuple(crowd.failures),
    )
