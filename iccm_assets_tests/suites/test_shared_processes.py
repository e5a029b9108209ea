"""Variants of a source that share a process: one that ends it takes nothing from the others."""

import itertools
import os

import pytest

from iccm_assets.settings import load_settings
from iccm_assets.suites import mutant_driver
from iccm_assets.suites.source_edits import Edit, SourceText
from iccm_assets.suites.test_suites import Suite, parse_suite
from iccm_assets.suites.variant_runs import VariantRunner

SOURCE = "def double(n):\n    return n * 2\n"
BODY = "return n * 2"
COUNTED = """
import builtins
builtins.imports = getattr(builtins, "imports", 0) + 1

def count(n):
    return builtins.imports > n
"""

SLOW_TO_IMPORT = """
import time
until = time.process_time() + 0.0
while time.process_time() < until:
    pass

def double(n):
    return n * 2
"""


def replaced(source: str, old: str, new: str) -> list[Edit]:
    start = source.index(old)
    return [(start, start + len(old), new)]


def open_runner(source: str, suite: Suite = Suite("cases", (), "")) -> VariantRunner:  # noqa: B008
    text = SourceText.parse(source)
    assert text is not None
    return VariantRunner(text, suite, load_settings(), 0.0)


VARIANTS = [
    replaced(SOURCE, BODY, "return n + 2"),
    replaced(SOURCE, BODY, "while n > 1: pass"),
    replaced(SOURCE, BODY, "import os; os._exit(0)"),
    replaced(SOURCE, BODY, "return n *"),
    replaced(SOURCE, BODY, "return n + n"),
    replaced(SOURCE, BODY, "return n * 3"),
]


def test_variants_that_end_their_process_leave_the_others_their_turn() -> None:
    with open_runner(SOURCE) as runner:
        plans = [("call", "double", [number], {}) for number in range(4)]
        differs = runner.run_matrix(VARIANTS, plans, [None] * len(VARIANTS))
    assert differs == [{0, 1, 3}, {0, 1, 2}, {0}, {0}, set(), {1, 2, 3}]


def test_the_cases_of_a_suite_refuse_each_variant_for_itself() -> None:
    cases = [{"call": "double", "args": [number], "expect": 2 * number} for number in range(12)]
    with open_runner(SOURCE, parse_suite({"kind": "cases", "cases": cases})) as runner:
        report = runner.run_cases([replaced(SOURCE, SOURCE, ""), *VARIANTS], 1, together=True)
    assert report.source_fate == "passed"
    assert report.fates == ("refused", "refused", "refused", "refused", "broken", "passed", "refused")


def test_a_variant_is_asked_what_is_chosen_for_it_until_enough_differs() -> None:
    plans = [("call", "double", [number], {}) for number in range(3 * mutant_driver.MAX_REFUSING)]
    triples = replaced(SOURCE, BODY, "return n * 3")
    with open_runner(SOURCE) as runner:
        differs = runner.run_matrix([triples] * 3, plans, [None, frozenset({0, 5}), frozenset()])
    assert differs == [set(range(1, 1 + mutant_driver.MAX_REFUSING)), {5}, set()]


def test_an_answer_is_repeated_under_another_hash_seed() -> None:
    source = "def order(n):\n    return list({'a', 'b', 'c', 'd', 'e'})[:n]\n"
    plans = [("call", "order", [number], {}) for number in (0, 5)]
    with open_runner(source) as runner:
        known = [item.answer for item in runner.explore([], plans)]
        again = runner.repeat(plans, known, (1, 2))
    assert [answers[0] for answers in again] == [known[0]] * 2
    assert len({known[1], *(answers[1] for answers in again)}) > 1


def test_several_variants_share_a_process() -> None:
    with open_runner(COUNTED) as runner:
        differs = runner.run_matrix([[]] * 4, [("call", "count", [1], {})], [None] * 4)
    assert differs.count(frozenset()) == 1  # the first of a process is the first to be imported there


def test_the_time_of_an_import_is_not_that_of_an_input() -> None:
    """On a busy machine an import takes several times as long; counted, it would change the suite."""
    plans = [("call", "double", [number], {}) for number in range(3)]
    slow = replaced(SLOW_TO_IMPORT, "0.0", "0.06")
    with open_runner(SLOW_TO_IMPORT) as runner:
        answers = runner.explore(slow, plans, plan_seconds=0.02)
        differs = runner.run_matrix([slow], plans, [None])
    assert [answer.answer for answer in answers] == ['["v",["i","0"]]', '["v",["i","2"]]', '["v",["i","4"]]']
    assert differs == [set()]


@pytest.mark.parametrize(
    "written", ["open('left', 'w').close()", "os.mkdir('left')", "os.rmdir(os.getcwd())"]
)
def test_each_input_begins_in_an_empty_folder(written: str) -> None:
    source = f"import os\n\ndef work(n):\n    names = os.listdir()\n    {written}\n    return names\n"
    with open_runner(source) as runner:
        answers = runner.explore([], [("call", "work", [number], {}) for number in range(3)])
    assert {answer.answer for answer in answers} == {'["v",["l",[]]]'}


class Clocks:
    """Clocks that go on with each look at them: that of the world, and the CPU time of another process."""

    CLOCK_MONOTONIC = 1

    def __init__(self, passing: float, used: float) -> None:
        self.passing, self.used = passing, used
        self.now = self.cpu = 0.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        self.now += self.passing
        return self.now

    def clock_gettime(self, clock: int) -> float:
        self.cpu += self.used
        return self.cpu


def read_late(clocks: Clocks, looks: int, seconds: float, deadline: float) -> list[bytes | None]:
    """Read from a process that writes a frame once it was looked at so many times."""
    read_end, write_end = os.pipe()
    watch = mutant_driver.IdleWatch(1, seconds, deadline)
    is_over = watch.is_over

    def look() -> bool:
        if clocks.looks == looks:
            os.write(write_end, (2).to_bytes(4, "big") + b"ok")
        return is_over()

    watch.is_over = look  # type: ignore[method-assign]
    try:
        frames = mutant_driver.read_frames(read_end, watch)
        return list(itertools.islice(frames, 1))
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(
    ("passing", "used", "deadline", "frames"),
    [
        (30.0, 0.001, 1e6, [b"ok"]),  # a busy machine: what takes ten minutes uses 20 ms of them
        (30.0, 0.0, 1e6, [b"ok"]),  # this process had no turn, either
        (0.5, 0.0, 1e6, [b"ok"]),
        (0.02, 0.001, 1e6, [b"ok"]),
        (30.0, 0.001, 100.0, [None]),  # the last resort
    ],
)
def test_who_waits_for_a_processor_has_the_time_it_needs(
    monkeypatch: pytest.MonkeyPatch, passing: float, used: float, deadline: float, frames: list[bytes | None]
) -> None:
    clocks = Clocks(passing, used)
    monkeypatch.setattr(mutant_driver, "time", clocks)
    assert read_late(clocks, 20, seconds=2.0, deadline=deadline) == frames


def test_who_waits_for_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(passing=0.02, used=0.0)
    monkeypatch.setattr(mutant_driver, "time", clocks)
    assert read_late(clocks, 10_000, seconds=2.0, deadline=1e6) == [None]
    assert 100 < clocks.looks < 120


def test_a_source_that_waits_is_left_out_of_what_it_answers_before() -> None:
    source = "import select\n\ndef wait(n):\n    return select.select([], [], []) if n > 2 else n\n"
    with open_runner(source) as runner:
        answers = [
            item.answer for item in runner.explore([], [("call", "wait", [n], {}) for n in (0, 1, 2, 3)])
        ]
    assert [bool(answer) for answer in answers] == [True, True, True, False]
