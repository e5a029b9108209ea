"""A live rollout as a person watches it: what a moment looks like, as a panel or as a line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from rich.panel import Panel
from rich.table import Table

from iccm_assets.rollout.evidence import TESTS, Tally
from iccm_assets.rollout.look import Look
from iccm_assets.rollout.state import State

NAMES = {1: "canary arm at 10 %", 2: "canary arm at 50 %", 3: "bake: promoted, the former version warm"}


@dataclass(frozen=True)
class Moment:
    """A rollout now: its state, the clock and how fast it runs, and this stage's traffic.

    ``sessions`` of the stage by the arm they were assigned to; ``waiting`` answers with tests are not scored
    yet.
    """

    state: State
    now: datetime
    rate: float
    sessions: dict[str, int]
    errors: int
    waiting: int

    @property
    def held(self) -> int:
        """Sessions of this stage, whichever arm."""
        return sum(self.sessions.values())


_STAGE = sa.text(
    """
    select assigned_arm as arm, count(distinct session_id) as sessions,
        count(*) filter (where status <> 'ok') as errors
    from iccm.requests
    where rollout_id = :rollout and created_at >= :since and assigned_arm is not null group by 1 order by 1
    """
)
_CLOCK = sa.text(
    """
    select iccm.now() as now, coalesce(
        (select (value ->> 'rate')::double precision from iccm.platform where key = 'clock'), 1.0) as rate,
        (select count(*) from iccm.requirements r join iccm.requests q on q.request_id = r.request_id
         where q.rollout_id = :rollout and r.kind = 'model' and r.test_suite is not null
            and r.scored_at is null) as waiting
    """
)


def moment(conn: sa.Connection, rollout_id: int) -> Moment:
    """The rollout as the database has it now."""
    from iccm_assets.store import tables as t

    row = conn.execute(sa.select(t.rollouts).where(t.rollouts.c.id == rollout_id)).one()
    state = State.from_row(dict(row._mapping))
    clock = conn.execute(_CLOCK, {"rollout": rollout_id}).one()
    arms = conn.execute(_STAGE, {"rollout": rollout_id, "since": state.stage_entered_at}).all()
    return Moment(
        state=state,
        now=clock.now,
        rate=clock.rate,
        sessions={row.arm: row.sessions for row in arms},
        errors=sum(row.errors for row in arms),
        waiting=clock.waiting,
    )


def rows(seen: Moment) -> list[tuple[str, str]]:
    """What there is to say, as label and text. Pure."""
    state = seen.state
    stage = NAMES[state.stage] if state.weight else "waiting for the gateway to load the candidate"
    return [
        ("rollout", f"{state.id}: {state.candidate} against {state.production}"),
        ("stage", f"{state.stage}, {stage} ({state.state}); weight {state.weight:.0%}"),
        ("time", _time(seen)),
        ("sessions", _sessions(seen)),
        ("scored", f"{_scored(seen)}; {seen.waiting} wait for a score"),
        ("evidence against", _evidence(state)),
        ("forecast", _forecast(seen)),
    ]


def panel(seen: Moment) -> Panel:
    """The moment for a terminal."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="dim")
    drawn.add_column()
    for label, text in rows(seen):
        drawn.add_row(label, text)
    return Panel(drawn, title="rollout", title_align="left", height=len(rows(seen)) + 4)


def line(seen: Moment) -> str:
    """The moment for a log."""
    state = seen.state
    return (
        f"{seen.now:%H:%M:%S} stage {state.stage} {state.state} at {state.weight:.0%}; {_sessions(seen)};"
        f" scored {_scored(seen)}, {seen.waiting} waiting; {_forecast(seen)}"
    )


def _time(seen: Moment) -> str:
    state = seen.state
    wanted = state.policy.stage_seconds[state.stage - 1]
    lease = "none"
    if state.lease_until is not None:
        lease = f"{(state.lease_until - seen.now).total_seconds():.0f} s left"
    return (
        f"{state.healthy_seconds / 60:.1f} of {wanted / 60:g} min healthy; lease {lease};"
        f" platform clock {seen.now:%H:%M:%S}, x {seen.rate:.2g}"
    )


def _sessions(seen: Moment) -> str:
    canary, total = seen.sessions.get("canary", 0), seen.held
    share = f" ({canary / total:.1%})" if total else ""
    return f"{total} in this stage, {canary} of them on the canary arm{share}, {seen.errors} not ok"


def _scored(seen: Moment) -> str:
    state = seen.state
    needed = state.policy.stage_sessions[state.stage - 1]
    mine, theirs = state.evidence.canary, state.evidence.production
    return f"canary {mine.sessions} of {needed}{_rate(mine)}, production {theirs.sessions}{_rate(theirs)}"


def _rate(tally: Tally) -> str:
    return "" if tally.pass_rate is None else f" (pass rate {tally.pass_rate:.3f})"


def _evidence(state: State) -> str:
    """The three tests nearest to their threshold."""
    policy = state.policy
    nearest = sorted(
        ((name, value, policy.threshold(TESTS[name])) for name, value in state.evidence.e_values.items()),
        key=lambda one: math.log(max(one[1], 1e-300)) / math.log(one[2]),
        reverse=True,
    )
    return ", ".join(f"{name} {_short(value)} of {limit:.0f}" for name, value, limit in nearest[:3])


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.3g}"


def _forecast(seen: Moment) -> str:
    state = seen.state
    if not state.live:
        return state.state
    if not state.weight:
        return "begins when every gateway replica is ready"
    hours = Look(state, state, seen.now, (), (), (), ()).hours_left
    return "decision: unknown yet" if hours is None else f"decision in {60 * hours:.1f} min of the clock"
