"""Decide when a retraining starts: one pure function per trigger (T1-T6).

A decision is ``TriggerFired``, with the key that makes its cause unique, or ``TriggerSkipped``; both have a
reason with numbers. The caller writes the row (``training_runs.create_run``), whose unique key prevents two
retrainings of one cause, even if several daemons decide.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from statistics import NormalDist

from iccm_assets.registry.training_runs import TriggerFired
from iccm_assets.settings import TriggerSettings

# The daily data trigger runs from this time on (T3).
DATA_THRESHOLD_START_TIME = time(3, 0, tzinfo=UTC)


@dataclass(frozen=True)
class TriggerSkipped:
    """No retraining is due; nothing is written."""

    reason: str


@dataclass(frozen=True)
class QualityMeasurement:
    """One row of ``quality_measurements``: production's quality on one set.

    ``standard_error`` is that of the drop ``baseline_mean - mean`` (of paired differences if the set is
    the same, as on the canary set); ``None`` if it, or the baseline, could not be measured.
    ``confidence`` that the drop exceeds the allowed one is stored if it was computed from the items;
    otherwise it follows from the standard error.
    """

    id: int
    version: str
    set: str
    n: int
    mean: float | None
    standard_error: float | None
    baseline_mean: float | None
    measured_at: datetime | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class EmergencyStatus:
    """The last emergency retrain, and the live rollout of an emergency's candidate.

    ``ended_at`` is ``None`` while the emergency waits, runs or may be retried.
    """

    run: int | None = None
    status: str = ""
    ended_at: datetime | None = None
    rollout: int | None = None


def decide_weekly(
    now: datetime, selectable: int, triggers: TriggerSettings, cap_note: str = ""
) -> TriggerFired | TriggerSkipped:
    """Fire when there are enough new examples, once per ISO week (T1).

    ``cap_note`` is the effect of the cap on a user's share, for the reason.
    """
    enough, reason = _count_examples(selectable, triggers.weekly_min_examples, cap_note)
    if not enough:
        return TriggerSkipped(reason)
    year, week, _ = now.astimezone(UTC).isocalendar()
    return TriggerFired("weekly", f"weekly:{year}-W{week:02d}", reason)


def _count_examples(selectable: int, required: int, cap_note: str) -> tuple[bool, str]:
    """Return whether there are enough examples, and the numbers in words."""
    enough = selectable >= required
    numbers = (
        f"{selectable} new examples, {required} required"
        if enough
        else f"{selectable} of {required} new examples"
    )
    return enough, f"{numbers}; {cap_note}" if cap_note else numbers


def data_threshold_key(now: datetime) -> str:
    """Return the trigger key of a UTC day (T3)."""
    return f"data_threshold:{now.astimezone(UTC):%Y-%m-%d}"


def data_threshold_too_early(now: datetime) -> TriggerSkipped | None:
    """Return why the daily data trigger does not run yet; ``None`` from 03:00 UTC on (T3)."""
    utc = now.astimezone(UTC)
    if utc.timetz() >= DATA_THRESHOLD_START_TIME:
        return None
    return TriggerSkipped(f"{utc:%H:%M} UTC, runs from {DATA_THRESHOLD_START_TIME:%H:%M} on")


def decide_data_threshold(
    now: datetime, selectable: int, triggers: TriggerSettings, cap_note: str = ""
) -> TriggerFired | TriggerSkipped:
    """Fire when there are many new examples, once per UTC day, from 03:00 on (T3).

    ``cap_note`` is the effect of the cap on a user's share, for the reason.
    """
    if too_early := data_threshold_too_early(now):
        return too_early
    enough, reason = _count_examples(selectable, triggers.threshold_min_examples, cap_note)
    return (
        TriggerFired("data_threshold", data_threshold_key(now), reason) if enough else TriggerSkipped(reason)
    )


def should_start_emergency(
    measurements: Sequence[QualityMeasurement], emergency: EmergencyStatus, triggers: TriggerSettings
) -> TriggerFired | TriggerSkipped:
    """Decide on the newest measurement of each set: one emergency per drop, on however many sets (T2).

    No second emergency starts while one is active, or the rollout of its candidate is live; afterwards only a
    later measurement counts.
    """
    if not measurements:
        return TriggerSkipped("production has not been measured since its deployment")
    decisions = [decide_degradation(measurement, triggers) for measurement in measurements]
    summary = "; ".join(decision.reason for decision in decisions)
    fired = [
        (measurement.measured_at, decision)
        for measurement, decision in zip(measurements, decisions, strict=True)
        if isinstance(decision, TriggerFired)
    ]
    if not fired:
        return TriggerSkipped(summary)
    if reason := _emergency_in_progress(emergency):
        return TriggerSkipped(f"{reason}; {summary}")
    for measured_at, decision in fired:
        if emergency.ended_at is None or measured_at is None or measured_at > emergency.ended_at:
            return decision
    return TriggerSkipped(
        f"not measured since training run {emergency.run}, an emergency, ended {emergency.status}; {summary}"
    )


def _emergency_in_progress(emergency: EmergencyStatus) -> str | None:
    if emergency.run is not None and emergency.ended_at is None:
        return f"training run {emergency.run}, an emergency, is {emergency.status}"
    if emergency.rollout is not None:
        return f"rollout {emergency.rollout} of an emergency's candidate is live"
    return None


def decide_degradation(
    measurement: QualityMeasurement, triggers: TriggerSettings
) -> TriggerFired | TriggerSkipped:
    """Fire an emergency when production dropped by more than the allowed drop, and not by chance (T2).

    The evidence is one-sided and for a drop *larger than the allowed one*, not merely larger than zero:
    otherwise noise would fire within weeks at four measurements a day. docs/explanation/automation.md states
    the error rate over many measurements. A measurement without an error, without a baseline or with few
    items is no evidence in either direction.
    """
    subject = f"{measurement.version} on {measurement.set}"
    mean, error, baseline = measurement.mean, measurement.standard_error, measurement.baseline_mean
    if (
        mean is None
        or error is None
        or baseline is None
        or not all(map(math.isfinite, (mean, error, baseline)))
    ):
        return TriggerSkipped(
            f"{subject}: not comparable (mean {mean}, standard error {error}, baseline {baseline})"
        )
    if measurement.n < triggers.degradation_min_items:
        items = f"{measurement.n} of {triggers.degradation_min_items} items"
        return TriggerSkipped(f"{subject}: {mean:.3f} (baseline {baseline:.3f}), but {items} are too few")
    drop = round(baseline - mean, 9)
    confidence = measurement.confidence
    if confidence is None:
        # A sample cannot determine its mean better than one item's worth, even if all its items agree.
        error = max(error, 1 / measurement.n)
        confidence = NormalDist().cdf((drop - triggers.max_quality_drop) / error)
    reason = (
        f"{subject}: {mean:.3f}, {drop:.3f} below its baseline {baseline:.3f} (n {measurement.n}"
        f", confidence {confidence:.3f} that the drop exceeds {triggers.max_quality_drop:g})"
    )
    if drop <= triggers.max_quality_drop or confidence < triggers.degradation_confidence:
        return TriggerSkipped(reason)
    return TriggerFired("degradation", f"degradation:{measurement.id}", reason, emergency=True)


def manual_trigger(key: str | None = None, reason: str = "", emergency: bool = False) -> TriggerFired:
    """Fire on a person's request; without a key every request is a cause of its own (T4)."""
    return TriggerFired(
        "manual", f"manual:{key or uuid.uuid4().hex}", reason or "requested manually", emergency
    )


def below_minimum(selected: int, triggers: TriggerSettings) -> TriggerSkipped | None:
    """Return why not to train on so few examples; ``None`` if there are enough (T5)."""
    if selected < triggers.min_examples:
        return TriggerSkipped(f"{selected} of {triggers.min_examples} new examples, too few to train on")
    return None
