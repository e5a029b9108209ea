"""A round: a cause is written, a process dies at a random moment of its retrain, and the aftermath is judged.

Nothing is told to anybody: the dispatch sensor finds the cause, and the platform finds out what has died.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from dagster import RunsFilter

from iccm_assets.defs.learning.runs import TRAINING_RUN_TAG
from iccm_assets.learning import training_runs, triggers
from iccm_assets.learning.training_runs import TrainingRun
from iccm_assets_tests.chaos.aftermath import MAX_ATTEMPTS, look, violations
from iccm_assets_tests.chaos.instance import ALL, RUN_WORKER, TRAINER, VICTIMS, Instance, learn_from

OUTCOME_SECONDS = 300.0
# After the outcome: a dead worker's heartbeat runs out, and a tick or two look.
SETTLE_SECONDS = 60.0
NOBODY = "nobody"


@dataclass(frozen=True)
class Round:
    """What happened: when and what died (seconds since the Dagster run was asked for), and how it ended.

    ``outcome_seconds`` are from the kill to the row's outcome, ``settled_seconds`` until nothing was left.
    """

    number: int
    victim: str
    moment: float
    at_verdict: bool
    killed: int
    status: str
    attempts: int
    runs: tuple[str, ...]
    outcome_seconds: float
    settled_seconds: float
    violations: tuple[str, ...]
    error: str = ""

    def line(self) -> str:
        """One line for a person."""
        when = "at its verdict" if self.at_verdict else f"after {self.moment:6.1f} s"
        what = f"{self.number:3}  {self.victim:11} {when} ({self.killed} killed)"
        ended = f"{self.status:11} attempts {self.attempts}  runs {','.join(self.runs)}"
        times = f"outcome {self.outcome_seconds:5.1f} s, settled {self.settled_seconds:5.1f} s"
        wrong = f"  WRONG: {'; '.join(self.violations)}" if self.violations else ""
        return f"{what}  {ended}  {times}{wrong}"


def play(instance: Instance, rounds: int, rng: Random) -> Iterator[Round]:
    """A calm round, numbered 0, which tells how long a retrain takes; then so many with a kill in each.

    Every kind of victim has its turn before one has its second. One kill in four comes at the verdict: the
    moment between the row's outcome and the deployment is too short to be met by chance.
    """
    calm = one_round(instance, 0, NOBODY)
    yield calm
    bag: list[str] = []
    for number in range(1, rounds + 1):
        bag = bag or rng.sample(VICTIMS, len(VICTIMS))
        learn_from(instance.engine, rng, 2)
        chance = rng.uniform(0.0, 0.8 * calm.outcome_seconds)
        yield one_round(instance, number, bag.pop(), None if rng.random() < 0.25 else chance)


def one_round(instance: Instance, number: int, victim: str, moment: float | None = None) -> Round:
    """Cause, kill, outcome, aftermath; without a moment the kill comes as soon as there is a verdict."""
    with instance.engine.begin() as conn:
        fire = triggers.manual(f"chaos-{number}", f"round {number}", emergency=True)
        requested = training_runs.request(conn, fire)
    assert requested is not None
    instance.wait(lambda: _run(instance, requested.id).dispatch > 0, OUTCOME_SECONDS, every=0.05)
    dispatched = time.monotonic()
    killed = 0
    if victim != NOBODY:

        def now() -> bool:
            if moment is None:
                return _run(instance, requested.id).finished
            return time.monotonic() - dispatched >= moment

        instance.wait(now, OUTCOME_SECONDS, every=0.02)
        killed = _kill(instance, requested.id, victim)
    died = time.monotonic()
    instance.wait(lambda: _over(_run(instance, requested.id)), OUTCOME_SECONDS)
    ended = time.monotonic()
    instance.wait(lambda: not violations(look(instance, requested.id)), SETTLE_SECONDS, every=1.0)
    seen = look(instance, requested.id)
    return Round(
        number=number,
        victim=victim,
        moment=died - dispatched,
        at_verdict=moment is None,
        killed=killed,
        status=seen.run.status,
        attempts=seen.run.attempt,
        runs=seen.runs,
        outcome_seconds=ended - died,
        settled_seconds=time.monotonic() - died,
        violations=tuple(violations(seen)),
        error=seen.run.error or "",
    )


def _kill(instance: Instance, run_id: int, victim: str) -> int:
    """Kill it as soon as there is one; a run worker or trainer may never come again once all is over."""
    killed = 0

    def hit() -> bool:
        nonlocal killed
        killed = instance.kill(victim)
        return killed > 0 or (victim in (RUN_WORKER, TRAINER, ALL) and _everything_ended(instance, run_id))

    instance.wait(hit, OUTCOME_SECONDS, every=0.05)
    return killed


def _run(instance: Instance, run_id: int) -> TrainingRun:
    with instance.engine.connect() as conn:
        return training_runs.get(conn, run_id)


def _over(run: TrainingRun) -> bool:
    return run.finished and (run.status != "failed" or run.attempt >= MAX_ATTEMPTS)


def _everything_ended(instance: Instance, run_id: int) -> bool:
    runs = instance.dagster.get_runs(RunsFilter(tags={TRAINING_RUN_TAG: str(run_id)}))
    return _over(_run(instance, run_id)) and all(one.is_finished for one in runs)
