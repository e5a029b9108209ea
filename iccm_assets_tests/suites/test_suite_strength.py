"""Measured suites: an honest one is usable, one that tests nothing never is."""

import pytest

from iccm_assets.settings import load_settings
from iccm_assets.suites.suite_strength import measure_suite
from iccm_assets.suites.test_suites import parse_suite

TIERS = '''
RATES = {"small": 1, "large": 3}

def fee(amount):
    """Return the fee."""
    if amount < 0:
        raise ValueError("negative")
    if amount < 100:
        return amount * RATES["small"] + 2
    return amount * RATES["large"]
'''
STRONG = [(0, 2), (1, 3), (99, 101), (100, 300), (150, 450)]


@pytest.fixture(scope="module")
def settings():
    return load_settings()


def make_cases(call, pairs):
    return [{"call": call, "args": [argument], "expect": expected} for argument, expected in pairs]


def measure(source, document, settings, **options):
    return measure_suite(source, parse_suite(document), settings, **options)


def test_a_suite_that_tests_its_source_is_usable(settings):
    cases = [*make_cases("fee", STRONG), {"call": "fee", "args": [-1], "raises": "ValueError"}]
    measurement = measure(TIERS, {"kind": "cases", "cases": cases}, settings)
    assert measurement.status == "usable", measurement
    assert measurement.strength >= 0.9
    assert measurement.counted_mutants >= 8
    assert measurement.branch_coverage == 1.0
    assert "6 cases" in measurement.reason
