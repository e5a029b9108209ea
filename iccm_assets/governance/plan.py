"""What an erasure means for the models: who learned from it, and how to replace those in service (V2).

A version has learned from a conversation when the training run it came from used it, in whatever role, or
when a version it descends from did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

IN_SERVICE = ("production", "canary")


@dataclass(frozen=True)
class Node:
    """A model version and its parent. ``available``: its files are there to train from."""

    version: str
    parent: str | None
    status: str
    available: bool = True


@dataclass(frozen=True)
class Affected:
    """A version that learned from erased conversations.

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
    """How a version in service is replaced. ``base``: its nearest ancestor that learned nothing erased."""

    version: str
    base: str | None
    reason: str
    retrain: str | None
    deploy_base: str | None


@dataclass(frozen=True)
class Plan:
    """Every affected version, oldest first, and a replacement for each one in service."""

    versions: tuple[Affected, ...]
    replacements: tuple[Replacement, ...]


def decide(
    nodes: Sequence[Node],
    learned: Mapping[str, int],
    tainted: Collection[str],
    erasure: int | None,
) -> Plan:
    """The plan for one erasure.

    ``nodes``: all versions, oldest first. ``learned``: conversations of this erasure by the version whose
    own run used them. ``tainted``: versions whose own run used any conversation erased so far; a base must
    be clean of those too. ``erasure``: its number, None before it has one.
    """
    known = {node.version: node for node in nodes}
    affected = []
    for node in nodes:
        source = next((one.version for one in _line(node, known) if learned.get(one.version)), None)
        if source is not None:
            affected.append(
                Affected(
                    version=node.version,
                    status=node.status,
                    examples=learned.get(node.version, 0),
                    inherited_from=None if source == node.version else source,
                    in_service=node.status in IN_SERVICE,
                )
            )
    serving = [known[one.version] for one in affected if one.in_service]
    return Plan(tuple(affected), tuple(_replacement(node, known, tainted, erasure) for node in serving))


def _line(node: Node, known: Mapping[str, Node]) -> Iterator[Node]:
    """The version and those it descends from, nearest first."""
    current: Node | None = node
    while current is not None:
        yield current
        current = known.get(current.parent) if current.parent else None


def _replacement(
    node: Node, known: Mapping[str, Node], tainted: Collection[str], erasure: int | None
) -> Replacement:
    line = list(_line(node, known))
    dirty = [number for number, one in enumerate(line) if one.version in tainted]
    clean = line[max(dirty, default=-1) + 1 :]
    base = next((one for one in clean if one.available), None)
    if base is None:
        reason = f"none of its {len(clean)} clean ancestors has its files left: name a base model anew"
        return Replacement(node.version, None, reason, None, None)
    why = f"erasure {'N' if erasure is None else erasure}"
    steps = line.index(base)
    return Replacement(
        version=node.version,
        base=base.version,
        reason=f"{base.version} is the last clean ancestor, {steps} step{'s' if steps > 1 else ''} back",
        retrain=f"iccm retrain --base {base.version} --reason '{why}'",
        deploy_base=f"iccm deploy {base.version} --force --skip-rollout --reason '{why}'",
    )
