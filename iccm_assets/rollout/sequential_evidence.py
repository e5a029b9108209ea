"""The evidence of a rollout since it was opened: sums per arm, and an e-value per test.

Comparisons with production are made inside *blocks*: the sessions are cut, in the order they were served,
into chunks of a fixed number, and inside a chunk each canary session is compared with its share of the
production sessions. Both arms of a block saw the same hour and the same mix of work, and every session is in
one block at most, so a change of traffic between Monday and Tuesday cannot be mistaken for a difference
between models. A chunk without sessions of both arms gives no comparison. A session of an earlier stage that
is scored late counts for the candidate's own guardrails, not for comparisons (R5, R11).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from functools import lru_cache
from statistics import fmean

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from iccm_assets.rollout.e_process import GRID_SIZE, EProcesses, Scales, restart, start, update
from iccm_assets.rollout.observation import (
    ARMS,
    ArmTotals,
    Observation,
    ReplayPair,
    RequestCounts,
    SessionScore,
)
from iccm_assets.rollout.policy import BAKE_STAGE, Policy

# Sessions in a chunk by stage: about two canary sessions at 10 %, four at 50 %.
BLOCK_SIZES = {1: 20, 2: 8}

# Variances lie in [0, 1/4]; bets are made on four times them.
_TO_UNIT = 4.0
# Each test's family, whose share of alpha it has (policy.ALPHA_SPLIT).
TESTS = {
    "drop_first": "drop",
    "drop_second": "drop",
    "stage_floor": "pass_rate",
    "health_floor": "pass_rate",
    "variance_ratio": "variance_ratio",
    "variance_above_floor": "variance_ratio",
    "variance": "variance",
    "latency": "latency",
    "errors": "errors",
}
_ROW = {name: row for row, name in enumerate(TESTS)}


@dataclass(frozen=True)
class Evidence:
    """All evidence. ``canary`` and ``production`` are the stage's sums, ``*_total`` the rollout's.

    ``open_chunk``: the sessions of the unfinished chunk. ``pending_timing``: timed and slow requests of the
    canary and the production arm not yet compared. ``blocks`` and ``pairs``: comparisons made live and by
    replay. ``hour``: the last hour of the rollout for which a new bet was started. ``slow_threshold_ms``: ms
    per output token above which the canary arm's next requests count as slow; None until production was
    measured.
    """

    e_processes: EProcesses = field(default_factory=lambda: start(len(TESTS)))
    canary: ArmTotals = ArmTotals()
    production: ArmTotals = ArmTotals()
    canary_total: ArmTotals = ArmTotals()
    production_total: ArmTotals = ArmTotals()
    open_chunk: tuple[SessionScore, ...] = ()
    pending_timing: tuple[int, int, int, int] = (0, 0, 0, 0)
    blocks: int = 0
    pairs: int = 0
    hour: int = 0
    slow_threshold_ms: float | None = None

    @model_validator(mode="after")
    def _check_stakes(self) -> Evidence:
        if [len(stakes) for stakes in self.e_processes.log_stakes] != [GRID_SIZE] * len(TESTS):
            raise ValueError(f"not {GRID_SIZE} bets for each of {len(TESTS)} tests")
        return self

    @property
    def e_values(self) -> dict[str, float]:
        """The evidence against the candidate, by test."""
        return dict(zip(TESTS, self.e_processes.e_values(), strict=True))

    @property
    def comparisons(self) -> int:
        """Scored sessions that measure the candidate: live ones and replayed pairs."""
        return self.canary_total.sessions + self.pairs

    def at_new_stage(self) -> Evidence:
        """Reset the stage's sums and the unfinished chunk; the bets continue."""
        return replace(
            self, canary=ArmTotals(), production=ArmTotals(), open_chunk=(), pending_timing=(0, 0, 0, 0)
        )


# (test, value, how often it was observed)
Bet = tuple[str, float, float]
Block = tuple[list[SessionScore], list[SessionScore]]


def update_evidence(
    evidence: Evidence, observation: Observation, policy: Policy, stage: int, hour: int
) -> Evidence:
    """Update the evidence by a valid observation; hour ``hour`` of the rollout starts a new bet."""
    arms = {arm: [session for session in observation.sessions if session.arm == arm] for arm in ARMS}
    blocks, rest = _cut((*evidence.open_chunk, *observation.sessions), stage)
    latency, pending_timing = _latency(evidence.pending_timing, observation)
    bets = [
        *_own_limits(arms["canary"], observation.canary, policy),
        *_comparisons(blocks, observation.replay, policy),
        *latency,
    ]
    tests = [_ROW[test] for test, _, _ in bets]
    values, counts = [value for _, value, _ in bets], [count for _, _, count in bets]
    processes = restart(evidence.e_processes, hour) if hour > evidence.hour else evidence.e_processes
    sums: dict[str, ArmTotals] = {}
    for arm, sessions in arms.items():
        requests = getattr(observation, arm)
        in_stage = [session for session in sessions if session.stage == stage]
        sums[arm] = getattr(evidence, arm).add(in_stage, requests)
        sums[f"{arm}_total"] = getattr(evidence, f"{arm}_total").add(sessions, requests)
    return Evidence(
        e_processes=update(processes, _scales(policy), tests, values, counts),
        open_chunk=rest,
        pending_timing=pending_timing,
        blocks=evidence.blocks + len(blocks),
        pairs=evidence.pairs + len(observation.replay),
        hour=max(hour, evidence.hour),
        slow_threshold_ms=_slow_threshold(evidence, observation, policy),
        **sums,
    )


@lru_cache(maxsize=64)
def _scales(policy: Policy) -> Scales:
    """Return how each test bets: narrowly where the relevant effects are of one size, else widely.

    Two tests of one family on the same quantity bet the same shares: the evidence against the laxer limit
    is then never more than that against the stricter one, and they can share their part of alpha.
    """
    drop = (1.0 + max(policy.allowed_drops), 1.5)
    floor = (1.0 - min(policy.min_pass_rate, policy.health_pass_rate), 1.8)
    scales = {
        "drop_first": drop,
        "drop_second": drop,
        "stage_floor": floor,
        "health_floor": floor,
        "variance_ratio": (max(policy.max_variance_ratio, 1.0), 1.8),
        "variance_above_floor": (max(_TO_UNIT * policy.variance_floor, 0.01), 3.0),
        "variance": (_TO_UNIT * policy.health_variance, 2.0),
        "latency": (1.0, 1.8),
        "errors": (policy.health_error_rate, 3.0),
    }
    return tuple(scales[test] for test in TESTS)


def _cut(sessions: Sequence[SessionScore], stage: int) -> tuple[list[Block], tuple[SessionScore, ...]]:
    """Cut blocks of (canary, production) sessions from every full chunk; also return the unfinished rest."""
    if stage == BAKE_STAGE:
        return [], ()
    waiting = [session for session in sessions if session.stage == stage]
    size, blocks = BLOCK_SIZES[stage], []
    full = len(waiting) - len(waiting) % size
    for offset in range(0, full, size):
        chunk = waiting[offset : offset + size]
        canary = [session for session in chunk if session.arm == "canary"]
        production = [session for session in chunk if session.arm == "production"]
        # The scarcer arm sets the number of blocks; the other arm is dealt out over them in turn.
        number = min(len(canary), len(production))
        blocks += [(canary[index::number], production[index::number]) for index in range(number)]
    return blocks, tuple(waiting[full:])


def _own_limits(canary: Sequence[SessionScore], counts: RequestCounts, policy: Policy) -> Iterator[Bet]:
    """The candidate against fixed limits: two floors of the pass rate, the variance, the error rate."""
    for session in canary:
        yield "stage_floor", policy.min_pass_rate - session.pass_rate, 1
        yield "health_floor", policy.health_pass_rate - session.pass_rate, 1
        if session.variance is not None:
            yield "variance", _TO_UNIT * (session.variance - policy.health_variance), 1
            yield "variance_above_floor", _TO_UNIT * (session.variance - policy.variance_floor), 1
    if counts.requests:
        yield "errors", 1.0 - policy.health_error_rate, counts.errors
        yield "errors", -policy.health_error_rate, counts.requests - counts.errors


def _comparisons(blocks: Sequence[Block], replay: Sequence[ReplayPair], policy: Policy) -> Iterator[Bet]:
    """The candidate against production: the pass rate live and replayed, the variance live."""
    losses = [pair.production - pair.canary for pair in replay]
    for canary, production in blocks:
        losses.append(
            fmean(session.pass_rate for session in production)
            - fmean(session.pass_rate for session in canary)
        )
        variances = [[s.variance for s in arm if s.variance is not None] for arm in (canary, production)]
        if all(variances):
            excess = fmean(variances[0]) - policy.max_variance_ratio * fmean(variances[1])
            yield "variance_ratio", _TO_UNIT * excess, 1
    for loss in losses:
        yield "drop_first", loss - policy.allowed_drops[0], 1
        yield "drop_second", loss - policy.allowed_drops[1], 1


def _latency(
    waiting: tuple[int, int, int, int], observation: Observation
) -> tuple[list[Bet], tuple[int, int, int, int]]:
    """Compare the arms' slow requests once both have some; else keep them for the next observation."""
    canary, production = observation.canary, observation.production
    new = (canary.timed, canary.slow, production.timed, production.slow)
    timed, slow, timed_production, slow_production = (
        old + more for old, more in zip(waiting, new, strict=True)
    )
    if not (timed and timed_production):
        return [], (timed, slow, timed_production, slow_production)
    return [("latency", slow / timed - slow_production / timed_production, 1)], (0, 0, 0, 0)


def _slow_threshold(evidence: Evidence, observation: Observation, policy: Policy) -> float | None:
    """The gate's ratio times production's p95: known before the requests that it is applied to."""
    window = observation.production_window
    if window.latency_p95 is None or window.timed < policy.health_requests:
        return evidence.slow_threshold_ms
    return policy.max_latency_ratio * window.latency_p95
