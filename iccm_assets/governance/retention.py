"""Decide what is deleted and what is retained, each with its reason; pure functions (V3)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from iccm_assets.governance.replacement_plan import IN_SERVICE
from iccm_assets.settings import RetentionSettings


@dataclass(frozen=True)
class RetainableVersion:
    """A model version. ``since`` is its last change: made, judged, left by a rollout, or rolled back.

    ``waits_for`` is the live rollout, of another candidate against the same production version, that has to
    end before a version that passed the gate can be deployed.
    """

    version: str
    parent: str | None
    status: str
    digest: str
    dataset: str | None
    since: datetime
    waits_for: int | None = None


@dataclass(frozen=True)
class RequiredArtifacts:
    """Versions and datasets that a live rollout or an unfinished training run needs."""

    versions: frozenset[str]
    datasets: frozenset[str]


@dataclass(frozen=True)
class RetentionDecision:
    """Whether the files of one checkpoint or dataset are deleted, and the reason."""

    name: str
    kind: str
    delete: bool
    reason: str


@dataclass(frozen=True)
class StoredDirectory:
    """A directory of the model store or of the datasets, and its days without a write.

    ``base`` is the digest of the whole model that an adapter needs.
    """

    digest: str
    idle_days: float
    base: str | None = None


def decide_retention(
    versions: Sequence[RetainableVersion],
    required: RequiredArtifacts,
    models: Iterable[StoredDirectory],
    datasets: Iterable[StoredDirectory],
    now: datetime,
    settings: RetentionSettings,
) -> list[RetentionDecision]:
    """Decide on every stored checkpoint and dataset.

    A checkpoint that several versions share is deleted only when none of them needs it. A retained version
    also retains what reproduces it (``iccm verify``): its parent's weights and its dataset. An adapter that
    is retained retains its base, whichever version that is.
    """
    models = list(models)
    reasons = {each.version: keep_reason(each, versions, required, now, settings) for each in versions}
    parents = {
        each.parent: f"{each.version} is reproduced from it" for each in versions if reasons[each.version]
    }
    reasons = {name: reason or parents.get(name) for name, reason in reasons.items()}
    retained_datasets = {
        each.dataset: f"{each.version} was trained on it"
        for each in versions
        if each.dataset and reasons[each.version]
    } | dict.fromkeys(required.datasets, "an unfinished training run uses it")
    checkpoints = [_checkpoint(model, versions, reasons, settings) for model in models]
    return [
        *_keep_bases(checkpoints, models),
        *(_dataset(dataset, retained_datasets, settings) for dataset in datasets),
    ]


def keep_reason(
    version: RetainableVersion,
    versions: Collection[RetainableVersion],
    required: RequiredArtifacts,
    now: datetime,
    settings: RetentionSettings,
) -> str | None:
    """Return why a version's checkpoint is retained for its own sake, or None."""
    status = version.status
    days = (
        settings.rolled_back_retention_days if status == "rolled_back" else settings.unpromoted_retention_days
    )
    age = (now - version.since) / timedelta(days=1)
    children = [each for each in versions if each.parent == version.version and each.status in IN_SERVICE]
    parent_reason = "".join(
        f"it is the parent of {each.version}, which is {each.status}" for each in children[:1]
    )
    rules = (
        (status in IN_SERVICE, f"it is {status}"),
        (parent_reason, parent_reason),
        (version.version in required.versions, "a live rollout or an unfinished training run needs it"),
        (version.waits_for is not None, f"it has passed and waits for rollout {version.waits_for} to end"),
        (status == "retired", "it was production: retained forever"),
        (age <= days, f"{status} for {age:.1f} of {days} days"),
    )
    return next((reason for applies, reason in rules if applies), None)


def _checkpoint(
    model: StoredDirectory,
    versions: Sequence[RetainableVersion],
    reasons: dict[str, str | None],
    settings: RetentionSettings,
) -> RetentionDecision:
    owners = [each for each in versions if each.digest == model.digest]
    if not owners:
        expired = model.idle_days > settings.unpromoted_retention_days
        return RetentionDecision(
            model.digest, "model", expired, f"no version names it, {model.idle_days:.1f} days old"
        )
    retained = [f"{each.version}: {reasons[each.version]}" for each in owners if reasons[each.version]]
    reasons_to_delete = [f"{each.version} is {each.status} for longer than its retention" for each in owners]
    return RetentionDecision(model.digest, "model", not retained, "; ".join(retained or reasons_to_delete))


def _keep_bases(
    decisions: Sequence[RetentionDecision], models: Iterable[StoredDirectory]
) -> list[RetentionDecision]:
    """Keep the base of every adapter that is kept; an adapter has no weights of its base."""
    kept = {decision.name for decision in decisions if not decision.delete}
    needed = {model.base: model.digest for model in models if model.base and model.digest in kept}
    reasons = {base: f"it is the base of the adapter {adapter[:12]}" for base, adapter in needed.items()}
    return [
        replace(decision, delete=False, reason=reasons[decision.name])
        if decision.delete and decision.name in reasons
        else decision
        for decision in decisions
    ]


def _dataset(
    dataset: StoredDirectory, retained: dict[str, str], settings: RetentionSettings
) -> RetentionDecision:
    reason = retained.get(dataset.digest)
    expired = reason is None and dataset.idle_days > settings.unpromoted_retention_days
    reason = reason or f"no retained version needs it, {dataset.idle_days:.1f} days old"
    return RetentionDecision(dataset.digest, "training set", expired, reason)
