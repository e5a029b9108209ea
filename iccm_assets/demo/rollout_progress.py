"""Progress of a live rollout, as a panel for a terminal or as a log line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.panel import Panel
from sqlalchemy import Connection, text

from iccm_assets.cli.console import make_grid
from iccm_assets.db.clock import CLOCK_SQL
from iccm_assets.rollout import repository
from iccm_assets.rollout.observation import ArmTotals
from iccm_assets.rollout.sequential_evidence import TESTS
from iccm_assets.rollout.state import State

TEST_LABELS = {
    "drop_first": "pass rate below production at 10 %",
    "drop_second": "pass rate below production at 50 %",
    "stage_floor": "pass rate below the stage's floor",
    "health_floor": "pass rate below the health floor",
    "variance_ratio": "variance above production's",
    "variance_above_floor": "variance above its floor",
    "variance": "variance above the health limit",
    "latency": "latency above production's",
    "errors": "error rate above the health limit",
}
# A test of a rollout: its name, its e-value, and the e-value from which it is violated.
Test = tuple[str, float, float]
STAGE_NAMES = {
    1: "canary arm at 10 %",
    2: "canary arm at 50 %",
    3: "bake: promoted, the previous version warm",
}


@dataclass(frozen=True)
class RolloutSnapshot:
    """A rollout now: its state, the platform's clock and its rate, and the traffic of this stage.

    ``sessions`` of the stage by assigned arm; ``unscored`` responses with tests wait for a score.
    """

    state: State
    now: datetime
    rate: float
    sessions: dict[str, int]
    errors: int
    unscored: int

    @property
    def total(self) -> int:
        """Sessions of this stage in both arms."""
        return sum(self.sessions.values())


_STAGE = text(
    """
    select assigned_arm as arm, count(distinct session_id) as sessions,
        count(*) filter (where status <> 'ok') as errors
    from iccm.requests
    where rollout_id = :rollout and created_at >= :since and assigned_arm is not null group by 1 order by 1
    """
)
_CLOCK = text(
    f"""
    select clock.now, clock.rate,
        (select count(*) from iccm.requirements r join iccm.requests q on q.request_id = r.request_id
         where q.rollout_id = :rollout and r.kind = 'model' and r.test_suite is not null
            and r.scored_at is null) as unscored
    from {CLOCK_SQL}
    """
)


def load_snapshot(conn: Connection, rollout_id: int) -> RolloutSnapshot:
    """Load the present state of the rollout."""
    state = repository.get_rollout(conn, rollout_id)
    clock = conn.execute(_CLOCK, {"rollout": rollout_id}).one()
    arms = conn.execute(_STAGE, {"rollout": rollout_id, "since": state.stage_entered_at}).all()
    return RolloutSnapshot(
        state=state,
        now=clock.now,
        rate=clock.rate,
        sessions={row.arm: row.sessions for row in arms},
        errors=sum(row.errors for row in arms),
        unscored=clock.unscored,
    )


def describe_snapshot(snapshot: RolloutSnapshot) -> list[tuple[str, str]]:
    """Describe the snapshot as labels and texts."""
    state = snapshot.state
    stage = STAGE_NAMES[state.stage] if state.weight else "waiting for the gateway to load the candidate"
    return [
        ("rollout", f"{state.id}: {state.candidate} against {state.production}"),
        ("stage", f"{state.stage}, {stage} ({state.state}); weight {state.weight:.0%}"),
        ("time", _describe_time(snapshot)),
        ("sessions", _describe_sessions(snapshot)),
        ("scored", f"{_describe_scores(state)}; {snapshot.unscored} wait for a score"),
        ("strongest evidence", _describe_evidence(state)),
        ("forecast", _describe_forecast(snapshot)),
    ]


def render_panel(snapshot: RolloutSnapshot) -> Panel:
    """Render the snapshot for a terminal."""
    cells = [(f"[dim]{label}[/]", value) for label, value in describe_snapshot(snapshot)]
    return Panel(make_grid(cells), title="rollout", title_align="left", height=len(cells) + 4)


def format_line(snapshot: RolloutSnapshot) -> str:
    """Format the snapshot for a log."""
    state = snapshot.state
    return (
        f"{snapshot.now:%H:%M:%S} stage {state.stage} {state.state} at {state.weight:.0%};"
        f" {_describe_sessions(snapshot)}; scored {_describe_scores(state)}, {snapshot.unscored} waiting;"
        f" {_describe_forecast(snapshot)}"
    )


def _describe_time(snapshot: RolloutSnapshot) -> str:
    state = snapshot.state
    minutes = state.policy.stage_seconds[state.stage - 1] / 60
    lease = "none"
    if state.lease_until is not None:
        lease = f"expires in {(state.lease_until - snapshot.now).total_seconds():.0f} s"
    return (
        f"{state.healthy_seconds / 60:.1f} of {minutes:g} min healthy; lease {lease};"
        f" platform clock {snapshot.now:%H:%M:%S}, x {snapshot.rate:.2g}"
    )


def _describe_sessions(snapshot: RolloutSnapshot) -> str:
    canary, total = snapshot.sessions.get("canary", 0), snapshot.total
    share = f" ({canary / total:.1%})" if total else ""
    return f"{total} in this stage, {canary} of them on the canary arm{share}, {snapshot.errors} not ok"


def _describe_scores(state: State) -> str:
    required = state.policy.stage_sessions[state.stage - 1]
    canary, production = state.evidence.canary, state.evidence.production
    return (
        f"canary {canary.sessions} of {required}{_format_rate(canary)}, production"
        f" {production.sessions}{_format_rate(production)}"
    )


def _format_rate(totals: ArmTotals) -> str:
    return "" if totals.pass_rate is None else f" (pass rate {totals.pass_rate:.3f})"


def _describe_evidence(state: State) -> str:
    """The two tests nearest to their threshold."""
    return "; ".join(
        f"{TEST_LABELS[name]}: e-value {format_e_value(value)}, violated at {threshold:.0f}"
        for name, value, threshold in strongest_tests(load_tests(state))[:2]
    )


def load_tests(state: State) -> tuple[Test, ...]:
    """The tests of a rollout with their e-values and thresholds."""
    return tuple(
        (name, value, state.policy.threshold(TESTS[name])) for name, value in state.evidence.e_values.items()
    )


def strongest_tests(tests: Sequence[Test]) -> list[Test]:
    """Sort tests by their distance from the threshold, on a logarithmic scale, nearest first."""
    return sorted(tests, key=lambda test: math.log(max(test[1], 1e-300)) / math.log(test[2]), reverse=True)


def format_e_value(value: float) -> str:
    """Format an e-value with three digits at most."""
    return f"{value:{'.2f' if value < 100 else '.3g'}}"


def _describe_forecast(snapshot: RolloutSnapshot) -> str:
    state = snapshot.state
    if not state.is_live:
        return state.state
    if not state.weight:
        return "begins when every gateway replica is ready"
    hours = state.forecast_hours
    return "decision: unknown yet" if hours is None else f"decision in {60 * hours:.1f} min of the clock"
