"""Kill the processes of a retrain at random moments and see whether every trigger still ends once.

    python -m benchmarks.chaos [--rounds 20] [--seed 1] [--real] [--json]

A platform of its own (PostgreSQL, code server, daemon as real processes, both started again after a second)
retrains a model of 30,000 weights; with --real, the packaged one. In each round one of run worker, trainer,
code server, daemon, or all of them at once, is killed with SIGKILL. Prints one line a round, and exits with
1 when something was left that must not be (iccm_assets_tests/chaos/invariants.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from random import Random

from iccm_assets_tests.chaos.chaos_instance import platform
from iccm_assets_tests.chaos.scenarios import Round, play


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def summary(rounds: Sequence[Round]) -> dict[str, object]:
    """Counts and the longest times over the rounds with a kill."""
    played = [one for one in rounds if one.killed]
    return {
        "rounds": len(played),
        "victims": dict(Counter(one.kill.victim for one in played)),
        "outcomes": dict(Counter(one.status for one in played)),
        "attempts": dict(Counter(one.attempts for one in played)),
        "longest_outcome_seconds": max((one.outcome_seconds for one in played), default=0.0),
        "longest_settled_seconds": max((one.settled_seconds for one in played), default=0.0),
        "violations": sum(len(one.violations) for one in rounds),
    }


def main() -> None:
    """Play, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true", help="the packaged base model")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    played = []
    with platform(tiny=not given.real) as instance:
        for one in play(instance, given.rounds, Random(given.seed)):
            played.append(one)
            say(json.dumps(asdict(one)) if given.json else one.line())
    told = summary(played)
    say(json.dumps(told) if given.json else "\n".join(f"{name}: {value}" for name, value in told.items()))
    sys.exit(1 if told["violations"] else 0)


if __name__ == "__main__":
    main()
