"""Variants of a source that share a process: one that ends it takes nothing from the others."""

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
