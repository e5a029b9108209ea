"""Live sessions of simulated developers: one after the other, for as long as a rollout needs them (X4).

The developers share one code base: each asks about one of its modules, and a fraction of them includes the
module's test suite, which makes the session evidence (R11). Those finish the conversation and rate the
response; the others only ask.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from random import Random

from iccm_assets.simulation.developers.developers import (
    PlannedSession,
    finish_session,
    plan_conversations,
)
from iccm_assets.simulation.developers.drift import Drift
from iccm_assets.simulation.developers.gateway_client import GatewayClient
from iccm_assets.simulation.developers.http_sessions import (
    SIMULATED_METADATA,
    GatewayResponse,
    includes_tests,
    request_requirements_as,
    send_feedback,
)

CODE_BASE_SIZE = 240
NEW_DOMAIN_FRACTION = 0.3
"""Fraction of the code base in domains the base model never saw."""
SEED_OFFSET = 7919


@dataclass(frozen=True)
class LiveSession:
    """One live session: its module, and whether the question includes the module's tests."""

    session_id: str
    module: PlannedSession
    includes_tests: bool


def make_code_base(seed: int, today: date) -> list[PlannedSession]:
    """Draw the modules developers ask about, none of them from a simulated week."""
    sessions = plan_conversations(
        seed + SEED_OFFSET,
        n=2 * CODE_BASE_SIZE,
        days=1,
        end=today,
        drift=Drift(NEW_DOMAIN_FRACTION, NEW_DOMAIN_FRACTION),
        name=f"today-{seed}",
    )
    return [
        session for session in sessions if includes_tests(session) and session.repeated_session_id is None
    ][:CODE_BASE_SIZE]


def draw_live_sessions(
    modules: Sequence[PlannedSession], name: str, *, test_fraction: float, seed: int
) -> Iterator[LiveSession]:
    """Draw sessions without end: random modules, a fraction ``test_fraction`` of them with their suite.

    ``seed`` draws modules and suites, and ``name`` begins the session ids: a session's arm is drawn from its
    id, so another name draws other arms.
    """
    rng = Random(f"visitors {seed} {name}")
    for number in itertools.count():
        yield LiveSession(f"sim-{name}-{number:05d}", rng.choice(modules), rng.random() < test_fraction)


def run_live_session(client: GatewayClient, session: LiveSession) -> GatewayResponse:
    """Run one session; raises ``GatewayError``."""
    module = session.module
    suite = module.example.test_suite if session.includes_tests else None
    response = request_requirements_as(client, session.session_id, module, suite)
    if session.includes_tests:
        conversation = finish_session(module, response.requirements)
        client.post(
            "/v1/conversations",
            {
                "session_id": session.session_id,
                "user_id": module.user_id,
                "messages": list(conversation.messages),
                "requirements": conversation.requirements,
                "source_code": module.source_code,
                "tests": suite,
                "metadata": SIMULATED_METADATA,
            },
        )
        if conversation.rating is not None:
            send_feedback(client, response, conversation.rating)
    return response
