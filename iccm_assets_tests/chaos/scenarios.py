"""A round: a retrain is requested, a process of it is killed at a random time, and the aftermath is checked.

The platform gets no hint: the dispatch sensor starts the retrain, and the platform detects the death.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import sqlalchemy as sa
from dagster import RunsFilter

from iccm_assets.defs.automation.training_run_tags import TRAINING_RUN_TAG
from iccm_assets.registry import training_runs
from iccm_assets.registry.training_runs import TrainingRun
from iccm_assets.retraining import triggers
from iccm_assets.rollout import repository
from iccm_assets.rollout.preemption import abort_for_emergency
from iccm_assets_tests.chaos.chaos_instance import (
    RUN_WORKER,
    TRAINER,
    VICTIMS,
    Instance,
    add_examples,
    is_alive,
)
from iccm_assets_tests.chaos.invariants import MAX_ATTEMPTS, load_aftermath, violations

OUTCOME_SECONDS = 300.0
# After the outcome: a dead worker's heartbeat runs out, and a tick or two look.
SETTLE_SECONDS = 60.0
# A worker looks every second whether the process that started it lives, as soon as its interpreter runs.
ORPHAN_SECONDS = 10.0
NOBODY = "nobody"


@dataclass(frozen=True)
class Kill:
    """What is killed and when, as a share of an undisturbed retrain; None: as soon as there is a verdict.

    ``emergency``: its gate passes whatever does no harm, and its candidate is rolled out; the gate refuses a
    model that has learned nothing to any other trigger.
    """

    victim: str
    share: float | None = None
    emergency: bool = True


@dataclass(frozen=True)
class Round:
    """What happened: when and what died (seconds since the Dagster run was requested), and how it ended.

    ``outcome_seconds`` are from the kill to the row's outcome, ``settled_seconds`` until nothing was left.
    """

    number: int
    kill: Kill
    seconds: float
    killed: int
    status: str
    attempts: int
    runs: tuple[str, ...]
    outcome_seconds: float
    settled_seconds: float
    violations: tuple[str, ...]
    error: str = ""

    def line(self) -> str:
        """Format the round as one line."""
        when = "at its verdict" if self.kill.share is None else f"after {self.seconds:6.1f} s"
        what = f"{self.number:3}  {self.kill.victim:11} {when} ({self.killed} killed)"
        ended = f"{self.status:11} attempts {self.attempts}  runs {','.join(self.runs)}"
        times = f"outcome {self.outcome_seconds:5.1f} s, settled {self.settled_seconds:5.1f} s"
        wrong = f"  WRONG: {'; '.join(self.violations)}" if self.violations else ""
        return f"{what}  {ended}  {times}{wrong}"


def plan(rounds: int, rng: Random, kinds: Sequence[str] = VICTIMS) -> list[Kill]:
    """The kills of so many rounds: every kind of victim has its turn before one has its second.

    One in four comes at the verdict: the moment between the row's outcome and the deployment is too short to
    be met by chance.
    """
    victims: list[str] = []
    while len(victims) < rounds:
        victims += rng.sample(kinds, len(kinds))
    return [
        Kill(victim, None if rng.random() < 0.25 else rng.uniform(0.0, 0.6), rng.random() < 0.75)
        for victim in victims[:rounds]
    ]


def play(instance: Instance, rounds: int, rng: Random, kinds: Sequence[str] = VICTIMS) -> Iterator[Round]:
    """Play round 0 without a kill, which measures a retrain; then ``rounds`` with one kill each."""
    calm = play_round(instance, 0, Kill(NOBODY), 0.0)
    yield calm
    for number, kill in enumerate(plan(rounds, rng, kinds), start=1):
        add_examples(instance.engine, rng, 2)
        yield play_round(instance, number, kill, calm.outcome_seconds)


def play_round(instance: Instance, number: int, kill: Kill, whole: float) -> Round:
    """Request, kill, wait and check; ``whole`` is the duration of an undisturbed retrain."""
    with instance.engine.begin() as conn:
        if not kill.emergency:
            _clear_the_way(conn)
        fire = triggers.manual_trigger(f"chaos-{number}", f"round {number}", emergency=kill.emergency)
        requested = training_runs.create_run(conn, fire)
    assert requested is not None
    run_id = requested.id
    instance.wait(lambda: _run(instance, run_id).dispatch > 0, OUTCOME_SECONDS, every=0.05)
    dispatched = time.monotonic()
    strike = _strike(instance, run_id, kill, whole)
    instance.wait(lambda: _has_ended(_run(instance, run_id)), OUTCOME_SECONDS)
    ended = time.monotonic()
    instance.wait(lambda: not violations(load_aftermath(instance, run_id)), SETTLE_SECONDS, every=1.0)
    aftermath = load_aftermath(instance, run_id)
    return Round(
        number=number,
        kill=kill,
        seconds=strike.at - dispatched,
        killed=strike.killed,
        status=aftermath.run.status,
        attempts=aftermath.run.attempt,
        runs=aftermath.runs,
        outcome_seconds=ended - strike.at,
        settled_seconds=time.monotonic() - strike.at,
        violations=(*violations(aftermath), *strike.violations),
        error=aftermath.run.error or "",
    )


def _clear_the_way(conn: sa.Connection) -> None:
    """End the rollout of the previous round, for which a normal retrain would wait."""
    live = repository.get_live_rollout(conn)
    if live is not None:
        abort_for_emergency(conn, live.id, "the next round")


@dataclass(frozen=True)
class Strike:
    """Time of the kill, number of killed processes, and violations directly afterwards."""

    at: float
    killed: int = 0
    violations: tuple[str, ...] = ()


def _strike(instance: Instance, run_id: int, kill: Kill, whole: float) -> Strike:
    """Kill at the moment, or as soon as there is somebody to kill; a trainer must not outlive its run worker.

    A run worker or trainer may never come again once all is over.
    """
    dispatched = time.monotonic()

    def now() -> bool:
        if kill.share is None:
            return _run(instance, run_id).finished
        return time.monotonic() - dispatched >= kill.share * whole

    if kill.victim == NOBODY:
        return Strike(dispatched)
    instance.wait(now, OUTCOME_SECONDS, every=0.02)
    killed, trainers = 0, []

    def hit() -> bool:
        nonlocal killed, trainers
        trainers = instance.processes()[TRAINER]
        killed = instance.kill(kill.victim)
        return killed > 0 or (kill.victim in (RUN_WORKER, TRAINER) and _everything_ended(instance, run_id))

    instance.wait(hit, OUTCOME_SECONDS, every=0.05)
    at = time.monotonic()
    if kill.victim == RUN_WORKER and not instance.wait(
        lambda: not any(map(is_alive, trainers)), ORPHAN_SECONDS
    ):
        return Strike(at, killed, (f"a trainer outlived its run worker by {ORPHAN_SECONDS:g} s",))
    return Strike(at, killed)


def _run(instance: Instance, run_id: int) -> TrainingRun:
    with instance.engine.connect() as conn:
        return training_runs.get_run(conn, run_id)


def _has_ended(run: TrainingRun) -> bool:
    return run.finished and (run.status != "failed" or run.attempt >= MAX_ATTEMPTS)


def _everything_ended(instance: Instance, run_id: int) -> bool:
    runs = instance.dagster.get_runs(RunsFilter(tags={TRAINING_RUN_TAG: str(run_id)}))
    return _has_ended(_run(instance, run_id)) and all(run.is_finished for run in runs)
