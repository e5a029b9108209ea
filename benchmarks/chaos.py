"""Kill the processes of a retrain at random times and check that every trigger still ends exactly once.

    python -m benchmarks.chaos [--rounds 20] [--seed 1] [--real] [--external] [--victim NAME] [--json]

A platform of its own (PostgreSQL, code server, daemon as real processes, the latter two started again after
a second) retrains a model of 30,000 weights; with --real, the packaged one. In each round one of run worker,
trainer, code server, daemon, PostgreSQL, or all but PostgreSQL at once, is killed with SIGKILL; with
--victim always the same one. The platform itself brings PostgreSQL back; with --external it knows only its
URL, and this program starts it again after a second. Prints one line a round, and exits with
1 if an invariant was violated (iccm_assets_tests/chaos/invariants.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from random import Random

from iccm_assets_tests.chaos.chaos_instance import VICTIMS, platform
from iccm_assets_tests.chaos.scenarios import Round, play


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def summary(rounds: Sequence[Round]) -> dict[str, object]:
    """Counts and the longest times over the rounds with a kill."""
    played = [played_round for played_round in rounds if played_round.killed]
    return {
        "rounds": len(played),
        "victims": dict(Counter(played_round.kill.victim for played_round in played)),
        "outcomes": dict(Counter(played_round.status for played_round in played)),
        "attempts": dict(Counter(played_round.attempts for played_round in played)),
        "longest_outcome_seconds": max(
            (played_round.outcome_seconds for played_round in played), default=0.0
        ),
        "longest_settled_seconds": max(
            (played_round.settled_seconds for played_round in played), default=0.0
        ),
        "violations": sum(len(played_round.violations) for played_round in rounds),
    }


def main() -> None:
    """Run the rounds and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true", help="the packaged base model")
    parser.add_argument("--external", action="store_true", help="a PostgreSQL that is not the platform's own")
    parser.add_argument("--victim", choices=VICTIMS, help="kill this in every round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    played = []
    victims = (options.victim,) if options.victim else VICTIMS
    with platform(tiny=not options.real, external=options.external) as instance:
        for played_round in play(instance, options.rounds, Random(options.seed), victims):
            played.append(played_round)
            say(json.dumps(asdict(played_round)) if options.json else played_round.line())
    counts = summary(played)
    say(
        json.dumps(counts)
        if options.json
        else "\n".join(f"{name}: {value}" for name, value in counts.items())
    )
    sys.exit(1 if counts["violations"] else 0)


if __name__ == "__main__":
    main()
