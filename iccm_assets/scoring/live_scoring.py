"""Live scoring: score answers of the gateway while their rollout is running (R11, U2).

It selects answers with a test suite and without a score; some that came without tests get a suite recorded
from their source. The most urgent come first: the first such answer of a
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

from iccm_assets.db.clock import now
from iccm_assets.reporting.arm_metrics import ArmMetrics, load_arm_metrics
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.scoring_pass import ScoringReport, score_rows
from iccm_assets.scoring.scoring_queue import PAGE_SIZE, count_rows, unscored_live_responses
from iccm_assets.scoring.suite_recordings import record_live_suites
from iccm_assets.settings import Settings

_METRICS_WINDOW = timedelta(days=1)


@dataclass(frozen=True)
class LiveScoringReport:
    """The result of a pass, how many answers it left to the next one, and both arms' metrics of 24 hours."""

    scored: ScoringReport
    remaining: int
    seconds: float
    arms: Sequence[ArmMetrics]

    def summary(self) -> str:
        """Describe the pass in one line."""
        scored = self.scored
        suites = ", ".join(f"{count} {status}" for status, count in sorted(scored.unusable_suites.items()))
        unusable = f" ({suites})" if suites else ""
        mean = f", mean pass rate {fmean(scored.rates):.3f}" if scored.rates else ""
        return (
            f"{scored.scored} scored{mean}, {scored.inconclusive} inconclusive{unusable},"
            f" {scored.invalid_suites} with an invalid suite, {self.remaining} remaining,"
            f" in {self.seconds:.1f} s"
        )


def score_live_responses(
    engine: sa.Engine,
    orchestra: Orchestra,
    settings: Settings,
    *,
    time_budget_seconds: float | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> LiveScoringReport:
    """Score unscored answers of the gateway with tests; ``progress`` receives each count of stored scores.

    After ``time_budget_seconds`` no further text is started; texts in progress are finished. An empty answer
    scores 0. One whose suite is no evidence, or that cannot be scored for another reason, is inconclusive,
    marked as tried, and retried only for members that were missing. However the pass ends, its scores are
    stored; concurrent passes share the work.
    """
    started = time.monotonic()
    deadline = math.inf if time_budget_seconds is None else started + time_budget_seconds
    record_live_suites(engine, settings, deadline=deadline)
    report = score_live_pages(engine, orchestra, settings, deadline=deadline, progress=progress)
    return describe_live_pass(engine, report, time.monotonic() - started)


def score_live_pages(
    engine: sa.Engine,
    orchestra: Orchestra,
    settings: Settings,
    *,
    deadline: float = math.inf,
    progress: Callable[[int], None] = lambda count: None,
) -> ScoringReport:
    """Score unscored answers that have a suite, until there are none or the deadline has passed."""
    report = ScoringReport()
    while time.monotonic() < deadline:
        # One page at a time: answers that arrived meanwhile and are more urgent are in the next page.
        page = score_rows(
            engine,
            unscored_live_responses().limit(PAGE_SIZE),
            orchestra,
            settings,
            deadline=deadline,
            progress=progress,
        )
        report += page
        if page.selected_rows < PAGE_SIZE:
            break
    return report


def describe_live_pass(engine: sa.Engine, report: ScoringReport, seconds: float) -> LiveScoringReport:
    """Add to the report of a pass what it left, and both arms' metrics."""
    with engine.connect() as conn:
        arms = load_arm_metrics(conn, now(conn) - _METRICS_WINDOW)
    return LiveScoringReport(report, count_rows(engine, unscored_live_responses()), seconds, arms)
