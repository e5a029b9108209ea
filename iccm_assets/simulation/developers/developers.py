"""Simulated developers: who asks what and when, and how they react to CET-D's answer (X4).

A pure generator without database or clock: ``plan_conversations`` decides everything that does not depend on
the model, and ``finish_session`` turns one planned session and CET-D's answer into the finished conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from random import Random
from typing import Any

from iccm_assets.simulation.developers import dialogue
from iccm_assets.simulation.developers.dialogue import make_vague
from iccm_assets.simulation.developers.drift import Drift
from iccm_assets.simulation.developers.personas import Developer, Habit, Trait, draw_team
from iccm_assets.simulation.language.canary_split import reserved_signatures
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES
from iccm_assets.simulation.language.generator import (
    GeneratedExample,
    ProgramDraft,
    add_suite,
    draw_program,
    rewrite,
    structural_signature,
)
from iccm_assets.simulation.language.grammar import render
from iccm_assets.simulation.language.quick_score import score_requirements
from iccm_assets.simulation.language.suite_generator import generate_mutants

REPEAT_FRACTION = 0.02
"""Fraction of sessions about code that anybody has asked about before."""


@dataclass(frozen=True)
class PlannedSession:
    """One session before CET-D has answered.

    ``delivered_at`` is the arrival of the acceptance at the platform, never earlier.
    """

    session_id: str
    user_id: str
    asked_at: datetime
    accepted_at: datetime
    delivered_at: datetime
    habit: Habit
    traits: tuple[Trait, ...]
    program: ProgramDraft
    new_domain: bool
    repeated_session_id: str | None
    seed: str

    @cached_property
    def example(self) -> GeneratedExample:
        """Code, true requirements and tests, which are expensive to draw."""
        rng = Random(f"{self.seed} suite")
        return add_suite(self.program, rng, cases=rng.randint(6, 10))

    @property
    def source_code(self) -> str:
        """The code the developer asks about."""
        return self.program.source_code

    @property
    def opening_messages(self) -> list[dict[str, str]]:
        """The messages before CET-D's answer; the last one contains the code."""
        rng = Random(self.seed)
        small_talk = dialogue.write_greeting(rng) if "chatty" in self.traits else []
        question = dialogue.write_question(
            self.source_code, self.traits, self.repeated_session_id is not None, rng
        )
        return [*small_talk, {"role": "user", "content": question}]


@dataclass(frozen=True)
class FinishedConversation:
    """One session as it ended, ready to be captured.

    One that ``is_open`` has CET-D's answer as its last message: nothing was accepted. Without
    ``has_named_fields``, requirements and source code are only in the messages.
    """

    session_id: str
    user_id: str
    timestamp: datetime
    messages: tuple[dict[str, str], ...]
    source_code: str
    answer: str
    requirements: str
    test_suite: dict[str, Any] | None
    rating: int | None
    metadata: dict[str, Any]
    is_open: bool = False
    has_named_fields: bool = True


def plan_conversations(
    seed: int,
    *,
    n: int = 200,
    days: int = 7,
    users: int = 44,
    end: date,
    drift: Drift | None = None,
    base_families: Sequence[str] = BASE_FAMILIES,
    new_families: Sequence[str] = NEW_FAMILIES,
    name: str = "",
) -> list[PlannedSession]:
    """Plan ``n`` sessions on the ``days`` days up to and including ``end`` (UTC), in order of time.

    Every user has at least one session if ``n >= users``; no session contains code of the canary set. The
    same arguments give the same plan; ``name`` (default: the seed) distinguishes the sessions of two plans.
    """
    # Everything is drawn in a fixed order from one generator: another order would give other sessions for the
    # same seed, and a repeated `iccm simulate` would store them as new ones.
    rng = Random(f"developers {seed}")
    drift = drift or Drift()
    first = end - timedelta(days=days - 1)
    developers = _draw_developers(draw_team(users, rng), n, rng)
    times = sorted(_draw_time(rng, end - timedelta(days=rng.randrange(days))) for _ in range(n))
    earlier_programs: list[tuple[str, str, ProgramDraft]] = []
    plan: list[PlannedSession] = []
    for index, (developer, asked_at) in enumerate(zip(developers, times, strict=True)):
        session_id = f"sim-{name or seed}-{index:05d}"
        habit, traits = developer.draw_behavior(rng)
        day = (asked_at.date() - first).days + 1
        is_new_domain = rng.random() < drift.get_share(day, days)
        families = (drift.list_present(day, new_families) if is_new_domain else []) or base_families
        repeated_id, program = _draw_program(rng, developer, traits, earlier_programs, families)
        if repeated_id is None:
            earlier_programs.append((session_id, developer.user_id, program))
        accepted_at, delivered_at = _draw_acceptance(asked_at, traits, rng)
        plan.append(
            PlannedSession(
                session_id=session_id,
                user_id=developer.user_id,
                asked_at=asked_at,
                accepted_at=accepted_at,
                delivered_at=delivered_at,
                habit=habit,
                traits=traits,
                program=program,
                new_domain=program.family in NEW_FAMILIES,
                repeated_session_id=repeated_id,
                seed=f"{seed} {index:05d}",
            )
        )
    return plan


def finish_session(
    session: PlannedSession, answer: str, as_of: datetime | None = None
) -> FinishedConversation:
    """Finish the conversation with CET-D's answer; it stays open if it ends after ``as_of``, or never."""
    metadata = {"language": "python", "family": session.program.family, "habit": session.habit}
    unanswered = FinishedConversation(
        session_id=session.session_id,
        user_id=session.user_id,
        timestamp=session.asked_at,
        messages=(*session.opening_messages, {"role": "assistant", "content": answer}),
        source_code=session.source_code,
        answer=answer,
        requirements=answer,
        test_suite=None,
        rating=None,
        metadata=metadata | ({"repeats": session.repeated_session_id} if session.repeated_session_id else {}),
        is_open=True,
        has_named_fields=False,
    )
    if session.habit == "abandons" or (as_of is not None and session.delivered_at > as_of):
        return unanswered
    rng = Random(f"{session.seed} finish")
    is_right = score_requirements(answer, session.example.test_suite)[0] == 1.0
    accepted = _write_requirements(session, answer, is_right, rng)
    if accepted == answer:
        reaction = [{"role": "user", "content": dialogue.write_approval(session.traits, rng)}]
    else:
        correction = {"role": "user", "content": dialogue.write_correction(accepted, rng)}
        reaction = [correction, {"role": "assistant", "content": accepted}]
    return replace(
        unanswered,
        timestamp=session.accepted_at,
        messages=(*unanswered.messages, *reaction),
        requirements=accepted,
        test_suite=None if "untested" in session.traits else session.example.test_suite,
        rating=_rate(session.traits, is_right),
        is_open=False,
        has_named_fields="by_chat" not in session.traits,
    )


def _write_requirements(session: PlannedSession, answer: str, is_right: bool, rng: Random) -> str:
    true = session.program.requirements
    if session.habit == "vague":
        return make_vague(true, rng)
    if is_right or session.habit == "accepts":
        return answer
    written = true
    if session.habit == "partial":
        written = dialogue.correct_half(answer, true, rng)
    elif session.habit == "mistaken":
        written = render(rng.choice(list(generate_mutants(session.program.document))))
    return dialogue.add_typo(written, rng) if "typos" in session.traits else written


def _rate(traits: Sequence[Trait], is_right: bool) -> int | None:
    if is_right:
        return 1 if "praises" in traits else None
    return -1 if "grumbles" in traits else None


def _draw_developers(team: list[Developer], n: int, rng: Random) -> list[Developer]:
    """Draw one session for everyone first, the rest by activity, in random order."""
    activity = [developer.activity for developer in team]
    developers = team[:n] + rng.choices(team, activity, k=max(0, n - len(team)))
    rng.shuffle(developers)
    return developers


def _draw_time(rng: Random, day: date) -> datetime:
    """Draw a second of the day, mostly in working hours."""
    seconds = int(min(86_399, max(0, rng.gauss(13.5, 3.5) * 3600)))
    return datetime.combine(day, time(), UTC) + timedelta(seconds=seconds)


def _draw_acceptance(asked_at: datetime, traits: Sequence[Trait], rng: Random) -> tuple[datetime, datetime]:
    """Draw when the requirements are accepted, and when the platform receives them."""
    if "late" not in traits:
        return asked_at, asked_at
    accepted_at = asked_at + timedelta(seconds=rng.randrange(86_400, 4 * 86_400))
    return accepted_at, accepted_at + timedelta(seconds=rng.randrange(2 * 86_400))


def _draw_program(
    rng: Random,
    developer: Developer,
    traits: Sequence[Trait],
    earlier_programs: Sequence[tuple[str, str, ProgramDraft]],
    families: Sequence[str],
) -> tuple[str | None, ProgramDraft]:
    """Draw new code, or rewrite that of an earlier session, whose id is returned with it."""
    earlier = [
        session for session in earlier_programs if "asks_again" in traits and session[1] == developer.user_id
    ]
    if not earlier and rng.random() < REPEAT_FRACTION:
        earlier = list(earlier_programs)
    if earlier:
        session_id, _, program = rng.choice(earlier)
        return session_id, rewrite(program, rng)
    while True:
        program = draw_program(rng.choice(families), rng)
        if structural_signature(program.document) not in reserved_signatures():
            return None, program
