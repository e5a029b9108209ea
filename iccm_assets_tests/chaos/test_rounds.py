"""Real processes, really killed: every trigger ends in one finished retrain or one clear failure.

Three rounds; CHAOS_ROUNDS says otherwise, CHAOS_SEED begins elsewhere. `python -m benchmarks.chaos` is the
same with a line a round.
"""

from __future__ import annotations

import os
import sys
from random import Random

import pytest

from iccm_assets_tests.chaos.instance import platform
from iccm_assets_tests.chaos.rounds import play

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "3"))
SEED = int(os.environ.get("CHAOS_SEED", "1864"))


@pytest.mark.slow
@pytest.mark.timeout(600 * (ROUNDS + 1))
def test_every_trigger_ends_once_whatever_is_killed() -> None:
    with platform() as instance:
        for one in play(instance, ROUNDS, Random(SEED)):
            sys.stdout.write(one.line() + "\n")  # shown when it fails
            assert not one.violations, one.line()
