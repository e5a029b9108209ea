"""What is thrown away, and what is not, each with its reason: one pure decision (V3)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from iccm_assets.settings import Retention

UNPROMOTED = ("candidate", "gate_failed", "inconclusive")
SERVING = ("production", "canary")


@dataclass(frozen=True)
class Version:
    """A model version. ``since`` is when it got where it is: made, judged, left by a rollout, rolled back.

    ``waits_for`` is the live rollout, of another candidate against the same production version, that has to
    end before one that has passed can be deployed.
    """

    version: str
    parent: str | None
    status: str
    digest: str
    dataset: str | None
    since: datetime
    waits_for: int | None = None


@dataclass(frozen=True)
class Needs:
    """Versions and training sets that something unfinished needs: a live rollout, a training run."""

    versions: frozenset[str]
    datasets: frozenset[str]


@dataclass(frozen=True)
class Fate:
    """One version, checkpoint or training set: whether its files go, and why."""

    name: str
    kind: str
    goes: bool
    reason: str


@dataclass(frozen=True)
class Stored:
    """A directory of the model store or of the training sets, and how long nobody has touched it."""

    digest: str
    idle_days: float


def decide(
    versions: Sequence[Version],
    needs: Needs,
    models: Iterable[Stored],
    datasets: Iterable[Stored],
    now: datetime,
    settings: Retention,
) -> list[Fate]:
    """The fate of every stored checkpoint and training set.

    A checkpoint that several versions share goes only when none of them keeps it. What a version that stays
    needs to be made again (``iccm verify``: its parent's weights and its training set) stays with it.
    """
    reasons = {one.version: why_kept(one, versions, needs, now, settings) for one in versions}
    by_name = {one.version: one for one in versions}
    verifiable = {
        one.parent: f"{one.version} is made again from it"
        for one in versions
        if reasons[one.version] and one.parent in by_name
    }
    for name, why in verifiable.items():
        if name is not None:
            reasons[name] = reasons[name] or why
    fates = [_checkpoint(one, versions, reasons, settings) for one in models]
    kept_sets = {
        one.dataset: f"{one.version} was trained on it"
        for one in versions
        if one.dataset and reasons[one.version]
    }
    needed = dict.fromkeys(needs.datasets, "a training run under way uses it")
    return fates + [_training_set(one, {**kept_sets, **needed}, settings) for one in datasets]


def why_kept(
    one: Version, versions: Collection[Version], needs: Needs, now: datetime, settings: Retention
) -> str | None:
    """Why a version's checkpoint stays, or ``None``; the rules of V3 for the version itself."""
    if one.status in SERVING:
        return f"it is {one.status}"
    child = next(
        (other for other in versions if other.parent == one.version and other.status in SERVING), None
    )
    if child is not None:
        return f"it is the parent of {child.version}, which is {child.status}"
    if one.version in needs.versions:
        return "a live rollout or a training run under way needs it"
    if one.waits_for is not None:
        return f"it has passed and waits for rollout {one.waits_for} to end"
    if one.status == "retired":
        return "it was production: kept for ever"
    limit = settings.rolled_back_days if one.status == "rolled_back" else settings.unpromoted_days
    age = (now - one.since).total_seconds() / 86400
    return None if age > limit else f"{one.status} for {age:.1f} of {limit} days"


def _checkpoint(
    stored: Stored, versions: Sequence[Version], reasons: dict[str, str | None], settings: Retention
) -> Fate:
    mine = [one for one in versions if one.digest == stored.digest]
    if not mine:
        goes = stored.idle_days > settings.unpromoted_days
        return Fate(stored.digest, "model", goes, f"no version names it, {stored.idle_days:.1f} days old")
    kept = [f"{one.version}: {reasons[one.version]}" for one in mine if reasons[one.version]]
    if kept:
        return Fate(stored.digest, "model", False, "; ".join(kept))
    told = "; ".join(f"{one.version} is {one.status} for longer than it is kept" for one in mine)
    return Fate(stored.digest, "model", True, told)


def _training_set(stored: Stored, kept: dict[str, str], settings: Retention) -> Fate:
    if stored.digest in kept:
        return Fate(stored.digest, "training set", False, kept[stored.digest])
    goes = stored.idle_days > settings.unpromoted_days
    return Fate(
        stored.digest,
        "training set",
        goes,
        f"no version that is kept needs it, {stored.idle_days:.1f} days old",
    )
