"""Hostile implementations: none passes, each is named, and the host stays as it was."""

import pytest

from iccm_assets.sandbox.sandbox import MAX_WALL_FACTOR, REPLY_TIMEOUT_SECONDS, REPLY_TOLERANCE_SECONDS
from iccm_assets.settings import JudgeSettings, load_settings
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.host_probe import assert_unchanged, snapshot
from iccm_assets_tests.factories.implementations import HOSTILE, SUITE

ADD_CASES = 3  # the cases in which `add` has to return a number


@pytest.fixture(scope="module")
def settings():
    limits = JudgeSettings().model_copy(update={"wall_seconds": 4.0, "cpu_seconds": 1})
    return load_settings().model_copy(update={"judge": limits})


# Those that end by a limit of time, space or number; the sandbox's other tests have one of each.
LONG = {
    "sleeps for ever",
    "two gigabytes in children",
    "two gigabytes bit by bit",
    "catastrophic regular expression",
    "an endless loop at import",
    "an endless loop in many processes",
    "ignores signals and loops in a thread",
    "a hundred thousand files",
}


@pytest.mark.parametrize(
    "hostile",
    [pytest.param(h, id=h.name, marks=[pytest.mark.slow] if h.name in LONG else []) for h in HOSTILE],
)
def test_a_hostile_implementation_is_contained_and_named(hostile, settings, monkeypatch):
    monkeypatch.setenv("PLANTED_SECRET", "s3cret-of-the-host")
    before = snapshot()
    result = run_suite(hostile.source, parse_suite(SUITE), settings)
    assert not result.reason
    verdicts = [case.verdict for case in result.results[:ADD_CASES]]
    assert set(verdicts) <= hostile.verdicts, [(case.verdict, case.detail) for case in result.results]
    assert verdicts[0] != "not_run"
    if hostile.suspicion:
        assert result.suspect
        assert any(hostile.suspicion in suspicion for suspicion in result.violations), result.violations
    assert "s3cret" not in repr(result)
    # Slower on a busy machine, but never without a bound.
    assert (
        result.duration_ms
        < (settings.judge.wall_seconds * MAX_WALL_FACTOR + REPLY_TOLERANCE_SECONDS + REPLY_TIMEOUT_SECONDS)
        * 1000
    )
    assert_unchanged(before)


def test_there_are_at_least_thirty_of_them():
    assert len(HOSTILE) >= 30
    assert len({hostile.name for hostile in HOSTILE}) == len(HOSTILE)
