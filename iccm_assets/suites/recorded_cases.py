"""Cases of a recorded suite: write an answer as a case, and select those that tell most. (D3, D4)"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from iccm_assets.suites.recorded_inputs import Plan
from iccm_assets.suites.shared_values import get_shared
from iccm_assets.suites.source_variants import FIRST_COMPARISON
from iccm_assets.suites.suite_values import InvalidValueError, check_encoded, write_argument, write_encoded
from iccm_assets.suites.value_differences import diff

MIN_CASES, MAX_CASES = 5, 40
ORDINARY_CASES, CASES_PER_TARGET = 10, 18  # as far as there is room
MAX_CASE_CHARACTERS = 4000
DIGITS = 12  # of a recorded float: what other Python versions and machines agree on

_INPUT_KEYS = frozenset({"call", "new", "get", "args", "kwargs", "shared"})


@dataclass(frozen=True)
class RecordedCase:
    """An input, the branches that it reaches, and the case that records its ``answer``."""

    plan: Plan
    branches: frozenset[int]
    rank: int
    case: dict[str, Any]
    size: int
    answer: str = ""

    @cached_property
    def expectations(self) -> str:
        """What the case expects, without its inputs."""
        keys = ("expect", "raises", "args_after", "shared_after")
        parts = [self.case, *self.case.get("steps", [])]
        return json.dumps([[part.get(key) for key in keys] for part in parts])

    @property
    def steps(self) -> int:
        """The number of calls after the constructor."""
        return len(self.plan[4]) if self.plan[0] == "new" else 0


def select_cases(candidates: Sequence[RecordedCase], reached: Sequence[set[Any]]) -> list[int]:
    """Select cases greedily: all branches first, then what each function or class reaches, three times.

    Deterministic: of equals the first, of sequences of calls the longest.
    """
    order = sorted(
        range(len(candidates)), key=lambda index: (candidates[index].rank, -candidates[index].steps)
    )
    selected: list[int] = []
    names = [candidate.plan[1] for candidate in candidates]
    branches = {index: {item for item in reached[index] if _is_branch(item)} for index in order}
    _select_greedily(branches, selected, 1)
    everything = {index: {(names[index], item) for item in reached[index]} for index in order}
    for times in (1, 2, 3):
        _select_greedily(everything, selected, times)
    return _add_other_answers(candidates, selected)


def _is_branch(item: Any) -> bool:
    return isinstance(item, int) and item < FIRST_COMPARISON


def _select_greedily(items: dict[int, set[Any]], selected: list[int], times: int) -> None:
    """Add cases until each item is in as many of them, as far as there are any."""
    counts = Counter(item for index in selected for item in items[index])
    # A gain only falls: one that is still what it was is the largest, and of equals the first.
    gains = [(-len(own), place, index) for place, (index, own) in enumerate(items.items()) if own]
    heapq.heapify(gains)
    while gains and len(selected) < MAX_CASES:
        known, place, best = heapq.heappop(gains)
        gain = 0 if best in selected else sum(counts[item] < times for item in items[best])
        if gain == -known:
            selected.append(best)
            counts.update(items[best])
        elif gain:
            heapq.heappush(gains, (-gain, place, best))


def _add_other_answers(candidates: Sequence[RecordedCase], selected: list[int]) -> list[int]:
    """Add cases with paths, then answers, that no selected one has, until each target has some."""
    answers = {(candidates[index].plan[1], candidates[index].expectations) for index in selected}
    counts = Counter(candidates[index].plan[1] for index in selected)
    by_size = sorted(range(len(candidates)), key=lambda index: (candidates[index].size, index))
    middle = (len(by_size) + 1) // 2
    both = itertools.zip_longest(by_size[:middle], reversed(by_size[middle:]))
    order = [index for pair in both for index in pair if index is not None]
    paths = {(candidates[index].plan[1], candidates[index].branches) for index in selected}
    for rule in ("path", "answer", "any"):
        for index in order:
            name, key = candidates[index].plan[1], candidates[index].expectations
            minimum = ORDINARY_CASES if rule == "any" else CASES_PER_TARGET
            if len(selected) >= MAX_CASES or index in selected or counts[name] >= minimum:
                continue
            path = (name, candidates[index].branches)
            if (rule == "path" and path in paths) or (rule == "answer" and (name, key) in answers):
                continue
            selected.append(index)
            paths.add(path)
            answers.add((name, key))
            counts[name] += 1
    return selected


def list_inputs(case: dict[str, Any]) -> list[Any]:
    """Return what of a case goes into the sandbox."""
    steps = [{key: step[key] for key in step if key in _INPUT_KEYS} for step in case.get("steps", [])]
    return [{key: case[key] for key in case if key in _INPUT_KEYS}, steps]


# ---- answers -------------------------------------------------------------------------------------


def agree_on_outcome(answers: Sequence[str | None]) -> Any:
    """Return the outcome that all answers tell, the last one's of equal ones; None if they differ."""
    first, last = answers[0], answers[-1] or "null"
    # What a comparison refuses although the texts are the same: objects without a form, and a key twice.
    plain = '["u",' not in last and '["d",' not in last
    if plain and all(answer == first for answer in answers):
        return json.loads(last)
    outcomes = [json.loads(answer or "null") for answer in answers]
    same = all(is_same_outcome(outcomes[0], outcome) for outcome in outcomes[1:])
    return outcomes[-1] if same else None


def is_same_outcome(first: Any, other: Any) -> bool:
    """Whether two outcomes are the same, in any order of their sets."""
    if first is None or other is None or first[0] != other[0]:
        return first is other
    if first[0] == "v":
        sides = [["l", [side[1], *(item for rest in side[2:] for item in rest)]] for side in (first, other)]
        return not diff(check_encoded(sides[0]), check_encoded(sides[1]))
    if first[0] == "r":
        return bool(first[1] == other[1])
    if first[0] == "o":
        steps = len(first[2]) == len(other[2])
        return steps and all(map(is_same_outcome, [first[1], *first[2]], [other[1], *other[2]]))
    return False


class CaseWriter:
    """Writes an input and its answer as a case; ``InvalidValueError`` where the suite cannot say it."""

    def __init__(self, raise_lines: set[int]) -> None:
        self.raise_lines = raise_lines

    def write(self, plan: Plan, outcome: Any) -> dict[str, Any]:
        shared = get_shared(plan)
        written = {"shared": {name: write_argument(shared[name]) for name in shared}} if shared else {}
        if plan[0] == "call":
            return written | self._write_call("call", plan[1:4], outcome, bool(shared))
        case = written | self._write_call("new", plan[1:4], None)
        constructed, outcomes = outcome[1:]
        if constructed is not None:
            return case | {"raises": self._write_raised(constructed)}
        case["steps"] = [
            self._write_call("call", step, answer, bool(shared))
            for step, answer in zip(plan[4], outcomes, strict=True)
        ]
        return case

    def _write_call(
        self, key: str, call: Sequence[Any], outcome: Any, has_shared: bool = False
    ) -> dict[str, Any]:
        name, args, kwargs = call
        written: dict[str, Any] = {key if args is not None else "get": name}
        if args:
            written["args"] = [write_argument(value) for value in args]
        if kwargs:
            written["kwargs"] = {key: write_argument(kwargs[key]) for key in kwargs}
        if outcome is None:
            return written
        if outcome[0] == "r":
            return written | {"raises": self._write_raised(outcome)}
        if outcome[0] != "v":
            raise InvalidValueError("no answer that a suite can say")
        written["expect"] = write_encoded(check_encoded(outcome[1]), DIGITS)
        if args is None:
            return written
        # What is the same text needs no comparison, but for objects without a form: those are never the same.
        if outcome[2] == outcome[3] and '["u", ' not in json.dumps(outcome[2]):
            return written
        after, before = check_encoded(["l", outcome[2]]), check_encoded(["l", outcome[3]])
        if (args or has_shared) and diff(before, after):
            if has_shared:
                *arguments, shared = after[1]
                pairs = [(name[1], write_encoded(value, DIGITS)) for name, value in shared[1]]
                after, written["shared_after"] = ["l", arguments], dict(pairs)
            written["args_after"] = write_encoded(after, DIGITS)
        return written

    def _write_raised(self, outcome: Any) -> str:
        classes, line = outcome[1], outcome[3]
        if line not in self.raise_lines or ["Exception", 1] not in classes:
            raise InvalidValueError("the source does not raise it itself, or it ends the program")
        return str(classes[0][0])
