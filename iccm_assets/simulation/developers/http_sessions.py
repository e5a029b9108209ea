"""Simulated developers who use the gateway over HTTP, as an editor would (X4, C1, C2).

They send their code and, if they have one, their test suite, read the response, then store the finished
session. Sessions of past days are stored with their past ``timestamp``. All requests are marked
``metadata.simulated``, so that a demo can distinguish them from real ones.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from iccm_assets.simulation.developers.developers import (
    FinishedConversation,
    PlannedSession,
    finish_session,
)
from iccm_assets.simulation.developers.gateway_client import RETRYABLE_STATUSES, GatewayClient
from iccm_assets.simulation.developers.load_generator import LoadGenerator
from iccm_assets.simulation.developers.traffic_summary import (
    PendingSession,
    TrafficSummary,
    summarize_traffic,
)

SIMULATED_METADATA = {"simulated": True}
# Feedback on a request is 404 until the gateway has stored it, if another process answered it.
RETRYABLE_FEEDBACK_STATUSES = RETRYABLE_STATUSES | {404}


@dataclass(frozen=True)
class GatewayResponse:
    """A response of the gateway."""

    request_id: str
    requirements: str
    version: str
    arm: str
    latency_ms: float = 0.0


@dataclass(frozen=True)
class ResponseStats:
    """Responses to a simulation: by arm, by status, retries, and requests that failed for good."""

    arms: dict[str, int]
    statuses: dict[str, int]
    retried: int
    failures: tuple[str, ...]


def request_requirements(client: GatewayClient, session: PlannedSession) -> GatewayResponse:
    """Send the developer's question; raises ``GatewayError``. Sent again, it is the same request."""
    suite = session.example.test_suite if includes_tests(session) else None
    return request_requirements_as(client, session.session_id, session, suite)


def request_requirements_as(
    client: GatewayClient, session_id: str, session: PlannedSession, suite: dict[str, Any] | None
) -> GatewayResponse:
    """Send the question of the session under another session id and with this test suite."""
    reply = client.post(
        "/v1/requirements",
        {
            "session_id": session_id,
            "user_id": session.user_id,
            "request_id": f"{session_id}/1",
            "source_code": session.source_code,
            "tests": suite,
            "metadata": SIMULATED_METADATA,
        },
    )
    return GatewayResponse(
        reply["request_id"],
        reply["requirements"],
        reply["model_version"],
        reply["arm"],
        reply["latency_ms"],
    )


def includes_tests(session: PlannedSession) -> bool:
    """Whether the question includes a test suite: not for developers who never return, or only days later."""
    return session.habit != "abandons" and not {"untested", "late"} & set(session.traits)


def store_conversation(client: GatewayClient, conversation: FinishedConversation, *, now: datetime) -> None:
    """Store a session of the past as it ended; a timestamp after ``now`` is replaced by now."""
    body: dict[str, Any] = {
        "session_id": conversation.session_id,
        "user_id": conversation.user_id,
        "messages": list(conversation.messages),
        "requirements": conversation.requirements if conversation.has_named_fields else None,
        "source_code": conversation.source_code if conversation.has_named_fields else None,
        "tests": conversation.test_suite,
        "rating": conversation.rating,
        "timestamp": conversation.timestamp.isoformat() if conversation.timestamp <= now else None,
        "metadata": {**conversation.metadata, **SIMULATED_METADATA},
    }
    client.post("/v1/conversations", body)


def send_feedback(client: GatewayClient, response: GatewayResponse, rating: int) -> None:
    """Send feedback (1 or -1) on a response."""
    client.post(
        "/v1/feedback",
        {"request_id": response.request_id, "rating": rating},
        retryable=RETRYABLE_FEEDBACK_STATUSES,
    )


def run_sessions(
    client: GatewayClient,
    sessions: Sequence[PlannedSession],
    *,
    as_of: datetime,
    workers: int = 16,
    rate: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[TrafficSummary, list[PendingSession], ResponseStats]:
    """Run these sessions over HTTP up to their state at ``as_of``, and store them.

    Returns a summary, the sessions left to ``finish_pending``, and the response statistics. A session that
    fails for good is in their ``failures`` and nowhere else.
    """
    now = _get_gateway_time(client)
    results: list[tuple[PlannedSession, FinishedConversation, GatewayResponse]] = []
    mutex = threading.Lock()

    def run_session(session: PlannedSession) -> None:
        response = request_requirements(client, session)
        conversation = finish_session(session, response.requirements, as_of)
        store_conversation(client, conversation, now=now)
        with mutex:
            results.append((session, conversation, response))
            progress(len(results))

    failures = _run_all(LoadGenerator(sessions, run_session, workers=workers, rate=rate))
    pending = [
        PendingSession(session, response.requirements)
        for session, _, response in results
        if session.delivered_at > as_of
    ]
    versions = Counter(response.version for _, _, response in results)
    traffic = summarize_traffic(
        ", ".join(version for version, _ in versions.most_common()),
        [session for session, _, _ in results],
        [conversation for _, conversation, _ in results],
    )
    arms = Counter(response.arm for _, _, response in results)
    return traffic, pending, make_response_stats(client, failures, arms)


def finish_pending(
    client: GatewayClient, pending: Sequence[PendingSession], *, as_of: datetime, workers: int = 16
) -> tuple[list[PendingSession], ResponseStats]:
    """Store the end of the sessions that ended by ``as_of``; returns the others."""
    now = _get_gateway_time(client)

    def store_end(item: PendingSession) -> None:
        store_conversation(client, finish_session(item.session, item.answer, as_of), now=now)

    due = [item for item in pending if item.session.delivered_at <= as_of]
    failures = _run_all(LoadGenerator(due, store_end, workers=workers))
    still_pending = [item for item in pending if item.session.delivered_at > as_of]
    return still_pending, make_response_stats(client, failures, Counter())


def _get_gateway_time(client: GatewayClient) -> datetime:
    return datetime.fromisoformat(client.get("/v1/routing")["now"])


def _run_all(generator: LoadGenerator[Any]) -> list[str]:
    """Run all tasks and return the failures; an interruption starts no further task."""
    generator.start()
    try:
        generator.join()
    finally:
        generator.stop()
    return generator.failures


def make_response_stats(client: GatewayClient, failures: Sequence[str], arms: Counter[str]) -> ResponseStats:
    """Combine the client's counts with the arms that responded and the failures."""
    return ResponseStats(
        dict(sorted(arms.items())), dict(sorted(client.statuses.items())), client.retried, tuple(failures)
    )
