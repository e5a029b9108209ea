"""The simulated developers themselves: who is how busy, and which habits each of them keeps (X4).

Habits belong to people, not to sessions: whoever writes vaguely does so all month. Shares are quotas of the
people, so that a team of forty has them as a team of four thousand does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

Habit = Literal["corrects", "partial", "accepts", "vague", "mistaken", "abandons"]
Trait = Literal[
    "untested", "grumbles", "praises", "late", "typos", "chatty", "several_blocks", "by_chat", "asks_again"
]

HABITS: Mapping[Habit, float] = {
    "corrects": 0.56,  # runs the tests and, when the answer is wrong, writes what is right
    "partial": 0.12,  # corrects, but only half of what is wrong
    "accepts": 0.10,  # takes whatever comes
    "vague": 0.09,  # puts it in words of their own, and loses some of it
    "mistaken": 0.07,  # corrects, and gets one thing wrong
    "abandons": 0.06,  # asks, and never comes back
}
TRAITS: Mapping[Trait, float] = {
    "praises": 0.35,  # thumbs up for a right answer
    "chatty": 0.32,  # small talk before and after, in several languages
    "several_blocks": 0.20,  # more than one code block in the question
    "by_chat": 0.16,  # talks only: source and requirements have to be found in the messages
    "late": 0.14,  # accepts one to four days later, and it arrives up to two days after that
    "asks_again": 0.10,  # asks about code of their own again, written and asked differently
    "grumbles": 0.09,  # thumbs down for a wrong answer
    "typos": 0.09,  # mistypes in corrections and questions
    "untested": 0.07,  # has no tests
}
KEPT = 0.7
"""Share of a person's sessions in which the habit, or a trait, shows; otherwise they correct with care."""


@dataclass(frozen=True)
class Developer:
    """One person: how often they ask (relative to others), and how they are."""

    user_id: str
    activity: float
    habit: Habit
    traits: tuple[Trait, ...]

    def session(self, rng: Random) -> tuple[Habit, tuple[Trait, ...]]:
        """What shows in one session."""
        habit: Habit = self.habit if rng.random() < KEPT else "corrects"
        return habit, tuple(trait for trait in self.traits if rng.random() < KEPT)


def team(users: int, rng: Random) -> list[Developer]:
    """``users`` people, the busiest first: the first asks about nine times as often as the 44th."""
    habits: list[Habit] = ["corrects"] * users
    kinds = [habit for habit in HABITS if habit != "corrects"]
    taken = rng.sample(range(users), users)
    for habit in kinds:
        for _ in range(min(round(HABITS[habit] * users), len(taken))):
            habits[taken.pop()] = habit
    traits: list[list[Trait]] = [[] for _ in range(users)]
    for trait, share in TRAITS.items():
        for index in rng.sample(range(users), round(share * users)):
            traits[index].append(trait)
    return [
        Developer(f"dev-{index + 1:02d}", 1.0 / (1.0 + index / 5.0), habits[index], tuple(traits[index]))
        for index in range(users)
    ]
