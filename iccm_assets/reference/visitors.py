"""Developers of the present: sessions that come one after the other, as long as a rollout wants them (X4).

They work on one code base: each asks about one of its modules, and a share of them brings the module's test
suite, which is what makes a session evidence (R11). Those take the answer to its end, and rate it; the others
ask and go on with their day.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from random import Random
from typing import Any

from iccm_assets.reference import http_traffic
from iccm_assets.reference.developers import PlannedSession, finish, plan_conversations
from iccm_assets.reference.drift import Drift
from iccm_assets.reference.http_traffic import MARK, NOT_YET, Told
from iccm_assets.reference.wire import Wire

MODULES = 240
NEW_SHARE = 0.3
"""Share of the code base in domains the base model never saw."""


OTHER_SEED = 7919


@dataclass(frozen=True)
class Visit:
    """One session of today: about whose module, and whether its tests come along."""

    session_id: str
    module: PlannedSession
    tests: bool


def code_base(seed: int, today: date) -> list[PlannedSession]:
    """The modules developers will ask about, not those of a simulated week; the same seed, the same code."""
    known = plan_conversations(
        seed + OTHER_SEED,
        n=2 * MODULES,
        days=1,
        end=today,
        drift=Drift(NEW_SHARE, NEW_SHARE),
        name=f"today-{seed}",
    )
    fit = [one for one in known if http_traffic.brings_tests(one) and one.repeats is None]
    return fit[:MODULES]


def visits(modules: Sequence[PlannedSession], name: str, *, tests: float, seed: int) -> Iterator[Visit]:
    """Sessions without end: modules at random, a share ``tests`` of them with their suite."""
    rng = Random(f"visitors {seed} {name}")
    number = 0
    while True:
        yield Visit(f"sim-{name}-{number:05d}", rng.choice(modules), rng.random() < tests)
        number += 1


def visit(wire: Wire, one: Visit) -> Told:
    """Hold the session; raises ``GatewayError``."""
    module, suite = one.module, one.module.example.test_suite if one.tests else None
    told = _ask(wire, one, suite)
    if one.tests:
        ended = replace(finish(module, told.requirements), session_id=one.session_id)
        wire.post("/v1/conversations", _completion(one, ended.messages, ended.requirements, suite))
        if ended.rating is not None:
            wire.post(
                "/v1/feedback", {"request_id": told.request_id, "rating": ended.rating}, passing=NOT_YET
            )
    return told


def _ask(wire: Wire, one: Visit, suite: dict[str, Any] | None) -> Told:
    reply = wire.post(
        "/v1/requirements",
        {
            "session_id": one.session_id,
            "user_id": one.module.user_id,
            "request_id": f"{one.session_id}/1",
            "source_code": one.module.source_code,
            "tests": suite,
            "metadata": MARK,
        },
    )
    return http_traffic.told_by(reply)


def _completion(
    one: Visit, messages: Sequence[dict[str, str]], requirements: str, suite: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "session_id": one.session_id,
        "user_id": one.module.user_id,
        "messages": list(messages),
        "requirements": requirements,
        "source_code": one.module.source_code,
        "tests": suite,
        "metadata": MARK,
    }
