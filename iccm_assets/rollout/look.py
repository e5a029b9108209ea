"""One tick of the controller: time, lease and evidence brought up to now, and judged (R4-R7). Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from iccm_assets.rollout import limits
from iccm_assets.rollout.evidence import absorb
from iccm_assets.rollout.limits import Crossing
from iccm_assets.rollout.observation import Observation, faults
from iccm_assets.rollout.outcome import Action, Alert, Event
from iccm_assets.rollout.policy import BAKE
from iccm_assets.rollout.state import State


@dataclass(frozen=True)
class Look:
    """One tick in the making: the state before, the state with time, lease and evidence brought up to now."""

    before: State
    state: State
    now: datetime
    doubts: tuple[str, ...]
    crossings: tuple[Crossing, ...]
    events: tuple[Event, ...]
    actions: tuple[Action, ...]

    @property
    def hours_left(self) -> float | None:
        """Forecast: hours until the stage can end, at the pace seen so far; None while there is no pace."""
        state, policy = self.state, self.state.policy
        time = 0.0 if state.approved else policy.stage_seconds[state.stage - 1] - state.healthy_seconds
        missing = policy.stage_sessions[state.stage - 1] - state.evidence.canary.sessions
        if missing <= 0:
            return max(time, 0.0) / 3600
        seen = state.evidence.canary.sessions
        if not seen or state.stage_seconds <= 0:
            return None
        return max(time, missing * state.stage_seconds / seen) / 3600

    @property
    def progress(self) -> str:
        """The stage in numbers, for people."""
        state, policy = self.state, self.state.policy
        at, tally, beside = state.stage - 1, state.evidence.canary, state.evidence.production
        rate = "-" if tally.pass_rate is None else f"{tally.pass_rate:.3f}"
        theirs = "" if beside.pass_rate is None else f" (production {beside.pass_rate:.3f})"
        left = "unknown yet" if self.hours_left is None else f"in {self.hours_left:.1f} h"
        return (
            f"stage {state.stage} at {state.weight:.0%}: {state.healthy_seconds / 3600:.2f} of "
            f"{policy.stage_seconds[at] / 3600:g} h healthy, {tally.sessions} of {policy.stage_sessions[at]} "
            f"scored canary-arm sessions, pass rate {rate}{theirs}; decision {left}"
        )


def take(before: State, seen: Observation | None, now: datetime) -> Look:
    """Bring time, lease and evidence up to now, and judge them."""
    policy = before.policy
    wrong = ("nothing could be observed",) if seen is None else faults(seen, before.cursor, now)
    doubts = wrong or _doubts(before, seen, now)
    passed = 0.0 if before.observed_at is None else (now - before.observed_at).total_seconds()
    counted = min(max(passed, 0.0), policy.lease_seconds)
    lapsed = before.weight > 0 and (before.lease_until is None or now > before.lease_until)
    healthy = before.weight > 0 and before.state != "paused" and before.held_for != "doubt"
    seconds, evidence = before.seconds + counted, before.evidence
    crossings: list[Crossing] = []
    healthy_seconds = before.healthy_seconds + (counted if healthy and not lapsed and not doubts else 0.0)
    if seen is not None and not wrong:
        evidence = absorb(evidence, seen, policy, before.stage, int(seconds // 3600))
        if policy.evidence == "sequential":
            crossings = limits.by_evidence(evidence, policy, before.stage)
    state = replace(
        before,
        revision=before.revision + 1,
        observed_at=now,
        lease_until=now + timedelta(seconds=policy.lease_seconds),
        stage_seconds=before.stage_seconds + counted,
        seconds=seconds,
        healthy_seconds=healthy_seconds,
        evidence=evidence,
        cursor=before.cursor if seen is None or wrong else seen.until,
    )
    if seen is not None and not wrong and policy.evidence == "point":
        state, crossings = _by_means(state, seen, now, sure=not doubts)
    events = _lapse(before, now, passed) if lapsed else ()
    alerts = [_excuse(state, one) for one in crossings if one.excused]
    alerts = [one for one in alerts if one.key not in state.alerted]
    if alerts:
        state = replace(state, alerted=(*state.alerted, *(one.key for one in alerts)))
    return Look(before, state, now, doubts, tuple(crossings), events, tuple(alerts))


def _by_means(state: State, seen: Observation, now: datetime, sure: bool) -> tuple[State, list[Crossing]]:
    """The limits crossed by plain means: health every few minutes, the stage's limits at its end (R5)."""
    found: list[Crossing] = []
    checked = state.checked_at
    due = checked is None or abs((now - checked).total_seconds()) >= state.policy.health_interval_seconds
    if due:
        found += limits.by_health_means(seen, state.policy)
        state = replace(state, checked_at=now)
    if sure and state.state != "paused" and state.time_is_up and state.enough:
        found += limits.by_stage_means(state.evidence, seen, state.policy, state.stage)
    return state, found


def _doubts(state: State, seen: Observation | None, now: datetime) -> tuple[str, ...]:
    """Why a faultless observation still proves nothing."""
    if seen is None:
        return ()
    found, oldest = [], state.policy.max_data_age_seconds
    if seen.fresh_at is None:
        found.append("nobody knows how fresh the scores are")
    elif (age := (now - seen.fresh_at).total_seconds()) > oldest:
        found.append(f"the scores are {age / 60:.0f} minutes old, {oldest / 60:g} are allowed")
    if not seen.replicas:
        found.append("no gateway replica is alive")
    elif seen.ready < seen.replicas:
        found.append(f"{seen.ready} of {seen.replicas} gateway replicas have the candidate ready")
    return tuple(found)


def _lapse(before: State, now: datetime, passed: float) -> tuple[Event, ...]:
    """The canary arm had no lease for a while, found out on recovery (R7): its end and its return (M2).

    In the bake the candidate is production, which needs no lease: nothing moved.
    """
    since = before.lease_until or before.observed_at or before.stage_entered_at
    gone, weight = (now - since).total_seconds(), before.weight
    why = f"no tick for {passed:.0f} s, the lease ran out {gone:.0f} s ago"
    numbers = {"gap_seconds": round(passed, 3), "lapse_seconds": round(gone, 3)}
    name, version, away = before.state, before.candidate, weight if before.stage == BAKE else 0.0
    lost = Event("lapsed", since, name, name, version, away, f"{why}; production had all traffic", numbers)
    back = Event("recovered", now, name, name, version, weight, f"{why}; that time does not count", numbers)
    return (lost, back)


def _excuse(state: State, crossing: Crossing) -> Alert:
    return Alert(
        f"rollout-{state.id}-floor-{crossing.reason}",
        "warning",
        "Production misses a limit",
        f"{state.candidate} is not rolled back, since production misses the limit too: {crossing.story}",
    )
