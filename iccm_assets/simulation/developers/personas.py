"""Personas of the simulated developers: their activity, and the habits each of them has (X4).

A habit belongs to a person, not to a session: a developer who writes vaguely does so all month. The fractions
are quotas of the team, so that forty people have them as exactly as four thousand.
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
    "corrects": 0.56,  # runs the tests and corrects a wrong answer
    "partial": 0.12,  # corrects only half of what is wrong
    "accepts": 0.10,  # accepts any answer
    "vague": 0.09,  # rewrites it vaguely
    "mistaken": 0.07,  # corrects, with one mistake
    "abandons": 0.06,  # asks and never returns
}
TRAITS: Mapping[Trait, float] = {
    "praises": 0.35,  # rates a right answer +1
    "chatty": 0.32,  # small talk before and after, in several languages
    "several_blocks": 0.20,  # more than one code block in the question
    "by_chat": 0.16,  # source and requirements are only in the messages
    "late": 0.14,  # accepts one to four days later; that arrives up to two days after
    "asks_again": 0.10,  # asks about earlier code of their own again, rewritten
    "grumbles": 0.09,  # rates a wrong answer -1
    "typos": 0.09,  # has typos in corrections and questions
    "untested": 0.07,  # has no tests
}
HABIT_PROBABILITY = 0.7
"""Fraction of a person's sessions that show the habit, and each trait; the others are corrected with care."""


@dataclass(frozen=True)
class Developer:
    """One person: relative activity, habit and traits."""

    user_id: str
    activity: float
    habit: Habit
    traits: tuple[Trait, ...]

    def draw_behavior(self, rng: Random) -> tuple[Habit, tuple[Trait, ...]]:
        """Draw the habit and traits that show in one session."""
        habit: Habit = self.habit if rng.random() < HABIT_PROBABILITY else "corrects"
        return habit, tuple(trait for trait in self.traits if rng.random() < HABIT_PROBABILITY)


def draw_team(users: int, rng: Random) -> list[Developer]:
    """Draw ``users`` people, the busiest first: the first asks about nine times as often as the 44th."""
    habits: list[Habit] = ["corrects"] * users
    unassigned = rng.sample(range(users), users)
    for habit in [habit for habit in HABITS if habit != "corrects"]:
        for _ in range(min(round(HABITS[habit] * users), len(unassigned))):
            habits[unassigned.pop()] = habit
    traits: list[list[Trait]] = [[] for _ in range(users)]
    for trait, share in TRAITS.items():
        for index in rng.sample(range(users), round(share * users)):
            traits[index].append(trait)
    return [
        Developer(f"dev-{index + 1:02d}", 1.0 / (1.0 + index / 5.0), habits[index], tuple(traits[index]))
        for index in range(users)
    ]
