"""One tick of the controller: time, lease and evidence updated, and assessed; pure functions (R4-R7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from iccm_assets.rollout import guardrails
from iccm_assets.rollout.actions import Action, Alert, DeploymentEvent, raise_once
from iccm_assets.rollout.guardrails import GuardrailViolation
from iccm_assets.rollout.observation import Observation, validation_errors
from iccm_assets.rollout.policy import BAKE_STAGE
from iccm_assets.rollout.sequential_evidence import update_evidence
from iccm_assets.rollout.state import State


@dataclass(frozen=True)
class Assessment:
    """The state before, the state with time, lease and evidence updated, and what follows from them."""

    before: State
    state: State
    now: datetime
    data_issues: tuple[str, ...] = ()
    violations: tuple[GuardrailViolation, ...] = ()
    events: tuple[DeploymentEvent, ...] = ()
    actions: tuple[Action, ...] = ()

    @property
    def shared_violations(self) -> tuple[str, ...]:
        """The violated guardrails that production violates, too: they hold the stage."""
        return tuple(
            f"production violates the guardrail, too: {violation.description}"
            for violation in self.violations
            if violation.also_violated_by_production
        )


def assess(before: State, observation: Observation | None, now: datetime) -> Assessment:
    """Update time, lease and evidence, and assess them; ``observation`` is None when there is none."""
    if observation is None:
        issues: tuple[str, ...] = ("nothing could be observed",)
    elif issues := validation_errors(observation, before.watermark, now):
        observation = None
    else:
        issues = _data_issues(before, observation, now)
    state, violations = _advance_time(before, now, reliable=not issues), list[GuardrailViolation]()
    if observation is not None:
        state, violations = _count(state, observation, now, reliable=not issues)
    alerts = [_alert(state, violation) for violation in violations if violation.also_violated_by_production]
    state, new_alerts = raise_once(state, alerts)
    return Assessment(before, state, now, issues, tuple(violations), _lapse(before, now), new_alerts)


def _seconds_since_observed(before: State, now: datetime) -> float:
    return 0.0 if before.observed_at is None else (now - before.observed_at).total_seconds()


def _is_lapsed(before: State, now: datetime) -> bool:
    return before.weight > 0 and (before.lease_until is None or now > before.lease_until)


def _advance_time(before: State, now: datetime, reliable: bool) -> State:
    """Renew the lease and count the time since the last tick, at most a lease of it."""
    lease = before.policy.lease_seconds
    seconds = min(max(_seconds_since_observed(before, now), 0.0), lease)
    # The whole interval must have been healthy: a gap that began with unreliable data does not count.
    healthy = before.weight > 0 and before.state != "paused" and before.hold_reason != "unreliable_data"
    counts = healthy and reliable and not _is_lapsed(before, now)
    return replace(
        before,
        revision=before.revision + 1,
        observed_at=now,
        lease_until=now + timedelta(seconds=lease),
        stage_seconds=before.stage_seconds + seconds,
        total_seconds=before.total_seconds + seconds,
        healthy_seconds=before.healthy_seconds + (seconds if counts else 0.0),
    )


def _count(
    state: State, observation: Observation, now: datetime, reliable: bool
) -> tuple[State, list[GuardrailViolation]]:
    """Add the observation to the evidence; return the violated guardrails with the new state."""
    policy, hour = state.policy, int(state.total_seconds // 3600)
    evidence = update_evidence(state.evidence, observation, policy, state.stage, hour)
    state = replace(state, evidence=evidence, watermark=observation.until)
    if policy.evidence == "sequential":
        return state, guardrails.check_sequential(evidence, policy, state.stage)
    # Plain means: health every few minutes, the stage's guardrails at its end.
    checked = state.checked_at
    due = checked is None or abs((now - checked).total_seconds()) >= policy.health_interval_seconds
    health = guardrails.check_health_means(evidence, observation, policy)
    # What production violates, too, holds the stage as long as it lasts: every tick checks it.
    violations = [violation for violation in health if due or violation.also_violated_by_production]
    if due:
        state = replace(state, checked_at=now)
    if reliable and state.state != "paused" and state.has_enough_time and state.has_enough_sessions:
        violations += guardrails.check_stage_means(evidence, observation, policy, state.stage)
    return state, violations


def _data_issues(state: State, observation: Observation, now: datetime) -> tuple[str, ...]:
    """Return why a valid observation still cannot count as evidence."""
    issues, max_age = [], state.policy.max_data_age_seconds
    if observation.fresh_at is None:
        issues.append("score freshness is unknown")
    elif (age := (now - observation.fresh_at).total_seconds()) > max_age:
        issues.append(f"the scores are {age / 60:.0f} minutes old, {max_age / 60:g} are allowed")
    if not observation.replicas:
        issues.append("no gateway replica is alive")
    elif observation.ready < observation.replicas:
        issues.append(
            f"{observation.ready} of {observation.replicas} gateway replicas have the candidate ready"
        )
    return tuple(issues)


def _lapse(before: State, now: datetime) -> tuple[DeploymentEvent, ...]:
    """Record on recovery that the lease had expired: one event for its expiry, one for its renewal.

    In the bake the candidate is production, which needs no lease: its traffic stays.
    """
    if not _is_lapsed(before, now):
        return ()
    expired_at = before.lease_until or before.observed_at or before.stage_entered_at
    gap, lapse = _seconds_since_observed(before, now), (now - expired_at).total_seconds()
    summary = f"no tick for {gap:.0f} s, the lease expired {lapse:.0f} s ago"
    numbers = {"gap_seconds": round(gap, 3), "lapse_seconds": round(lapse, 3)}
    state, version, weight = before.state, before.candidate, before.weight
    reduced = weight if before.stage == BAKE_STAGE else 0.0
    expired, recovered = f"{summary}; production had all traffic", f"{summary}; that time does not count"
    return (
        DeploymentEvent("lapsed", expired_at, state, state, version, reduced, expired, numbers),
        DeploymentEvent("recovered", now, state, state, version, weight, recovered, numbers),
    )


def _alert(state: State, violation: GuardrailViolation) -> Alert:
    return Alert(
        f"rollout-{state.id}-floor-{violation.reason}",
        "warning",
        "Production violates guardrail",
        f"{state.candidate} is held, not rolled back, because production violates the guardrail, too: "
        f"{violation.description}",
    )
