"""Simulated developers: who asks what, when, and what they make of CET-D's answer (X4).

A pure generator: ``plan_conversations`` decides everything that does not depend on the model, and
``finish`` turns one planned session and CET-D's answer into the conversation as it ended. It knows no
database and no clock; ``iccm simulate`` carries the result to the platform.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import Any, Literal

from iccm_assets.reference.canary import reserved_shapes
from iccm_assets.reference.generator import Example, Sketch, rewritten, shape, sketch, with_suite
from iccm_assets.reference.language import render, sentences
from iccm_assets.reference.suites import mutants
from iccm_assets.reference.trial import score
from iccm_assets.reference.world import BASE_FAMILIES, NEW_FAMILIES

Habit = Literal["corrects", "accepts", "vague", "mistaken", "grumbles", "untested"]

HABITS: Mapping[Habit, float] = {
    "corrects": 0.74,  # checks the answer and, when it is wrong, writes what is right
    "accepts": 0.07,  # takes the answer as it is
    "vague": 0.06,  # writes down less than the code says
    "mistaken": 0.05,  # corrects, and gets one thing wrong
    "grumbles": 0.04,  # corrects, and gives a thumbs-down
    "untested": 0.04,  # corrects, but has no tests
}
REPEATS = 0.06

_ASKS = (
    "Write the requirements for this function.",
    "What does this code have to do? Requirements, please.",
    "Please turn this into requirements I can hand over.",
    "I need the requirements of the function below.",
)
_RIGHT = ("That is right, thanks.", "Good, I take it as it is.", "Yes, exactly.")
_WRONG = (
    "Not quite. The requirements are:",
    "No, that misses the point. It should read:",
    "Please correct it to:",
)


@dataclass(frozen=True)
class PlannedSession:
    """One session before CET-D has answered."""

    session_id: str
    user_id: str
    timestamp: datetime
    habit: Habit
    example: Example
    new_domain: bool
    repeats: str | None
    seed: str

    @property
    def source_code(self) -> str:
        """The code the developer asks about."""
        return self.example.source_code

    @property
    def question(self) -> str:
        """The developer's first message."""
        return f"{Random(self.seed).choice(_ASKS)}\n\n```python\n{self.source_code}```"


@dataclass(frozen=True)
class FinishedConversation:
    """One session as it ended, ready to be captured."""

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


def plan_conversations(
    seed: int,
    *,
    n: int = 200,
    days: int = 7,
    users: int = 44,
    end: date,
    new_domain_share: float = 0.5,
    base_families: Sequence[str] = BASE_FAMILIES,
    new_families: Sequence[str] = NEW_FAMILIES,
) -> list[PlannedSession]:
    """``n`` sessions on the ``days`` days up to and including ``end`` (UTC), in order of time.

    Every user has at least one session when ``n >= users``; no session holds a function of the canary
    set. The same arguments give the same plan.
    """
    rng = Random(f"developers {seed}")
    habits = list(HABITS)
    people = _people(rng, n, users)
    moments = sorted(_moment(rng, end - timedelta(days=rng.randrange(days))) for _ in range(n))
    sketches: list[tuple[str, Sketch]] = []
    plan: list[PlannedSession] = []
    for index, (user, moment) in enumerate(zip(people, moments, strict=True)):
        session_id = f"sim-{seed}-{index:05d}"
        new = rng.random() < new_domain_share
        repeats: str | None = None
        if sketches and rng.random() < REPEATS:
            repeats, earlier = rng.choice(sketches)
            item = rewritten(earlier, rng)
        else:
            item = _fresh(rng, new_families if new else base_families)
            sketches.append((session_id, item))
        plan.append(
            PlannedSession(
                session_id=session_id,
                user_id=user,
                timestamp=moment,
                habit=rng.choices(habits, [HABITS[habit] for habit in habits])[0],
                example=with_suite(item, rng, cases=rng.randint(6, 10)),
                new_domain=item.family in NEW_FAMILIES,
                repeats=repeats,
                seed=f"{seed} {session_id}",
            )
        )
    return plan


def finish(session: PlannedSession, answer: str) -> FinishedConversation:
    """The conversation after the developer has seen CET-D's answer."""
    rng = Random(f"{session.seed} finish")
    right = score(answer, session.example.test_suite)[0] == 1.0
    accepted = _accepted(session, answer, right, rng)
    messages = [{"role": "user", "content": session.question}, {"role": "assistant", "content": answer}]
    if accepted == answer:
        messages.append({"role": "user", "content": rng.choice(_RIGHT)})
    else:
        messages.append({"role": "user", "content": f"{rng.choice(_WRONG)}\n\n{accepted}"})
        messages.append({"role": "assistant", "content": accepted})
    return FinishedConversation(
        session_id=session.session_id,
        user_id=session.user_id,
        timestamp=session.timestamp,
        messages=tuple(messages),
        source_code=session.source_code,
        answer=answer,
        requirements=accepted,
        test_suite=None if session.habit == "untested" else session.example.test_suite,
        rating=_rating(session.habit, right, rng),
        metadata={"language": "python", "family": session.example.family, "habit": session.habit}
        | ({"repeats": session.repeats} if session.repeats else {}),
    )


def vaguer(requirements: str, rng: Random) -> str:
    """The requirements as a hurried person puts them: a boundary blurred, a case left out, loose words."""
    opening, *rest = sentences(requirements)
    if len(rest) > 1 and rest[-1].startswith("Otherwise") and rng.random() < 0.3:
        return " ".join((opening, *rest[:-1]))
    for index in rng.sample(range(len(rest)), min(len(rest), rng.choice((1, 1, 2)))):
        rest[index] = _blur(rest[index], rng)
    return " ".join((opening, *rest))


def _accepted(session: PlannedSession, answer: str, right: bool, rng: Random) -> str:
    true = session.example.requirements
    match session.habit:
        case "accepts":
            return answer
        case "vague":
            return vaguer(true, rng)
        case "mistaken":
            return render(rng.choice(list(mutants(session.example.document))))
    return answer if right else true


def _rating(habit: Habit, right: bool, rng: Random) -> int | None:
    if habit == "grumbles":
        return -1
    return 1 if right and rng.random() < 0.4 else None


_RELATION = re.compile(r"\bis (?:less than|at most|more than|at least) (?=\d)")
_CONSTANT = re.compile(r"(?<= )(?:\d+|'[^']*')(?=[ .,]|$)")
_LOOSE = (
    ("is less than", "is under"), ("is more than", "is over"), ("is at most", "is up to"), ("When", "If"),
    ("is at least", "is no less than"), ("shall", "should"),
)  # fmt: skip


def _blur(sentence: str, rng: Random) -> str:
    roll = rng.random()
    if _RELATION.search(sentence) and roll < 0.5:
        return _RELATION.sub(lambda found: f"{found[0]}about ", sentence)
    if _RELATION.search(sentence) and roll < 0.65:
        size = "small" if "is less than" in sentence or "is at most" in sentence else "large"
        return re.sub(_RELATION.pattern + r"\d+", f"is {size}", sentence)
    if _CONSTANT.search(sentence) and roll < 0.75:
        return _CONSTANT.sub(
            rng.choice(("a certain value", "some number", "the usual amount")), sentence, count=1
        )
    for exact, loose in _LOOSE:
        sentence = sentence.replace(exact, loose)
    return sentence


def _people(rng: Random, n: int, users: int) -> list[str]:
    """One session for everyone first, the rest shared unevenly, in random order."""
    names = [f"dev-{number:02d}" for number in range(1, users + 1)]
    weights = [1.0 / (1 + rank / 8) for rank in range(users)]
    people = names[:n] + rng.choices(names, weights, k=max(0, n - users))
    rng.shuffle(people)
    return people


def _moment(rng: Random, day: date) -> datetime:
    """A second of the day, mostly in working hours."""
    seconds = int(min(86_399, max(0, rng.gauss(13.5, 3.5) * 3600)))
    return datetime.combine(day, time(), UTC) + timedelta(seconds=seconds)


def _fresh(rng: Random, families: Sequence[str]) -> Sketch:
    while True:
        item = sketch(rng.choice(families), rng)
        if shape(item.draft.document) not in reserved_shapes():
            return item
