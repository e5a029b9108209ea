"""Measured suites: an honest one is usable; a source that fails its own suite is a mismatch."""

from random import Random
from textwrap import dedent

import pytest

from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.sandbox import bubblewrap
from iccm_assets.settings import load_settings
from iccm_assets.simulation.language.families import FAMILIES
from iccm_assets.simulation.language.generator import generate_example
from iccm_assets.suites.suite_strength import SuiteEvidence, decide_suite, measure_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.shop_suite import SHOP, SHOP_SUITE, calls, make_cases, make_pytest


@pytest.fixture(scope="module")
def settings():
    return load_settings()


def measure(source, document, settings, **options):
    return measure_suite(dedent(source), parse_suite(document), settings, **options)


ROMAN = """
SIGNS = [(100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]

def roman(n):
    if not 0 < n < 400:
        raise ValueError(n)
    out = ""
    for value, sign in SIGNS:
        while n >= value:
            out += sign
            n -= value
    return out
"""


# ---- suites that test their source ----------------------------------------------------------------


def test_a_suite_that_tests_its_source_is_usable(settings):
    measurement = measure(SHOP, SHOP_SUITE, settings)
    assert measurement.status == "usable", measurement
    assert measurement.strength >= 0.9
    assert measurement.counted_mutants >= 8
    assert measurement.branch_coverage == 1.0
    assert measurement.reason.startswith("13 cases; it refuses ")


def test_the_same_source_and_suite_are_measured_the_same(settings):
    assert measure(SHOP, SHOP_SUITE, settings) == measure(SHOP, SHOP_SUITE, settings)


HONEST = {
    "one operator": (
        "def add(a):\n    return a + 1\n",
        make_cases(*calls("add", (1, 2), (0, 1), (5, 6), (9, 10)), *calls("add", (-1, 0))),
    ),
    "lambdas": (
        "double = lambda x: x * 2\n",
        make_cases(*calls("double", (1, 2), (0, 0), (5, 10), (9, 18), (-1, -2))),
    ),
    "line ends of Windows": (
        "def f(a):\r\n    if a > 3:\r\n        return 'big'\r\n    return 'small'\r\n",
        make_cases(*calls("f", (3, "small"), (4, "big"), (0, "small"), (9, "big"), (5, "big"))),
    ),
    "tabs, continued lines and several statements in a line": (
        "def f(a): \\\n\treturn a + 1 if a else 0\nif 1: \\\n\tx = 1; y = int()\n",
        make_cases(*calls("f", (3, 4), (4, 5), (0, 0), (9, 10), (-5, -4))),
    ),
    "state outside of the module": (
        """
        import decimal
        def count(a):
            decimal.getcontext().prec += 1
            return decimal.getcontext().prec - 28 + a
        """,
        make_cases(*calls("count", (3, 4), (4, 5), (0, 1), (9, 10), (-5, -4))),
    ),
    "a block for __main__ that nothing reaches": (
        """
        def f(a):
            return a * 3
        if __name__ == "__main__":
            if f(1) > 2:
                print(f(2))
        """,
        make_cases(*calls("f", (3, 9), (4, 12), (0, 0), (9, 27), (-5, -15))),
    ),
    "methods of a dataclass": (
        """
        from dataclasses import dataclass
        @dataclass
        class Account:
            balance: int = 0
            def pay(self, amount):
                if amount > self.balance:
                    raise RuntimeError("too much")
                self.balance -= amount
                return self.balance
        """,
        make_cases(
            *(
                {"new": "Account", "args": [n], "steps": [{"call": "pay", "args": [n], "expect": 0}]}
                for n in (1, 5, 9)
            ),
            {"new": "Account", "args": [5], "steps": [{"call": "pay", "args": [2], "expect": 3}]},
            {"new": "Account", "steps": [{"call": "pay", "args": [1], "raises": "RuntimeError"}]},
        ),
    ),
    "a decorator with parameters": (
        """
        import functools
        def limited(low, high):
            def decorate(function):
                @functools.wraps(function)
                def inner(*args):
                    return max(low, min(high, function(*args)))
                return inner
            return decorate
        @limited(0, 100)
        def score(hits, misses):
            return hits * 10 - misses * 5
        """,
        make_cases(
            *(
                {"call": "score", "args": [hits, misses], "expect": expected}
                for hits, misses, expected in ((1, 0, 10), (0, 1, 0), (20, 0, 100), (3, 2, 20), (10, 1, 95))
            )
        ),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_sources_of_any_form_are_usable_with_their_suites(name, settings):
    measurement = measure(*HONEST[name], settings)
    assert measurement.status == "usable", measurement


@pytest.mark.parametrize(
    "document",
    [
        make_pytest("""
            import pytest
            from implementation import roman
            def test_all():
                assert roman(1) == "I"
                assert roman(4) == "IV"
                assert roman(194) == "CXCIV"
                assert roman(399) == "CCCXCIX"
                with pytest.raises(ValueError):
                    roman(0)
            """),
        make_pytest("""
            from solution import roman
            NUMERALS = {1: "I", 4: "IV", 9: "IX", 194: "CXCIV", 388: "CCCLXXXVIII"}
            def test_all():
                for number, numeral in NUMERALS.items():
                    assert roman(number) == numeral
            """),
        make_pytest("""
            import unittest, implementation
            class TestRoman(unittest.TestCase):
                def test_numerals(self):
                    self.assertEqual(implementation.roman(9), "IX")
                    self.assertEqual(implementation.roman(194), "CXCIV")
                    self.assertEqual(implementation.roman(388), "CCCLXXXVIII")
                def test_errors(self):
                    with self.assertRaises(ValueError):
                        implementation.roman(0)
                    self.assertRaises(ValueError, implementation.roman, 400)
            """),
    ],
)
def test_a_pytest_suite_counts_what_it_asserts_not_its_functions(document, settings):
    measurement = measure(ROMAN, document, settings)
    assert measurement.status == "usable", measurement
    assert measurement.counted_mutants >= 8


def test_suites_of_simulated_developers_are_usable(settings):
    measurements = [
        measure(example.source_code, example.test_suite, settings)
        for example in (generate_example(family, Random(f"strength {family}")) for family in FAMILIES)
    ]
    assert [measurement.reason for measurement in measurements if measurement.status != "usable"] == []


# ---- sources that a suite does not fit ------------------------------------------------------------


def test_a_source_that_fails_its_own_suite_is_a_mismatch_with_the_first_failing_case(settings):
    measurement = measure(
        "def f(x):\n    return x + 1\n", make_cases(*calls("f", (1, 2), (2, 4), (3, 5))), settings
    )
    assert measurement.status == "mismatch"
    assert "passes 1 of 3 cases of its own suite; case 1: failed: expected 4, got 3" in measurement.reason


def test_a_suite_of_another_source_is_a_mismatch(settings):
    measurement = measure(ROMAN, SHOP_SUITE, settings)
    assert measurement.status == "mismatch"
    assert "case 0: error: the implementation defines no 'ember'" in measurement.reason


@pytest.mark.parametrize(
    "source", ["def f(x:\n", "", "def f(x):\n    return '\ud800'\n", "def f(x):\n    return 1\0\n"]
)
def test_what_is_not_python_is_a_mismatch(source, settings):
    assert measure(source, make_cases(*calls("f", (1, 2))), settings).status == "mismatch"


@pytest.mark.parametrize(
    "source",
    [
        "import numpy\ndef f(x):\n    return 2\n",
        "def f(x):\n    from pandas.core import frame\n    return 2\n",
    ],
)
def test_a_source_that_needs_a_missing_package_has_no_suite_rather_than_a_failed_one(source, settings):
    measurement = measure(source, make_cases(*calls("f", (1, 2))), settings)
    assert measurement.status == "none"
    assert any(f"it imports {name}" in measurement.reason for name in ("numpy", "pandas"))


def test_without_a_sandbox_there_is_no_measurement(settings, monkeypatch):
    def refuse(*args):
        raise SandboxUnavailableError("no bubblewrap")

    monkeypatch.setattr(bubblewrap, "find_bubblewraps", refuse)
    with pytest.raises(SandboxUnavailableError, match="could not be measured"):
        measure(SHOP, SHOP_SUITE, settings)


# ---- the decision ---------------------------------------------------------------------------------


def decide(origin="attached", **figures):
    evidence = {
        "checks": 8,
        "refused": 20,
        "counted": 20,
        "undecided": 0,
        "unmeasured": 0,
        "branches": 10,
        "reached": 10,
    }
    return decide_suite(SuiteEvidence(**evidence | figures), origin).status


def test_the_strength_that_is_needed_depends_on_the_origin():
    assert decide(refused=10) == decide("collected", refused=10) == "usable"
    assert decide(refused=9) == decide("collected", refused=9) == "weak"
    assert (decide("recorded", refused=16), decide("recorded", refused=15)) == ("usable", "weak")


def test_branches_must_be_reached_where_there_are_any():
    assert (decide(reached=7), decide(reached=6), decide(branches=0, reached=0)) == (
        "usable",
        "weak",
        "usable",
    )


def test_few_mutants_need_nearly_all_branches():
    assert (decide(counted=7, refused=7, reached=9), decide(counted=7, refused=7, reached=8)) == (
        "usable",
        "weak",
    )
    assert decide(counted=8, refused=8, reached=8) == "usable"
    assert decide(counted=7, refused=3) == "weak"
    assert decide("recorded", counted=7, refused=4) == "usable"
    assert decide(counted=0, refused=0, branches=0, reached=0) == "weak"


def test_mutants_that_no_time_was_left_for_are_no_evidence():
    assert decide(refused=8, counted=8, unmeasured=9) == "weak"


def test_cases_that_raise_tell_what_they_reach_however_many_there_are(settings):
    source = dedent(
        """
        def root(number: int) -> int:
            if number < 0:
                raise ValueError("negative")
            result = 0
            while (result + 1) * (result + 1) <= number:
                result += 1
            if result * result == number:
                return result
            return -result
        """
    )
    raising = [{"call": "root", "args": [-number], "raises": "ValueError"} for number in range(1, 21)]
    others = [
        {"call": "root", "args": [number], "expect": expected}
        for number, expected in ((0, 0), (1, 1), (2, -1), (9, 3), (10, -3))
    ]
    suite = parse_suite({"kind": "cases", "cases": raising + others})
    assert measure_suite(source, suite, settings).branch_coverage == 1.0


def test_what_no_case_can_call_is_no_branch_to_reach(settings):
    source = dedent(
        """
        class Base:
            def value(self):
                raise NotImplementedError

        class Box(Base):
            def __init__(self, content: int):
                self.content = content

            def value(self):
                return self.content if self.content > 0 else 0

            def __iter__(self):
                while self.content:
                    yield self.content
        """
    )
    cases = [
        {"new": "Box", "args": [number], "steps": [{"call": "value", "expect": max(number, 0)}]}
        for number in (-2, -1, 0, 1, 2, 7)
    ]
    measured = measure_suite(source, parse_suite({"kind": "cases", "cases": cases}), settings)
    assert (measured.status, measured.branch_coverage) == ("usable", 1.0)
