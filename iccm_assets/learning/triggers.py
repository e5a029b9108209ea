"""When a retraining starts: one pure decision per trigger (T1-T5).

A decision is ``Fire`` with the key that makes its cause unique, or ``Skip``; both say why, with numbers. Who
asks writes the row (``training_runs.request``), whose unique key keeps one cause from firing twice, whatever
the number of daemons that asked.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from statistics import NormalDist
from typing import Literal

from iccm_assets.settings import Triggers

Trigger = Literal["weekly", "degradation", "data_threshold", "manual"]

DATA_THRESHOLD_FROM = time(3, 0, tzinfo=UTC)
"""The daily data trigger looks at or after this time of the UTC day (T3)."""


@dataclass(frozen=True)
class Fire:
    """A retraining is due. ``key`` is the same for the same cause, and different for any other."""

    trigger: Trigger
    key: str
    reason: str
    emergency: bool = False


@dataclass(frozen=True)
class Skip:
    """No retraining is due; nothing is written."""

    reason: str


@dataclass(frozen=True)
class Measurement:
    """One row of ``quality_measurements``: production's quality on one set.

    ``standard_error`` is that of the fall ``baseline_mean - mean`` (of paired differences where the set is
    the same, as on the canary set); ``None`` where it, or the baseline, could not be measured.
    ``confidence`` that the fall exceeds the allowed drop is stored where it was computed from the items
    themselves; else it follows from the standard error.
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
class Answer:
    """What is done about a fall: the last emergency retrain, when it was over, and a rollout it has led to.

    ``over_at`` is ``None`` while the emergency waits, runs or may be tried again.
    """

    run: int | None = None
    status: str = ""
    over_at: datetime | None = None
    rollout: int | None = None


def weekly(now: datetime, selectable: int, triggers: Triggers) -> Fire | Skip:
    """T1: enough new examples for this ISO week."""
    if selectable < triggers.weekly_min_examples:
        return Skip(f"{selectable} of {triggers.weekly_min_examples} new examples")
    year, week, _ = now.astimezone(UTC).isocalendar()
    key = f"weekly:{year}-W{week:02d}"
    return Fire("weekly", key, f"{selectable} new examples, {triggers.weekly_min_examples} asked for")


def data_threshold_key(now: datetime) -> str:
    """T3's cause: the UTC date."""
    return f"data_threshold:{now.astimezone(UTC):%Y-%m-%d}"


def data_threshold_too_early(now: datetime) -> Skip | None:
    """Why T3 does not look yet; ``None`` from 03:00 UTC on."""
    utc = now.astimezone(UTC)
    if utc.timetz() >= DATA_THRESHOLD_FROM:
        return None
    return Skip(f"{utc:%H:%M} UTC, looks from {DATA_THRESHOLD_FROM:%H:%M} on")


def data_threshold(now: datetime, selectable: int, triggers: Triggers) -> Fire | Skip:
    """T3: many new examples, once per UTC day, from 03:00 on."""
    if too_early := data_threshold_too_early(now):
        return too_early
    if selectable < triggers.threshold_min_examples:
        return Skip(f"{selectable} of {triggers.threshold_min_examples} new examples")
    reason = f"{selectable} new examples, {triggers.threshold_min_examples} asked for"
    return Fire("data_threshold", data_threshold_key(now), reason)


def emergency_due(measurements: Sequence[Measurement], answer: Answer, triggers: Triggers) -> Fire | Skip:
    """T2 on the newest measurement of each set: one emergency for a fall, however many sets show it.

    While an emergency is under way, or the rollout it has led to, no other is asked for; afterwards only a
    measurement taken since then counts.
    """
    if not measurements:
        return Skip("production has not been measured since its deployment")
    decisions = [degradation(one, triggers) for one in measurements]
    told = "; ".join(one.reason for one in decisions)
    due = [(one, fire) for one, fire in zip(measurements, decisions, strict=True) if isinstance(fire, Fire)]
    if not due:
        return Skip(told)
    if answer.run is not None and answer.over_at is None:
        return Skip(f"training run {answer.run}, an emergency, is {answer.status}; {told}")
    if answer.rollout is not None:
        return Skip(f"rollout {answer.rollout} of an emergency's candidate is live; {told}")
    since = answer.over_at
    fresh = [fire for one, fire in due if since is None or one.measured_at is None or one.measured_at > since]
    if not fresh:
        return Skip(
            f"not measured since training run {answer.run}, an emergency, ended {answer.status}; {told}"
        )
    return fresh[0]


def degradation(measurement: Measurement, triggers: Triggers) -> Fire | Skip:
    """T2: production fell by more than the allowed drop, and not by chance: an emergency.

    The evidence asked for is one-sided and for the fall being *larger than the allowed drop*, not merely
    larger than zero: four looks a day would otherwise find noise within weeks. docs/automation.md says how
    often that is wrong over many looks. A measurement without an error, without a baseline or with few items
    is no evidence either way.
    """
    what = f"{measurement.version} on {measurement.set}"
    mean, error, baseline = measurement.mean, measurement.standard_error, measurement.baseline_mean
    if mean is None or error is None or baseline is None or not math.isfinite(mean + error + baseline):
        return Skip(f"{what}: not comparable (mean {mean}, standard error {error}, baseline {baseline})")
    if measurement.n < triggers.degradation_min_items:
        few = f"{measurement.n} of {triggers.degradation_min_items} items"
        return Skip(f"{what}: {mean:.3f} (baseline {baseline:.3f}), but {few} are no evidence")
    fall = round(baseline - mean, 9)
    # A sample cannot know its mean better than one item's worth, even when all its items agree.
    error = max(error, 1 / measurement.n)
    by_error = NormalDist().cdf((fall - triggers.degradation_drop) / error)
    sure = by_error if measurement.confidence is None else measurement.confidence
    story = f"{what}: {mean:.3f}, {fall:.3f} below its baseline {baseline:.3f} (n {measurement.n}"
    story += f", confidence {sure:.3f} that the fall exceeds {triggers.degradation_drop:g})"
    if fall <= triggers.degradation_drop or sure < triggers.degradation_confidence:
        return Skip(story)
    return Fire("degradation", f"degradation:{measurement.id}", story, emergency=True)


def manual(key: str | None = None, reason: str = "", emergency: bool = False) -> Fire:
    """T4: a person asked. Without a key every request is its own cause."""
    return Fire("manual", f"manual:{key or uuid.uuid4().hex}", reason or "asked for by hand", emergency)


def below_floor(selected: int, triggers: Triggers) -> Skip | None:
    """T5: the reason not to train on so few examples, or ``None`` when there are enough."""
    if selected < triggers.floor_examples:
        return Skip(f"{selected} of {triggers.floor_examples} new examples, too few to train on")
    return None


def must_wait(
    emergency: bool, running: int | None, live_rollout: int | None, emergency_ahead: int | None
) -> str | None:
    """T6: why a requested run may not start yet, or ``None`` when the way is free.

    ``running`` and ``live_rollout`` are the ids of what is under way, ``emergency_ahead`` that of an
    emergency which has not started; only another emergency does not wait for it.
    """
    if running is not None:
        return f"training run {running} is running"
    if live_rollout is not None:
        return f"rollout {live_rollout} is live"
    if emergency_ahead is not None and not emergency:
        return f"the emergency of training run {emergency_ahead} goes first"
    return None
