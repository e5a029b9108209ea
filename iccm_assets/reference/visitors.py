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

from iccm_assets.reference.developers import PlannedSession, finish, plan_conversations
from iccm_assets.reference.drift import Drift
from iccm_assets.reference.http_traffic import MARK, Told, ask_as, brings_tests, rate
from iccm_assets.reference.wire import Wire

MODULES = 240
NEW_SHARE = 0.3
"""Fraction of the code base in domains the base model never saw."""
OTHER_SEED = 7919


@dataclass(frozen=True)
class Visit:
    """One live session: its module, and whether the question includes the module's tests."""

    session_id: str
    module: PlannedSession
    tests: bool


def code_base(seed: int, today: date) -> list[PlannedSession]:
    """Draw the modules developers ask about, none of them from a simulated week."""
    sessions = plan_conversations(
        seed + OTHER_SEED,
        n=2 * MODULES,
        days=1,
        end=today,
        drift=Drift(NEW_SHARE, NEW_SHARE),
        name=f"today-{seed}",
    )
    return [session for session in sessions if brings_tests(session) and session.repeats is None][:MODULES]


def visits(modules: Sequence[PlannedSession], name: str, *, tests: float, seed: int) -> Iterator[Visit]:
    """Draw sessions without end: random modules, a fraction ``tests`` of them with their suite."""
    rng = Random(f"visitors {seed} {name}")
    for number in itertools.count():
        yield Visit(f"sim-{name}-{number:05d}", rng.choice(modules), rng.random() < tests)


def visit(wire: Wire, one: Visit) -> Told:
    """Run one session; raises ``GatewayError``."""
    module = one.module
    suite = module.example.test_suite if one.tests else None
    response = ask_as(wire, one.session_id, module, suite)
    if one.tests:
        conversation = finish(module, response.requirements)
        wire.post(
            "/v1/conversations",
            {
                "session_id": one.session_id,
                "user_id": module.user_id,
                "messages": list(conversation.messages),
                "requirements": conversation.requirements,
                "source_code": module.source_code,
                "tests": suite,
                "metadata": MARK,
            },
        )
        if conversation.rating is not None:
            rate(wire, response, conversation.rating)
    return response
