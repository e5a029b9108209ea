"""Live scoring: score answers of the gateway while their rollout is running (R11, U2).

Only answers with a test suite and without a score. The most urgent come first: the first such answer of a
session, which is the unit of evidence, before later ones; sessions of the live rollout before the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean

import sqlalchemy as sa

from iccm_assets.judging.orchestra import Orchestra
from iccm_assets.judging.pending import PAGE, count, pending_live
from iccm_assets.judging.scoring import ScoringReport, score_rows
from iccm_assets.settings import Settings
from iccm_assets.store.arms import ArmFigures, arm_figures
from iccm_assets.store.clock import now

_METRICS_WINDOW = timedelta(days=1)


@dataclass(frozen=True)
class LiveReport:
    """The result of a pass, how many answers it left to the next one, and both arms' metrics of 24 hours."""

    scored: ScoringReport
    left: int
    seconds: float
    arms: Sequence[ArmFigures]

    def sentence(self) -> str:
        """Describe the pass in one line."""
        scored = self.scored
        mean = f", mean pass rate {fmean(scored.rates):.3f}" if scored.rates else ""
        return (
            f"{scored.scored} answers scored{mean}, {scored.inconclusive} inconclusive, {scored.bad_suites}"
            f" with an invalid suite, {self.left} remaining, in {self.seconds:.1f} s"
        )


def count_live(engine: sa.Engine) -> int:
    """Count the answers that `score_live_responses` would score now."""
    return count(engine, pending_live())


def score_live(
    engine: sa.Engine,
    orchestra: Orchestra,
    settings: Settings,
    *,
    seconds: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> LiveReport:
    """Score unscored answers of the gateway that came with tests; ``progress`` gets the number newly stored.

    After ``time_budget_seconds`` no further text is started; texts in progress are finished. An empty answer
    or one without a statement scores 0. One that cannot be scored for another reason is inconclusive, marked
    as tried, and retried only for members that were missing. However the pass ends, its scores are stored;
    concurrent passes share the work.
    """
    started = time.monotonic()
    until = math.inf if seconds is None else started + seconds
    report = ScoringReport()
    while time.monotonic() < until:
        # One page at a time: answers that arrived meanwhile and are more urgent are in the next page.
        page = score_rows(
            engine, pending_live().limit(PAGE), orchestra, settings, until=until, progress=progress
        )
        report += page
        if page.rows < PAGE:
            break
    with engine.connect() as conn:
        arms = arm_figures(conn, now(conn) - _METRICS_WINDOW)
    return LiveReport(report, count_live(engine), time.monotonic() - started, arms)
