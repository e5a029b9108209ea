"""Simulated developers: who asks what, when, and what they make of CET-D's answer (X4).

A pure generator: ``plan_conversations`` decides everything that does not depend on the model, and
``finish`` turns one planned session and CET-D's answer into the conversation as it ended. It knows no
database and no clock; ``iccm simulate`` carries the result to the platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from random import Random
from typing import Any

from iccm_assets.reference import dialogue
from iccm_assets.reference.canary import reserved_shapes
from iccm_assets.reference.dialogue import vaguer as vaguer
from iccm_assets.reference.drift import Drift
from iccm_assets.reference.generator import Example, Sketch, rewritten, shape, sketch, with_suite
from iccm_assets.reference.language import render
from iccm_assets.reference.people import Developer, Habit, Trait, team
from iccm_assets.reference.suites import mutants
from iccm_assets.reference.trial import score
from iccm_assets.reference.world import BASE_FAMILIES, NEW_FAMILIES

REPEATS = 0.02
"""Share of sessions about code that somebody, not the same person by habit, has asked about before."""


@dataclass(frozen=True)
class PlannedSession:
    """One session before CET-D has answered.

    ``timestamp`` is the acceptance; ``delivered_at`` is when the platform hears of it, never earlier.
    """

    session_id: str
    user_id: str
    asked_at: datetime
    timestamp: datetime
    delivered_at: datetime
    habit: Habit
    traits: tuple[Trait, ...]
    sketch: Sketch
    new_domain: bool
    repeats: str | None
    seed: str

    @cached_property
    def example(self) -> Example:
        """What the developer has: code, what it should do, and tests, whose drawing takes a while."""
        rng = Random(f"{self.seed} suite")
        return with_suite(self.sketch, rng, cases=rng.randint(6, 10))

    @property
    def source_code(self) -> str:
        """The code the developer asks about."""
        return self.sketch.source_code

    @property
    def opening(self) -> list[dict[str, str]]:
        """What is said before CET-D's answer; the last message holds the code."""
        rng = Random(self.seed)
        small_talk = dialogue.greeting(rng) if "chatty" in self.traits else []
        asked = dialogue.question(self.source_code, self.traits, self.repeats is not None, rng)
        return [*small_talk, {"role": "user", "content": asked}]


@dataclass(frozen=True)
class FinishedConversation:
    """One session as it ended, ready to be captured.

    An ``open`` one ended, or stands, with CET-D's answer: nobody has accepted anything. ``requirements`` and
    ``source_code`` of one that is not ``named`` are only in its messages.
    """

    session_id: str
    user_id: str
    asked_at: datetime
    timestamp: datetime
    messages: tuple[dict[str, str], ...]
    source_code: str
    answer: str
    requirements: str
    test_suite: dict[str, Any] | None
    rating: int | None
    metadata: dict[str, Any]
    open: bool = False
    named: bool = True


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
    """``n`` sessions on the ``days`` days up to and including ``end`` (UTC), in the order they are asked.

    Every user has at least one session when ``n >= users``; no session holds code of the canary set. The
    same arguments give the same plan; ``name`` (default: the seed) tells the sessions of two plans apart.
    """
    rng = Random(f"developers {seed}")
    drift = drift or Drift()
    first = end - timedelta(days=days - 1)
    people = _askers(team(users, rng), n, rng)
    moments = sorted(_moment(rng, end - timedelta(days=rng.randrange(days))) for _ in range(n))
    asked: list[tuple[str, str, Sketch]] = []
    plan: list[PlannedSession] = []
    for index, (developer, moment) in enumerate(zip(people, moments, strict=True)):
        session_id = f"sim-{name or seed}-{index:05d}"
        habit, traits = developer.session(rng)
        families = _families(drift, (moment.date() - first).days + 1, days, base_families, new_families, rng)
        repeats, item = _subject(rng, developer, traits, asked, families)
        if repeats is None:
            asked.append((session_id, developer.user_id, item))
        accepted, delivered = _acceptance(moment, traits, rng)
        plan.append(
            PlannedSession(
                session_id=session_id,
                user_id=developer.user_id,
                asked_at=moment,
                timestamp=accepted,
                delivered_at=delivered,
                habit=habit,
                traits=traits,
                sketch=item,
                new_domain=item.family in NEW_FAMILIES,
                repeats=repeats,
                seed=f"{seed} {index:05d}",
            )
        )
    return plan


def finish(session: PlannedSession, answer: str, by: datetime | None = None) -> FinishedConversation:
    """The conversation after the developer has seen CET-D's answer, as far as it is known ``by`` then."""
    if session.habit == "abandons" or (by is not None and session.delivered_at > by):
        return _open(session, answer)
    rng = Random(f"{session.seed} finish")
    right = score(answer, session.example.test_suite)[0] == 1.0
    accepted = _accepted(session, answer, right, rng)
    messages = [*session.opening, {"role": "assistant", "content": answer}]
    if accepted == answer:
        messages.append({"role": "user", "content": dialogue.approval(session.traits, rng)})
    else:
        messages.append({"role": "user", "content": dialogue.correction(accepted, rng)})
        messages.append({"role": "assistant", "content": accepted})
    return FinishedConversation(
        session_id=session.session_id,
        user_id=session.user_id,
        asked_at=session.asked_at,
        timestamp=session.timestamp,
        messages=tuple(messages),
        source_code=session.source_code,
        answer=answer,
        requirements=accepted,
        test_suite=None if "untested" in session.traits else session.example.test_suite,
        rating=_rating(session.traits, right),
        metadata=_metadata(session),
        named="by_chat" not in session.traits,
    )


def _open(session: PlannedSession, answer: str) -> FinishedConversation:
    return FinishedConversation(
        session_id=session.session_id,
        user_id=session.user_id,
        asked_at=session.asked_at,
        timestamp=session.asked_at,
        messages=(*session.opening, {"role": "assistant", "content": answer}),
        source_code=session.source_code,
        answer=answer,
        requirements=answer,
        test_suite=None,
        rating=None,
        metadata=_metadata(session),
        open=True,
        named=False,
    )


def _metadata(session: PlannedSession) -> dict[str, Any]:
    known = {"language": "python", "family": session.sketch.family, "habit": session.habit}
    return known | ({"repeats": session.repeats} if session.repeats else {})


def _accepted(session: PlannedSession, answer: str, right: bool, rng: Random) -> str:
    true = session.sketch.requirements
    if session.habit == "vague":
        return vaguer(true, rng)
    if right or session.habit == "accepts":
        return answer
    match session.habit:
        case "partial":
            written = dialogue.half_corrected(answer, true, rng)
        case "mistaken":
            written = render(rng.choice(list(mutants(session.sketch.draft.document))))
        case _:
            written = true
    return dialogue.mistyped(written, rng) if "typos" in session.traits else written


def _rating(traits: Sequence[Trait], right: bool) -> int | None:
    if "grumbles" in traits and not right:
        return -1
    return 1 if "praises" in traits and right else None


def _askers(people: list[Developer], n: int, rng: Random) -> list[Developer]:
    """One session for everyone first, the rest by how busy they are, in random order."""
    busy = [one.activity for one in people]
    askers = people[:n] + rng.choices(people, busy, k=max(0, n - len(people)))
    rng.shuffle(askers)
    return askers


def _moment(rng: Random, day: date) -> datetime:
    """A second of the day, mostly in working hours."""
    seconds = int(min(86_399, max(0, rng.gauss(13.5, 3.5) * 3600)))
    return datetime.combine(day, time(), UTC) + timedelta(seconds=seconds)


def _acceptance(asked: datetime, traits: Sequence[Trait], rng: Random) -> tuple[datetime, datetime]:
    """When the requirements were accepted, and when the platform hears of it."""
    if "late" not in traits:
        return asked, asked
    accepted = asked + timedelta(seconds=rng.randrange(86_400, 4 * 86_400))
    return accepted, accepted + timedelta(seconds=rng.randrange(2 * 86_400))


def _families(
    drift: Drift, day: int, days: int, base: Sequence[str], new: Sequence[str], rng: Random
) -> Sequence[str]:
    """What the session is about: one of the new families that have appeared by now, or one of the base."""
    wants_new = rng.random() < drift.share(day, days)
    return (drift.present(day, new) if wants_new else []) or base


def _subject(
    rng: Random,
    developer: Developer,
    traits: Sequence[Trait],
    asked: Sequence[tuple[str, str, Sketch]],
    families: Sequence[str],
) -> tuple[str | None, Sketch]:
    """Code nobody has asked about, or the earlier session it comes from and the code written again."""
    before = [one for one in asked if "asks_again" in traits and one[1] == developer.user_id]
    if not before and rng.random() < REPEATS:
        before = list(asked)
    if not before:
        return None, _fresh(rng, families)
    session_id, _, item = rng.choice(before)
    return session_id, rewritten(item, rng)


def _fresh(rng: Random, families: Sequence[str]) -> Sketch:
    while True:
        item = sketch(rng.choice(families), rng)
        if shape(item.draft.document) not in reserved_shapes():
            return item
