"""Plan the replacement of models that an erasure affects; pure functions.

A version was trained on a conversation when its own training run used it, in any role, or the run of
one of its ancestors did (V2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

IN_SERVICE = ("production", "canary")


@dataclass(frozen=True)
class VersionNode:
    """A model version and its parent. ``available``: its files exist, so that one can train from it."""

    version: str
    parent: str | None
    status: str
    available: bool = True


@dataclass(frozen=True)
class AffectedVersion:
    """A version that was trained on erased conversations.

    ``examples`` counts those of its own training run; ``inherited_from`` names the nearest ancestor whose
    run used some, where it is not itself.
    """

    version: str
    status: str
    examples: int
    inherited_from: str | None
    in_service: bool


@dataclass(frozen=True)
class Replacement:
    """How to replace a version in service. ``base``: its nearest ancestor trained on nothing erased."""

    version: str
    base: str | None
    reason: str
    retrain: str | None
    deploy_base: str | None


@dataclass(frozen=True)
class ReplacementPlan:
    """Every affected version, oldest first, and a replacement for each one in service."""

    versions: tuple[AffectedVersion, ...]
    replacements: tuple[Replacement, ...]


def plan_replacements(
    nodes: Sequence[VersionNode],
    trained_examples: Mapping[str, int],
    trained_on_erased: Collection[str],
    erasure: int | None,
) -> ReplacementPlan:
    """Make the plan for one erasure.

    ``nodes``: all versions, oldest first. ``trained_examples``: conversations of this erasure by the version
    whose own run used them. ``trained_on_erased``: versions whose own run used any conversation erased so
    far; a base must be clean of those too. ``erasure``: its number, None before it has one.
    """
    known = {node.version: node for node in nodes}
    affected = []
    for node in nodes:
        ancestry = (ancestor.version for ancestor in _ancestry(node, known))
        source = next((version for version in ancestry if trained_examples.get(version)), None)
        if source is not None:
            affected.append(
                AffectedVersion(
                    version=node.version,
                    status=node.status,
                    examples=trained_examples.get(node.version, 0),
                    inherited_from=None if source == node.version else source,
                    in_service=node.status in IN_SERVICE,
                )
            )
    serving = [known[version.version] for version in affected if version.in_service]
    return ReplacementPlan(
        tuple(affected), tuple(_replacement(node, known, trained_on_erased, erasure) for node in serving)
    )


def _ancestry(node: VersionNode, known: Mapping[str, VersionNode]) -> Iterator[VersionNode]:
    """Yield the version and its ancestors, nearest first."""
    current: VersionNode | None = node
    while current is not None:
        yield current
        current = known.get(current.parent) if current.parent else None


def _replacement(
    node: VersionNode,
    known: Mapping[str, VersionNode],
    trained_on_erased: Collection[str],
    erasure: int | None,
) -> Replacement:
    ancestry = list(_ancestry(node, known))
    dirty = [index for index, ancestor in enumerate(ancestry) if ancestor.version in trained_on_erased]
    clean = ancestry[max(dirty, default=-1) + 1 :]
    base = next((ancestor for ancestor in clean if ancestor.available), None)
    if base is None:
        reason = (
            f"none of its {len(clean)} clean ancestors has files on disk; specify a base model with --base"
        )
        return Replacement(node.version, None, reason, None, None)
    reason = f"erasure {'N' if erasure is None else erasure}"
    steps = ancestry.index(base)
    return Replacement(
        version=node.version,
        base=base.version,
        reason=f"{base.version} is the last clean ancestor, {steps} step{'s' if steps > 1 else ''} back",
        retrain=f"iccm retrain --base {base.version} --reason '{reason}'",
        deploy_base=f"iccm deploy {base.version} --force --skip-rollout --reason '{reason}'",
    )
