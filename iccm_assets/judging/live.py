"""Live scoring: what CET-D answers through the gateway, scored while its rollout is under way (R11, U2).

Only answers that came with a test suite, and only what has no score yet. The most urgent come first: a
session's first such answer, which is the unit of evidence, before later ones; sessions of the live rollout
before the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from iccm_assets.judging.orchestra import Orchestra
from iccm_assets.judging.pending import PAGE, count, pending_live
from iccm_assets.judging.scoring import ScoringReport, score_rows
from iccm_assets.settings import Settings
from iccm_assets.store.arms import ArmFigures, arm_figures, shown
from iccm_assets.store.clock import now

SHOWN = timedelta(days=1)


@dataclass(frozen=True)
class LiveReport:
    """What a pass did, what it left for the next one, and both arms' figures of the last day."""

    scored: ScoringReport
    left: int
    seconds: float
    arms: Sequence[ArmFigures]

    def sentence(self) -> str:
        """In one line, with its numbers."""
        done = self.scored
        mean = f", mean pass rate {math.fsum(done.rates) / len(done.rates):.3f}" if done.rates else ""
        return (
            f"{done.scored} answers scored{mean}, {done.inconclusive} inconclusive, {done.bad_suites} with a"
            f" suite that cannot be run, {self.left} left, in {self.seconds:.1f} s"
        )

    def table(self) -> str:
        """Both arms in Markdown."""
        head = ("arm", "version", "sessions", "pass rate", "variance", "requests", "error rate", "p95 ms")
        rows = [
            (
                one.arm, one.version, one.scored_sessions, shown(one.pass_rate),
                shown(one.implementation_variance), one.requests, shown(one.error_rate),
                shown(one.latency_p95_ms, 0),
            )
            for one in self.arms
        ]  # fmt: skip
        lines = [head, ("---",) * len(head), *rows]
        return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def count_live(engine: sa.Engine) -> int:
    """How many answers `score_live` would score now."""
    return count(engine, pending_live())


def score_live(
    engine: sa.Engine,
    orchestra: Orchestra,
    settings: Settings,
    *,
    seconds: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> LiveReport:
    """Score what came through the gateway with tests and has no score; `progress` is told how many more.

    After `seconds` no further text is begun, and what is under way is finished. An answer that is empty or
    holds no statement scores 0; one that cannot be scored for another reason is inconclusive, marked as
    tried, and asked about again only for members that were missing. Whatever ends the pass, what was scored
    is stored, and several passes at once share the work.
    """
    begun = time.monotonic()
    until = math.inf if seconds is None else begun + seconds
    report = ScoringReport()
    while time.monotonic() < until:
        # A page at a time: what came meanwhile and is more urgent is in the next one.
        page = score_rows(
            engine, pending_live().limit(PAGE), orchestra, settings, until=until, progress=progress
        )
        report += page
        if page.rows < PAGE:
            break
    with engine.connect() as conn:
        arms = arm_figures(conn, now(conn) - SHOWN)
    return LiveReport(report, count_live(engine), time.monotonic() - begun, arms)
